"""The merge without the model in memory: tensor by tensor from the base's files to new shards.

What the result looks like (names, shapes, ties, files, configurations) is asked of transformers and
PEFT on a model without weights; what its numbers are is computed here, as PEFT would: base + B·A
times scale in float32, rounded once. So the folder is the one that `merge_and_unload` and
`save_pretrained` write, byte by byte, for the memory of one product B·A.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from ftsuite.errors import StageError
from ftsuite.models import loading, modelfolder
from ftsuite.training import mergedtensor, tensorfile
from ftsuite.training.mergedtensor import FLOATS, Delta, MergedTensor
from ftsuite.training.tensorfile import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ftsuite.config import ModelConfig

PLAIN_INITS = (True, False, "gaussian")
"""Ways to draw A and B that leave the base's weights alone; PEFT repeats the others as it loads."""
WHOLE = ("bias", "layer_replication", "modules_to_save", "target_parameters")
"""Settings of LoraConfig under which more is trained than A and B."""


class NotStreamable(Exception):
    """This model or adapter has something that is not merged tensor by tensor; says what."""


def write(
    base: Path,
    adapter: Path,
    folder: Path,
    *,
    tokenizer: Any,
    config: ModelConfig,
    dtype: str,
    shard_bytes: int,
    advance: Callable[[int], None],
) -> None:
    """Write `adapter` merged into `base` to `folder`: weights and configuration, no tokenizer.

    Takes the memory of the largest B·A in float32 and a few MB, and that of an embedding in float32
    where new tokens were added and the adapter does not hold the embedding. Nothing is written
    before it is known that all can be merged.

    Args:
        base: folder of the base model.
        adapter: folder of the PEFT adapter.
        folder: of the merged model.
        tokenizer: from `loading.load_tokenizer`; the embeddings are fitted to it.
        config: the base's.
        dtype: of the merged weights.
        shard_bytes: largest data of one file; a larger tensor gets a file of its own.
        advance: told the bytes written since the last call.

    Raises:
        NotStreamable: something that PEFT and transformers must merge and save in memory.
        StageError: the adapter changes one end of tied embeddings, or a file is damaged.
        DataError: the base is not a whole model.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards

    if "quantization_config" in json.loads((base / "config.json").read_text(encoding="utf-8")):
        raise NotStreamable("the base's weights are quantised")
    model = loading.load_model(base, tokenizer, config, device="meta", dtype="float32")
    sources = _sources(model, base)
    model, deltas, whole = _adapted(model, adapter)
    model = model.to(getattr(torch, dtype))
    state = _saved(model)
    tensors = {tensor.name: tensor for tensor in _plan(model, state, sources, whole, deltas)}
    # Writes all files that are no weights.
    model.save_pretrained(folder, state_dict={})
    split = split_torch_state_dict_into_shards(
        {name: weight for name, (_, weight) in state.items()},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    room = mergedtensor.scratch(tensors.values())
    for shard, names in split.filename_to_tensors.items():
        entries = [_entry(tensors[name], room) for name in names]
        tensorfile.write(folder / shard, entries, advance)
    # At the end, so that reading goes on while the system writes.
    for shard in split.filename_to_tensors:
        tensorfile.sync(folder / shard)
    if split.is_sharded:
        metadata = {"total_parameters": model.num_parameters(), **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / modelfolder.INDEX).write_text(text, encoding="utf-8")


def _entry(tensor: MergedTensor, room: Any) -> tensorfile.Entry:
    blocks = partial(mergedtensor.blocks, tensor, room)
    return tensorfile.Entry(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, blocks=blocks)


# --- what there is --------------------------------------------------------------------------


def _sources(model: Any, base: Path) -> dict[str, Stored]:
    """The base's tensors by their names in memory, and the model's tied weights made one.

    transformers renames weights as it loads them; its own rules are asked.
    """
    from transformers import conversion_mapping, core_model_loading

    index = base / modelfolder.INDEX
    shards = [modelfolder.WEIGHTS]
    if index.is_file() and not (base / modelfolder.WEIGHTS).is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    stored = dict[str, Stored]()
    for shard in shards:
        stored |= tensorfile.tensors(base / shard)
    rules = conversion_mapping.get_model_conversion_mapping(model)
    renamings = [r for r in rules if isinstance(r, core_model_loading.WeightRenaming)]
    converters = [r for r in rules if isinstance(r, core_model_loading.WeightConverter)]
    prefix, state = model.base_model_prefix, model.state_dict()
    sources = dict[str, Stored]()
    for name in sorted(stored, key=core_model_loading.dot_natural_key):
        rename = core_model_loading.rename_source_key
        memory, converted = rename(name, renamings, converters, prefix, state)
        if memory not in state and name in state:
            memory, converted = name, None
        if memory not in state:
            continue  # load_model has judged what has no place
        if converted is not None or memory in sources:
            raise NotStreamable(f"transformers converts {name} of the base as it loads it")
        sources[memory] = stored[name]
    for pair in (model.all_tied_weights_keys or {}).items():
        if set(pair) <= set(sources):
            _require_same(pair, sources)
    model.tie_weights(recompute_mapping=False)
    return sources


def _require_same(pair: tuple[str, str], places: dict[str, Stored]) -> None:
    """Tied weights that a file holds twice are one weight only where they are equal."""
    one, other = (places[name] for name in pair)
    alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    blocks = (tensorfile.blocks(place, mergedtensor.BLOCK) for place in (one, other))
    if not alike or any(left != right for left, right in zip(*blocks, strict=True)):
        raise NotStreamable(f"{' and '.join(pair)} are tied in config.json and differ in the file")


def _adapted(model: Any, adapter: Path) -> tuple[Any, dict[str, Delta], dict[str, Stored]]:
    """The model, what the adapter adds to its weights, and weights that the adapter's file holds.

    PEFT saves whole embeddings when their rows grew.
    """
    import peft
    from peft.tuners.lora import Embedding, Linear, LoraLayer

    settings = peft.PeftConfig.from_pretrained(adapter)
    _require_plain(settings)
    wrapped = peft.get_peft_model(model, settings, low_cpu_mem_usage=True)
    plain = wrapped.get_base_model()
    _require_one_end(plain)
    stored = {
        name.removeprefix("base_model.model."): place
        for name, place in tensorfile.tensors(adapter / "adapter_model.safetensors").items()
    }
    deltas = dict[str, Delta]()
    for name, layer in plain.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if type(layer) not in (Linear, Embedding) or layer.lora_variant:
            raise NotStreamable(f"the adapter's part for {name} is of a kind of its own")
        ends = ("lora_A.weight", "lora_B.weight")
        if isinstance(layer, Embedding):
            ends = ("lora_embedding_A", "lora_embedding_B")
        a, b = (stored.pop(f"{name}.{end}", None) for end in ends)
        if a is None or b is None:
            raise StageError(f"merge: the adapter has no A and B for {name}; train again")
        if unknown := {a.dtype, b.dtype} - set(FLOATS):
            raise NotStreamable(f"the adapter is stored as {min(unknown)}")
        deltas[f"{name}.weight"] = Delta(
            a=a,
            b=b,
            scale=layer.scaling[wrapped.active_adapter],
            transposed=isinstance(layer, Embedding) or layer.fan_in_fan_out,
        )
    model = wrapped.unload()
    whole = {name.replace(".base_layer.", "."): place for name, place in stored.items()}
    if odd := sorted(set(whole) - {*model.state_dict()}):
        raise NotStreamable(f"the adapter holds {odd[0]}")
    return model, deltas, whole


def _require_plain(settings: Any) -> None:
    import peft

    if type(settings) is not peft.LoraConfig:
        raise NotStreamable(f"the adapter is a {settings.peft_type}")
    if settings.init_lora_weights not in PLAIN_INITS:
        raise NotStreamable(f"the adapter was begun with {settings.init_lora_weights}")
    for name in WHOLE:
        if (value := getattr(settings, name)) not in (None, "none", [], ()):
            raise NotStreamable(f"the adapter was made with {name} = {value!r}")


def _require_one_end(model: Any) -> None:
    """Refuse an adapter on one of two tied embeddings: it would change both.

    `targets.check` lets no such adapter be trained.
    """
    from peft.tuners.lora import LoraLayer

    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if None in ends or ends[0].weight is not ends[1].weight:
        return
    for name, module in model.named_modules():
        if module in ends and isinstance(module, LoraLayer):
            raise StageError(
                f"merge: the adapter changes {name}, one of two embeddings that share their "
                "weight, and the merge would change both; train it without"
            )


# --- what there will be ---------------------------------------------------------------------


def _saved(model: Any) -> dict[str, tuple[str, Any]]:
    """Name in memory and weight (without data) of all that save_pretrained writes, by file name."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    state = model.state_dict()
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    state = remove_tied_weights_from_state_dict(state, model)
    names = {id(weight): name for name, weight in state.items()}
    saved = revert_weight_conversion(model, state)
    if odd := [name for name, weight in saved.items() if id(weight) not in names]:
        raise NotStreamable(f"transformers converts {odd[0]} as it saves it")
    return {name: (names[id(weight)], weight) for name, weight in saved.items()}


