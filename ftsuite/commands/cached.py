"""The base model where it is already on this machine; never fetches or converts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ftsuite.choices import Source
from ftsuite.models import sources

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.config import ModelConfig
    from ftsuite.models.sources import Base


class _WouldFetchError(Exception):
    """`sources.resolve` was about to do something that takes long."""


def cached_base(config: ModelConfig, root: Path) -> Base | None:
    """Return the base model from the local caches; None where it has to be fetched.

    Raises:
        ConfigError: the model's settings cannot work.
    """
    if config.source is Source.embedded and config.embedded is not None:
        # 'embedded' would wait for another process that converts; 'auto' looks and goes on.
        base = _resolve(dataclasses.replace(config, source=Source.auto), root)
        return base if base is None or base.identity.source == "wheel" else None
    return _resolve(config, root)


def _resolve(config: ModelConfig, root: Path) -> Base | None:
    try:
        return sources.resolve(config, root, on_event=_stop)
    except _WouldFetchError:
        return None


def _stop(event: str) -> None:
    # `resolve` announces every download and conversion before it begins.
    raise _WouldFetchError(event)
