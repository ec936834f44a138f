"""The tensors of a model's folder, and the names they have in memory; for mergecheck.py alone.

Nothing here is shared with the merge, which it proves.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from ftsuite.errors import StageError
from ftsuite.models.modelfolder import NOT_NEEDED

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
AGAIN = "run the merge again, and report it with this line if it comes back"


def open_file(path: Path) -> dict[str, Path]:
    """Map each tensor's name to the file that holds it, whose header and length are right."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), path)
    except (OSError, SafetensorError) as error:
        raise StageError(f"merge: {path} is missing or damaged ({error}); {AGAIN}") from error


def read(files: dict[str, Path], name: str) -> Any:
    """One tensor. Its file is mapped for it alone: pages stay in memory until the mapping ends."""
    from safetensors import safe_open

    with safe_open(files[name], framework="pt") as file:
        return file.get_tensor(name)


def open_model(folder: Path) -> dict[str, Path]:
    """Open one file or all the shards that the index names, and hold both to what they say."""
    if not (folder / INDEX).is_file():
        return open_file(folder / SINGLE)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    found: dict[str, Path] = {}
    for shard in sorted(set(index.values())):
        tensors = open_file(folder / shard)
        wanted = {name for name, file in index.items() if file == shard}
        if wanted != set(tensors):
            odd = sorted(wanted ^ set(tensors))[0]
            raise StageError(f"merge: {folder / shard} and its index disagree on {odd}; {AGAIN}")
        found |= tensors
    return found


def skeleton_of(base: Path, trust_remote_code: bool) -> Any:
    """The base model without weights: its modules' classes and which weights are tied."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


class Names:
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
