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
from ftsuite.models.modelfolder import NOT_NEEDED

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PEFT_PREFIX = "base_model.model."
BLOCK = 1 << 22
"""Values compared at a time."""
MEAN_COLUMNS = 512
"""Columns of an embedding whose mean is taken at a time: each column's sum is its own."""
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
    old, new = _open_model(base), _open_model(merged)
    lora = _open(adapter / "adapter_model.safetensors")
    names = _Names(skeleton := _skeleton(base, trust_remote_code), old, new)
    deltas, stored = _read_adapter(adapter, lora, skeleton)
    used, spent = set[str](), set[str]()
    for name in new:
        found, source, memory = _read(new, name), names.source(name), names.memory[name]
        used.add(source)
        expected, rows = _read(old, source), found.shape[:1]
        grown = partial(_grown, rows=rows, memory=memory, names=names)
        if memory in stored:
            # Training rounded the base, and what it added to it, to its own dtype.
            whole = _read(lora, stored[memory])
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


AGAIN = "run the merge again, and report it with this line if it comes back"


def _open(path: Path) -> dict[str, Path]:
    """Map each tensor's name to the file that holds it, whose header and length are right."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), path)
    except (OSError, SafetensorError) as error:
        raise StageError(f"merge: {path} is missing or damaged ({error}); {AGAIN}") from error


def _read(files: dict[str, Path], name: str) -> Any:
    """One tensor. Its file is mapped for it alone: pages stay in memory until the mapping ends."""
    from safetensors import safe_open

    with safe_open(files[name], framework="pt") as file:
        return file.get_tensor(name)


def _open_model(folder: Path) -> dict[str, Path]:
    """Open one file or all the shards that the index names, and hold both to what they say."""
    if not (folder / INDEX).is_file():
        return _open(folder / SINGLE)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    found: dict[str, Path] = {}
    for shard in sorted(set(index.values())):
        tensors = _open(folder / shard)
        wanted = {name for name, file in index.items() if file == shard}
        if wanted != set(tensors):
            odd = sorted(wanted ^ set(tensors))[0]
            raise StageError(f"merge: {folder / shard} and its index disagree on {odd}; {AGAIN}")
        found |= tensors
    return found


def _skeleton(base: Path, trust_remote_code: bool) -> Any:
    """The base model without weights: its modules' classes and which weights are tied."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


class _Names:
    """Which tensors belong together: file names of base and merged model, and names in memory.

    They differ where transformers renames weights as it loads them; its own rules are asked.
    """

    def __init__(self, skeleton: Any, old: Iterable[str], new: Iterable[str]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )

        rules = get_model_conversion_mapping(skeleton)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        state, prefix = skeleton.state_dict(), skeleton.base_model_prefix
        self.memory: dict[str, str] = {
            name: rename_source_key(name, renamings, converters, prefix, state)[0]
            for name in {*old, *new}
        }
        self._old = set(old)
        self._on_disk: dict[str, list[str]] = {}
        for name in old:
            self._on_disk.setdefault(self.memory[name], []).append(name)
        tied = getattr(skeleton, "all_tied_weights_keys", None) or {}
        self.partners = {**{source: target for target, source in tied.items()}, **tied}
        self._skipped = set(skeleton._keys_to_ignore_on_load_unexpected or ())
        self.embeddings = {
            name
            for name, module in skeleton.named_modules()
            if module in (skeleton.get_input_embeddings(), skeleton.get_output_embeddings())
        }

    def source(self, name: str) -> str:
        """The base's tensor that the merged model's tensor `name` comes from."""
        if name in self._old:
            return name
        memory = self.memory[name]
        found = self._on_disk.get(memory) or self._on_disk.get(self.partners.get(memory, ""), [])
        if len(found) != 1:
            raise StageError(f"merge: {name} of the merged model is not in the base; {AGAIN}")
        return found[0]

    def partner(self, name: str) -> str | None:
        """The base's tensor that the base's tensor `name` is tied to."""
        found = self._on_disk.get(self.partners.get(self.memory[name], ""), [])
        return found[0] if len(found) == 1 else None

    def is_skipped(self, name: str) -> bool:
        """Whether transformers leaves this tensor of a checkpoint unread, and says so."""
        found = any(re.search(pattern, name) for pattern in self._skipped)
        return found or NOT_NEEDED.search(name) is not None


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
    tensor: Any, rows: tuple[int, ...], memory: str, names: _Names, *, widen: bool = False
) -> Any:
    """Rows that new tokens add to an embedding: its mean row, and zeros to a bias; None if none.

    `widen` takes the mean in float32, as the merge does.
    """
    import torch

    module, _, kind = memory.rpartition(".")
    if module not in names.embeddings or rows == tensor.shape[:1]:
        return None
    added = rows[0] - tensor.shape[0]
    if added < 0:
        raise StageError(f"merge: {memory} has fewer rows than the base's; {AGAIN}")
    if kind == "bias":
        return tensor.new_zeros(added)
    parts = tensor.split(MEAN_COLUMNS, dim=1)
    mean = torch.cat([(part.float() if widen else part).mean(dim=0) for part in parts])
    return mean.expand(added, -1)


def _product(
    weight: Any, added: Any, lora: dict[str, Path], delta: _Delta, name: str
) -> tuple[Any, float]:
    """B·A in float32 and its scale, in PEFT's order of operations."""
    # Copies: a product's last bit may depend on how its factors lie in memory.
    a, b = (_read(lora, part).float().clone() for part in (delta.a, delta.b))
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


def _tied(
    stored: dict[str, str], spent: set[str], names: _Names, lora: dict[str, Path]
) -> set[str]:
    """Tensors of the adapter that are the other end of a tied one, which was proved."""
    found = set[str]()
    for memory, name in stored.items():
        partner = stored.get(names.partners.get(memory, ""))
        if name not in spent and partner in spent:
            tensor = _read(lora, partner)
            _require_equal(name, _read(lora, name), tensor, tensor.dtype)
            found.add(name)
    return found


def _require_all(unused: set[str], names: _Names, old: dict[str, Path]) -> None:
    """Refuse a tensor of the base that the merged model lacks, unless a tied one stands for it."""
    for name in sorted(unused):
        if names.is_skipped(name):
            continue
        partner = names.partner(name)
        if partner is None or partner in unused:
            raise StageError(f"merge: {name} of the base is not in the merged model; {AGAIN}")
        tensor = _read(old, partner)
        _require_equal(name, _read(old, name), tensor, tensor.dtype)