def _plan(
    model: Any,
    state: dict[str, tuple[str, Any]],
    sources: dict[str, Stored],
    whole: dict[str, Stored],
    deltas: dict[str, Delta],
) -> Iterator[MergedTensor]:
    """What each saved tensor is made of.

    Args:
        model: without its adapter.
        state: from `_saved`.
        sources: the base's tensors by names in memory.
        whole: the adapter's in their stead, likewise.
        deltas: likewise; all are used.
    """
    import torch

    kinds = {getattr(torch, long): short for short, long in FLOATS.items()}
    weights = dict(model.named_parameters(remove_duplicate=False))
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    growing = [end.weight for end in ends if end is not None]
    left = dict(deltas)
    for name, (memory, weight) in state.items():
        tied = [n for n, other in weights.items() if other is weights.get(memory)] or [memory]
        origin = whole if any(n in whole for n in tied) else sources
        places = [n for n in tied if n in origin]
        if not places:
            raise NotStreamable(f"{memory} is not in the base's files")
        for other in places[1:]:
            _require_same((places[0], other), origin)
        source, shape = origin[places[0]], tuple(weight.shape)
        grown = any(weights.get(memory) is end for end in growing) and (
            source.shape[1:] == shape[1:] and source.shape[0] < shape[0]
        )
        if source.shape != shape and not grown:
            raise NotStreamable(f"{memory} has another shape in the base's files")
        if (source.dtype in FLOATS) != weight.dtype.is_floating_point:
            raise NotStreamable(f"{memory} is stored as {source.dtype}")
        dtype = kinds.get(weight.dtype, source.dtype)
        delta = next((left.pop(n) for n in tied if n in left), None)
        yield MergedTensor(name=name, source=source, delta=delta, dtype=dtype, shape=shape)
    if left:
        raise NotStreamable(f"{min(left)}, which the adapter changes, is not saved")
