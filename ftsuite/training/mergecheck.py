"""Proof of a merged model by its weights: what lies on the disk is base + scale·B·A, byte by byte.

It reads the safetensors of base, adapter and merged model tensor by tensor, so it needs the memory
of a few of the largest tensors, and shares no code with the merge. What it does not understand it
refuses: a tensor or a setting that was passed over would be no proof.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ftsuite.errors import StageError
from ftsuite.training import checkfiles
from ftsuite.training.checkfiles import AGAIN, Names, read

if TYPE_CHECKING:
    from pathlib import Path

PEFT_PREFIX = "base_model.model."
BLOCK = 1 << 22
"""Values compared at a time."""
ANY_VALUE = frozenset(
    {
        # Read here, or without a part in what the adapter adds.
        *("alpha_pattern", "lora_alpha", "r", "rank_pattern", "use_rslora"),
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
        *("exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"),
        *("lora_dropout", "task_type"),
        # The module's own class says whether its weight is transposed.
        "fan_in_fan_out",
        # Of ways to train that have a switch of their own, which must be off.
        *("megatron_core", "qalora_group_size"),
    }
)
PLAIN_INITS = (True, False, "gaussian")
"""Ways to draw A and B that leave the base's weights alone; pissa and the like change them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """How many tensors of a merged model were proved."""

    tensors: int
    adapted: int
    """Of them, those that the adapter changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Delta:
    """What the adapter adds to one module's weight: scale·B·A, transposed where it is stored so."""

    a: str
    b: str
    """Names in the adapter's file."""
    scale: float
    transposed: bool


def prove(
    base: Path, adapter: Path, merged: Path, dtype: str, *, trust_remote_code: bool = False
) -> Proof:
    """Prove that `merged` is `adapter` added to `base` in float32 and rounded once to `dtype`.

    Every tensor of the merged model is recomputed and compared byte by byte; every tensor of the
    base must be in the merged model, and every tensor of the adapter in one of its tensors. A tied
    tensor counts as there when its partner is; rows that new tokens added to an embedding must be
    the mean of the base's rows (models.load_model).

    Args:
        base: folder of the base model (safetensors).
        adapter: folder of the PEFT adapter.
        merged: folder of the merged model.
        dtype: of the merged weights.
        trust_remote_code: whether the base may bring a class of its own.

    Raises:
        StageError: a file is missing or damaged, a tensor differs, or there is something that this
            check does not understand.
    """
    old, new = checkfiles.open_model(base), checkfiles.open_model(merged)
    lora = checkfiles.open_file(adapter / "adapter_model.safetensors")
    names = Names(skeleton := checkfiles.skeleton_of(base, trust_remote_code), old, new)
    deltas, stored = _read_adapter(adapter, lora, skeleton)
    used, spent = set[str](), set[str]()
    for name in new:
        found, source, memory = read(new, name), names.source(name), names.memory[name]
        used.add(source)
        expected, rows = read(old, source), found.shape[:1]
        grown = partial(_grown, rows=rows, memory=memory, names=names)
        if memory in stored:
            # Training rounded the base, and what it added to it, to its own dtype.
            whole = read(lora, stored[memory])
            expected = expected.to(whole.dtype)
            _require_equal(stored[memory], whole, expected, whole.dtype, added=grown(expected))
            spent.add(stored[memory])
            expected, added = whole, None
        else:
            added = grown(expected, widen=True)
        product = None
        if delta := deltas.get(memory):
            product = _product(expected, added, lora, delta, memory)
            spent |= {delta.a, delta.b}
        _require_equal(name, found, expected, dtype, added=added, product=product)
    _require_all(set(old) - used, names, old)
    spent |= _tied(stored, spent, names, lora)
    if left := sorted(set(lora) - spent):
        raise StageError(
            f"merge: {left[0]} of the adapter is in no tensor of the merged model "
            f"({len(left)} of {len(lora)} are left over); {AGAIN}"
        )
    return Proof(tensors=len(new), adapted=len(deltas))


def _read_adapter(
    adapter: Path, lora: dict[str, Path], skeleton: Any
) -> tuple[dict[str, _Delta], dict[str, str]]:
    """What the adapter adds, and whole embeddings that its file holds, by weight in memory."""
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    _require_plain(settings)
    modules = dict(skeleton.named_modules())
    deltas, stored = dict[str, _Delta](), dict[str, str]()
    for name in lora:
        module, _, kind = name.removeprefix(PEFT_PREFIX).partition(".lora_")
        if module.endswith((".weight", ".bias")) and not kind:
            stored[module.replace(".base_layer.", ".")] = name
        elif kind in ("A.weight", "embedding_A") and module in modules:
            b = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
            if b not in lora:
                raise StageError(f"merge: the adapter has {name} without its B; train again")
            transposed = _is_transposed(module, modules[module], embedding=kind == "embedding_A")
            scale = _scale(module, settings)
            deltas[f"{module}.weight"] = _Delta(a=name, b=b, scale=scale, transposed=transposed)
        # A tensor that is nothing of this stays unspent, which prove() refuses.
    return deltas, stored


