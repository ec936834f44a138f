"""Model snapshots of the Hugging Face Hub: from its cache where they are whole, else fetched."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.errors import ConfigError
from ftsuite.models import modelfolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftsuite.config import ModelConfig

FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"]


def snapshot(config: ModelConfig, on_event: Callable[[str], None]) -> Path | str:
    """Return the folder of the snapshot, whole, or the reason why there is none."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    ask = functools.partial(
        snapshot_download, config.id, revision=config.revision, allow_patterns=FILES
    )
    try:
        cached = Path(ask(local_files_only=True))
        if not _cut_short(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise ConfigError("model.id", config.id, f"not a folder or Hub id ({error})") from error
    on_event(f"asking the Hub for {config.id}")
    try:
        fetched = Path(ask(etag_timeout=5))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # Without a network huggingface_hub gives the cached files again, whole or not.
    lack = modelfolder.lacking(fetched)
    return f"what is there lacks {lack}" if lack else fetched


def _cut_short(snapshot: Path) -> bool:
    """Whether a download ended early: a file is missing, or one is half written.

    A half-written file may be one that nothing asks for by name, such as a chat template.
    """
    half = list((snapshot.parent.parent / "blobs").glob("*.incomplete"))
    return bool(half) or modelfolder.lacking(snapshot) is not None
