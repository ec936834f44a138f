"""The merge stage: adapter into base, saved in shards."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ftsuite.choices import Attention
from ftsuite.models import loading, sources, templates, warm
from ftsuite.stagerecords import MergedModel
from ftsuite.training import streammerge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ftsuite.config import ModelConfig
    from ftsuite.events import Events
    from ftsuite.stages import Merge
    from ftsuite.store.stage import Folders


def merge(stage: Merge, folders: Folders, out: Path, events: Events) -> MergedModel:
    """Merge an adapter into its base and write the model, tokenizer and template to `out`."""
    base = sources.locate(stage.base, folders)
    tokenizer = loading.load_tokenizer(base, stage.settings)
    templates.install(tokenizer, stage.template)
    total = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    with events.progress("merge", total, "bytes") as advance:
        adapter = folders[stage.adapter.key] / "adapter"
        reason = _write_merged(stage, base, adapter, tokenizer, out, advance)
    shards = list(out.glob("*.safetensors"))
    return MergedModel(
        shards=len(shards),
        bytes=sum(path.stat().st_size for path in shards),
        dtype=stage.target.dtype,
        method="peft" if reason else "streamed",
        reason=reason,
    )


def _write_merged(
    stage: Merge,
    base: Path,
    adapter: Path,
    tokenizer: Any,
    out: Path,
    advance: Callable[[int], None],
) -> str:
    """Add the adapter in float32 and round once to the cell's dtype.

    Adding in bfloat16 rounds away every change below half a unit in the last place: on
    SmolLM2-135M that cost 0.12 nats a token instead of 0.02 (docs/architecture.md).

    Returns:
        Why it was not streamed but merged in memory; empty where it was streamed.
    """
    # No layer is run, so the kernel does not matter; some are for a GPU's dtypes alone.
    config = dataclasses.replace(stage.settings, attn_implementation=Attention.auto)
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "config": config,
        "dtype": stage.target.dtype,
        "shard_bytes": stage.shard_bytes,
    }
    reason = ""
    try:
        streammerge.write(base, adapter, out, **settings, advance=advance)
    except streammerge.NotStreamable as error:
        reason = str(error)
        warm.drop()
        _merge_in_memory(base, adapter, out, **settings)
    loading.save_tokenizer(tokenizer, out)
    return reason


def _merge_in_memory(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    tokenizer: Any,
    config: ModelConfig,
    dtype: str,
    shard_bytes: int,
) -> None:
    """Merge with PEFT; takes 4 bytes a parameter of main memory."""
    import torch
    from peft import PeftModel

    model: Any = loading.load_model(base, tokenizer, config, device="cpu", dtype="float32")
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.to(getattr(torch, dtype)).save_pretrained(out, max_shard_size=shard_bytes)