def _require_plain(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        plain = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": PLAIN_INITS}
        understood = value in plain[name] if name in plain else name in ANY_VALUE or not value
        if not understood:
            raise StageError(
                f"merge: the adapter was made with {name} = {value!r}, whose merge cannot be "
                "proved; train it without"
            )


def _is_transposed(name: str, module: Any, *, embedding: bool) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if embedding and isinstance(module, nn.Embedding):
        return True
    if not embedding and isinstance(module, nn.Linear | Conv1D):
        return isinstance(module, Conv1D)
    raise StageError(
        f"merge: the adapter changes {name}, a {type(module).__name__}, whose merge cannot be "
        "proved; leave it out of lora.target_modules"
    )


def _scale(module: str, settings: dict[str, Any]) -> float:
    """alpha/r, or alpha/√r for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
    rank = _of_module(module, settings.get("rank_pattern"), settings["r"])
    alpha = _of_module(module, settings.get("alpha_pattern"), settings["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def _of_module(module: str, patterns: dict[str, float] | None, default: float) -> float:
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default


def _grown(
    tensor: Any, rows: tuple[int, ...], memory: str, names: Names, *, widen: bool = False
) -> Any:
    """Rows that new tokens add to an embedding: its mean row, and zeros to a bias; None if none.

    `widen` takes the mean in float32, as the merge does.
    """
    module, _, kind = memory.rpartition(".")
    if module not in names.embeddings or rows == tensor.shape[:1]:
        return None
    added = rows[0] - tensor.shape[0]
    if added < 0:
        raise StageError(f"merge: {memory} has fewer rows than the base's; {AGAIN}")
    if kind == "bias":
        return tensor.new_zeros(added)
    return (tensor.float() if widen else tensor).mean(dim=0).expand(added, -1)


def _product(
    weight: Any, added: Any, lora: dict[str, Path], delta: _Delta, name: str
) -> tuple[Any, float]:
    """B·A in float32 and its scale, in PEFT's order of operations."""
    # Copies: a product's last bit may depend on how its factors lie in memory.
    a, b = (read(lora, part).float().clone() for part in (delta.a, delta.b))
    product = b @ a
    if delta.transposed:
        product = product.T
    shape = (len(weight) + (0 if added is None else len(added)), *weight.shape[1:])
    if product.shape != shape:
        raise StageError(
            f"merge: the adapter adds {tuple(product.shape)} values to {name}, which has "
            f"{shape}; it belongs to another base"
        )
    return product, delta.scale


def _require_equal(
    name: str,
    found: Any,
    weight: Any,
    dtype: Any,
    *,
    added: Any = None,
    product: tuple[Any, float] | None = None,
) -> None:
    """Compare `found` byte by byte with a weight, some rows at a time.

    Args:
        name: of the tensor.
        found: in a file.
        weight: that it should be, less what follows.
        dtype: that all is rounded to, once: a torch dtype, or the name of one for floats.
        added: further rows of the weight.
        product: B·A and its scale.
    """
    import torch

    if isinstance(dtype, str):
        dtype = getattr(torch, dtype) if weight.is_floating_point() else weight.dtype
    more = 0 if added is None else len(added)
    shape = (weight.shape[0] + more, *weight.shape[1:]) if weight.dim() else ()
    if found.dtype != dtype or found.shape != shape:
        raise StageError(
            f"merge: {name} is {found.dtype} {tuple(found.shape)}, not {dtype} {shape}; {AGAIN}"
        )
    wrong, step = 0, max(1, BLOCK // max(1, math.prod(shape[1:])))
    old, found = (tensor if tensor.dim() else tensor.view(1) for tensor in (weight, found))
    for start in range(0, len(found), step):
        block = found[start : start + step]
        expected = old[start : start + len(block)]
        if (beyond := start + len(block) - len(old)) > 0:
            # The last rows of a block, or all of them, are new ones.
            fill = added[max(0, start - len(old)) : beyond]
            expected = torch.cat([expected.to(fill.dtype), fill])
        if product:
            expected = expected.float() + product[0][start : start + len(block)] * product[1]
        differs = _bytes(block) != _bytes(expected.to(dtype))
        if differs.any():
            wrong += int(differs.view(-1, found.element_size()).any(dim=1).sum())
    if wrong:
        raise StageError(
            f"merge: {name} is not base + scale·B·A rounded once to "
            f"{str(dtype).removeprefix('torch.')}: {wrong:,} of {found.numel():,} values differ; "
            f"{AGAIN}"
        )


def _bytes(tensor: Any) -> Any:
    import torch

    return tensor.contiguous().view(-1).view(torch.uint8)


def _tied(stored: dict[str, str], spent: set[str], names: Names, lora: dict[str, Path]) -> set[str]:
    """Tensors of the adapter that are the other end of a tied one, which was proved."""
    found = set[str]()
    for memory, name in stored.items():
        partner = stored.get(names.partners.get(memory, ""))
        if name not in spent and partner in spent:
            tensor = read(lora, partner)
            _require_equal(name, read(lora, name), tensor, tensor.dtype)
            found.add(name)
    return found


def _require_all(unused: set[str], names: Names, old: dict[str, Path]) -> None:
    """Refuse a tensor of the base that the merged model lacks, unless a tied one stands for it."""
    for name in sorted(unused):
        if names.is_skipped(name):
            continue
        partner = names.partner(name)
        if partner is None or partner in unused:
            raise StageError(f"merge: {name} of the base is not in the merged model; {AGAIN}")
        tensor = read(old, partner)
        _require_equal(name, read(old, name), tensor, tensor.dtype)
