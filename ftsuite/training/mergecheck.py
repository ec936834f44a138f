"""Proof of a merged model by its weights: what lies on the disk is base + scale·B·A, byte by byte.

It reads the safetensors of base, adapter and merged model tensor by tensor, so it needs the memory
of a few of the largest tensors, and shares no code with the merge, which is PEFT's. What it does
not understand it refuses: a tensor or a setting that was passed over would be no proof.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.errors import StageError
from ftsuite.models.modelfolder import NOT_NEEDED

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PEFT_PREFIX = "base_model.model."
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
    import torch

    with ExitStack() as stack:
        old, new = _open_model(base, stack), _open_model(merged, stack)
        lora = _open(adapter / "adapter_model.safetensors", stack)
        skeleton = _skeleton(base, trust_remote_code)
        names = _Names(skeleton, old, new)
        deltas, stored = _read_adapter(adapter, lora, skeleton)
        used, spent = set[str](), set[str]()
        for name in new:
            found, source, memory = (
                new[name].get_tensor(name),
                names.source(name),
                names.memory[name],
            )
            used.add(source)
            expected, rows = old[source].get_tensor(source), found.shape[:1]
            if memory in stored:
                # Training rounded the base, and what it added to it, to its own dtype.
                whole = lora[stored[memory]].get_tensor(stored[memory])
                expected = _grown(expected.to(whole.dtype), rows, memory, names)
                _require_equal(stored[memory], whole, expected, whole.dtype)
                spent.add(stored[memory])
            else:
                expected = _grown(expected, rows, memory, names, widen=True)
            if delta := deltas.get(memory):
                expected = _add(expected, lora, delta, memory)
                spent |= {delta.a, delta.b}
            rounded = getattr(torch, dtype) if expected.is_floating_point() else expected.dtype
            _require_equal(name, found, expected, rounded)
        _require_all(set(old) - used, names, old)
        if left := sorted(set(lora) - spent):
            raise StageError(
                f"merge: {left[0]} of the adapter is in no tensor of the merged model "
                f"({len(left)} of {len(lora)} are left over); {AGAIN}"
            )
        return Proof(tensors=len(new), adapted=len(deltas))


AGAIN = "run the merge again, and report it with this line if it comes back"


def _open(path: Path, stack: ExitStack) -> dict[str, Any]:
    """Map each tensor's name to the open file that holds it."""
    from safetensors import SafetensorError, safe_open

    try:
        file = stack.enter_context(safe_open(path, framework="pt"))
        return dict.fromkeys(file.keys(), file)
    except (OSError, SafetensorError) as error:
        raise StageError(f"merge: {path} is missing or damaged ({error}); {AGAIN}") from error


def _open_model(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Open one file or all the shards that the index names, and hold both to what they say."""
    if not (folder / INDEX).is_file():
        return _open(folder / SINGLE, stack)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    found = dict[str, Any]()
    for shard in sorted(set(index.values())):
        tensors = _open(folder / shard, stack)
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
        self._partners = {**{source: target for target, source in tied.items()}, **tied}
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
        found = self._on_disk.get(memory) or self._on_disk.get(self._partners.get(memory, ""), [])
        if len(found) != 1:
            raise StageError(f"merge: {name} of the merged model is not in the base; {AGAIN}")
        return found[0]

    def partner(self, name: str) -> str | None:
        """The base's tensor that the base's tensor `name` is tied to."""
        found = self._on_disk.get(self._partners.get(self.memory[name], ""), [])
        return found[0] if len(found) == 1 else None

    def is_skipped(self, name: str) -> bool:
        """Whether transformers leaves this tensor of a checkpoint unread, and says so."""
        found = any(re.search(pattern, name) for pattern in self._skipped)
        return found or NOT_NEEDED.search(name) is not None


def _read_adapter(
    adapter: Path, lora: dict[str, Any], skeleton: Any
) -> tuple[dict[str, _Delta], dict[str, str]]:
    """What the adapter adds, and whole embeddings that its file holds, by weight in memory."""
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    _require_plain(settings)
    modules = dict(skeleton.named_modules())
    deltas, stored = dict[str, _Delta](), dict[str, str]()
    for name in lora:
        module, _, kind = name.removeprefix(PEFT_PREFIX).partition(".lora_")
        if module.endswith(".weight") and not kind:
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
    """The base's tensor; an embedding with its mean row repeated up to so many rows.

    `widen` takes the mean in float32, as the merge does.
    """
    import torch

    if memory.removesuffix(".weight") not in names.embeddings or rows == tensor.shape[:1]:
        return tensor
    added = rows[0] - tensor.shape[0]
    if added < 0:
        raise StageError(f"merge: {memory} has fewer rows than the base's; {AGAIN}")
    if widen:
        tensor = tensor.float()
    return torch.cat([tensor, tensor.mean(dim=0).expand(added, -1)])


def _add(weight: Any, lora: dict[str, Any], delta: _Delta, name: str) -> Any:
    """Return weight + scale·B·A in float32, in PEFT's order of operations."""
    # Copies: a product's last bit may depend on how its factors lie in memory.
    a, b = (lora[part].get_tensor(part).float().clone() for part in (delta.a, delta.b))
    product = b @ a
    if delta.transposed:
        product = product.T
    if product.shape != weight.shape:
        raise StageError(
            f"merge: the adapter adds {tuple(product.shape)} values to {name}, which has "
            f"{tuple(weight.shape)}; it belongs to another base"
        )
    return weight.float() + product * delta.scale


def _require_equal(name: str, found: Any, expected: Any, dtype: Any) -> None:
    """Compare byte by byte with `expected`, rounded to the torch dtype."""
    expected = expected.to(dtype)
    if found.dtype != dtype or found.shape != expected.shape:
        raise StageError(
            f"merge: {name} is {found.dtype} {tuple(found.shape)}, not {dtype} "
            f"{tuple(expected.shape)}; {AGAIN}"
        )
    differs = _bytes(found) != _bytes(expected)
    if differs.any():
        wrong = int(differs.view(-1, found.element_size()).any(dim=1).sum())
        raise StageError(
            f"merge: {name} is not base + scale·B·A rounded once to "
            f"{str(dtype).removeprefix('torch.')}: {wrong:,} of {found.numel():,} values differ; "
            f"{AGAIN}"
        )


def _bytes(tensor: Any) -> Any:
    import torch

    return tensor.contiguous().view(-1).view(torch.uint8)


def _require_all(unused: set[str], names: _Names, old: dict[str, Any]) -> None:
    """Refuse a tensor of the base that the merged model lacks, unless a tied one stands for it."""
    for name in sorted(unused):
        if names.is_skipped(name):
            continue
        partner = names.partner(name)
        if partner is None or partner in unused:
            raise StageError(f"merge: {name} of the base is not in the merged model; {AGAIN}")
        tensor = old[partner].get_tensor(partner)
        _require_equal(name, old[name].get_tensor(name), tensor, tensor.dtype)
