"""The merge stage: adapter into base, saved in shards, and proved to be the same model."""

from __future__ import annotations

import dataclasses
import gc
from functools import partial
from typing import TYPE_CHECKING, Any

from ftsuite import progress
from ftsuite.choices import Attention
from ftsuite.data.prepare import load_split
from ftsuite.errors import StageError
from ftsuite.models import loading, templates
from ftsuite.models.loglikelihood import log_likelihoods, masked_mean
from ftsuite.records import MergeSummary
from ftsuite.training import mergecheck, streammerge

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.config import ModelConfig, RunConfig
    from ftsuite.devices import Compute

VERSION = 2
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
TRAINED_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.4, "float16": 0.1}
"""Largest |Δ mean log-likelihood| a token between adapter and merged model, nats: over a row's
tokens, and over its trained tokens alone, which may be two or three.

The weights are proved apart (mergecheck.py), so this is what rounding W + BA to the dtype costs.
Seen on SmolLM2-135M over 16 rows: float32 2e-6 and 2e-5; bfloat16 0.12 and 0.21 (H200, H100), 0.04
a row (CPU); float16 0.01 a row (CPU). A model loaded under a wrong configuration costs whole nats.
"""


def merge(
    config: RunConfig,
    compute: Compute,
    base: Path,
    data: Path,
    adapter: Path,
    folder: Path,
    cell: str,
) -> MergeSummary:
    """Merge `adapter` into `base` and write the model, tokenizer and template to `folder`.

    Then the written weights are proved, and adapter and merged model, the latter read back from
    disk, score the same validation rows (merge fidelity).

    Raises:
        StageError: the weights are not base + scale·B·A, or the log-likelihoods differ by more than
            the tolerance of the dtype.
    """
    from peft import PeftModel

    tokenizer = loading.load_tokenizer(base, config.model)
    templates.install(tokenizer, config.template)
    sequences = load_split(data, "validation")[: config.train.fidelity_items]
    rows = [sequence.input_ids for sequence in sequences]
    tokens = sum(map(len, rows))
    remote = config.model.trust_remote_code
    load = partial(loading.load_model, device=compute.device, dtype=compute.dtype)
    with progress.stage(cell, "merge and fidelity", 2 * tokens, "tokens") as advance:
        reason = _write_merged(config, compute, base, adapter, tokenizer, folder)
        proof = mergecheck.prove(base, adapter, folder, compute.dtype, trust_remote_code=remote)
        model: Any = PeftModel.from_pretrained(load(base, tokenizer, config.model), adapter)
        before = log_likelihoods(model, rows, batch_size=config.evals.batch_size)
        advance(tokens)
        del model
        gc.collect()
        merged = load(folder, tokenizer, config.model)
        after = log_likelihoods(merged, rows, batch_size=config.evals.batch_size)
        advance(tokens)
    # Whole rows, and the trained tokens alone, where the adapter acts.
    differences = _differences(before, after, [[1] * len(ids) for ids in rows])
    trained = _differences(before, after, [sequence.loss_mask for sequence in sequences])
    tolerance = config.train.fidelity_tolerance
    summary = MergeSummary(
        shards=len(list(folder.glob("*.safetensors"))),
        bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        dtype=compute.dtype,
        method="peft" if reason else "streamed",
        reason=reason,
        vocabulary=merged.get_input_embeddings().num_embeddings,
        proved_tensors=proof.tensors,
        adapted_tensors=proof.adapted,
        fidelity_items=len(rows),
        max_difference=max(differences),
        mean_difference=sum(differences) / len(differences),
        max_trained_difference=max(trained),
        tolerance=TOLERANCE[compute.dtype] if tolerance is None else tolerance,
        trained_tolerance=TRAINED_TOLERANCE[compute.dtype] if tolerance is None else tolerance,
    )
    require_fidelity(summary)
    return summary


def _differences(
    before: list[list[float]], after: list[list[float]], masks: list[list[int]]
) -> list[float]:
    return [
        abs(masked_mean(new, mask) - masked_mean(old, mask))
        for old, new, mask in zip(before, after, masks, strict=True)
    ]


def _write_merged(
    config: RunConfig, compute: Compute, base: Path, adapter: Path, tokenizer: Any, folder: Path
) -> str:
    """Add the adapter in float32 and round once to the cell's dtype.

    Adding in bfloat16 rounds away every change below half a unit in the last place: on
    SmolLM2-135M that cost 0.12 nats a token instead of 0.02 (docs/architecture.md).

    Returns:
        Why it was not streamed but merged in memory; empty where it was streamed.
    """
    # No layer is run, so the kernel does not matter; some are for a GPU's dtypes alone.
    model = dataclasses.replace(config.model, attn_implementation=Attention.auto)
    reason = ""
    try:
        streammerge.write(
            base,
            adapter,
            folder,
            tokenizer=tokenizer,
            config=model,
            dtype=compute.dtype,
            shard_bytes=config.train.shard_bytes,
            advance=lambda _: None,
        )
    except streammerge.NotStreamable as error:
        reason = str(error)
        _merge_in_memory(
            base,
            adapter,
            folder,
            tokenizer=tokenizer,
            config=model,
            dtype=compute.dtype,
            shard_bytes=config.train.shard_bytes,
        )
    tokenizer.save_pretrained(folder)
    return reason


def _merge_in_memory(
    base: Path,
    adapter: Path,
    folder: Path,
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
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard_bytes)


def require_fidelity(summary: MergeSummary) -> None:
    """Refuse a merged model that is not its adapter.

    Raises:
        StageError: the largest difference over whole rows, or over trained tokens, is above its
            tolerance.
    """
    for rows, difference, tolerance in (
        ("whole rows", summary.max_difference, summary.tolerance),
        ("trained tokens", summary.max_trained_difference, summary.trained_tolerance),
    ):
        # Written so that NaN fails too.
        if tolerance is None or not difference <= tolerance:
            raise StageError(
                f"merge: adapter and merged model differ by {difference:.4f} nats a token over "
                f"the {rows} of {summary.fidelity_items} rows, more than {tolerance} for "
                f"{summary.dtype}; set model.dtype=float32, or train.fidelity_tolerance if that "
                "is good enough"
            )
