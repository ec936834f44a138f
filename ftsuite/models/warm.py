"""The model that stages share in one process: the last one stays loaded until another is wanted.

A worker computes stage after stage, and most of them want the model of the stage before. Whoever
borrows it gives it back as it was; after an error it is dropped.
"""

from __future__ import annotations

import copy
import gc
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ftsuite.models import loading, sources, templates

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ftsuite.config import ModelConfig
    from ftsuite.devices import Target
    from ftsuite.stages import ModelRef
    from ftsuite.store.stage import Folders

_SHELF: dict[tuple[Any, ...], Any] = {}
"""At most one model, by what it was loaded with."""


@contextmanager
def model(ref: ModelRef, folders: Folders, target: Target) -> Iterator[tuple[Any, Any]]:
    """Lend a model with its tokenizer, the template installed.

    Args:
        ref: base, base with adapter, or merged model.
        folders: of the stage's upstreams.
        target: device and dtype.

    Raises:
        ConfigError, DataError, BackendUnavailable: the model or its tokenizer does not load.
    """
    folder = locate(ref, folders)
    tokenizer = loading.load_tokenizer(folder, ref.settings)
    templates.install(tokenizer, ref.template)
    with plain(folder, tokenizer, ref.settings, target) as loaded:
        if ref.adapter is None:
            yield loaded, tokenizer
            return
        from peft import PeftModel

        adapted: Any = PeftModel.from_pretrained(loaded, folders[ref.adapter.key] / "adapter")
        yield adapted, tokenizer
        adapted.unload()


def locate(ref: ModelRef, folders: Folders) -> Path:
    """Folder of the model's weights and tokenizer, an adapter's apart."""
    if ref.merged is not None:
        return folders[ref.merged.key]
    assert ref.base is not None
    return sources.locate(ref.base, folders)


@contextmanager
def plain(folder: Path, tokenizer: Any, config: ModelConfig, target: Target) -> Iterator[Any]:
    """Lend the model in `folder`, in eval mode; what was put into it must be taken out again.

    Raises:
        As `loading.load_model`.
    """
    wanted = (
        *(str(folder), target.device, target.dtype, config.attn_implementation.value),
        *(config.pad_token.value, config.trust_remote_code, tokenizer.pad_token_id),
    )
    found = _SHELF.pop(wanted, None)
    if found is None:
        drop()
        found = loading.load_model(
            folder, tokenizer, config, device=target.device, dtype=target.dtype
        )
    own = copy.deepcopy(found.generation_config), copy.deepcopy(found.config)
    yield found
    found.generation_config, found.config = own
    found.eval()
    _SHELF[wanted] = found


def drop() -> None:
    """Free the memory of the model that nobody uses."""
    _SHELF.clear()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
