"""The merge stage: adapter into base, saved in shards, and proved to be the same model."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from ftsuite import models, progress, templates
from ftsuite.data import load_split
from ftsuite.errors import StageError
from ftsuite.loglikelihood import mean_log_likelihoods
from ftsuite.records import MergeSummary

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.config import RunConfig
    from ftsuite.devices import Compute

VERSION = 1
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
"""Largest |Δ mean log-likelihood| a token of a row, nats, between adapter and merged model.

Merging rounds W + BA to the dtype. Measured on SmolLM2-135M: below 1e-4 in float32, 0.02 (CPU) to
0.11 (H200) in bfloat16; a wrong scale or a missing layer costs far more.
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

    Then adapter and merged model, the latter read back from disk, score the same validation
    rows (merge fidelity).

    Raises:
        StageError: their log-likelihoods differ by more than the tolerance of the dtype.
    """
    from peft import PeftModel

    tokenizer = models.load_tokenizer(base, config.model)
    templates.install(tokenizer, config.template)
    sequences = load_split(data, "validation")[: config.train.fidelity_items]
    # Whole rows for the verdict: a completion of two tokens says little about a model.
    whole = [(s.input_ids, [1] * len(s.input_ids)) for s in sequences]
    rows = whole + [(s.input_ids, s.loss_mask) for s in sequences]
    tokens = 2 * sum(len(ids) for ids, _ in rows)
    with progress.stage(cell, "merge and fidelity", tokens, "tokens") as advance:
        model: Any = PeftModel.from_pretrained(
            models.load_model(
                base, tokenizer, config.model, device=compute.device, dtype=compute.dtype
            ),
            adapter,
        )
        before = mean_log_likelihoods(model, rows, batch_size=config.evals.batch_size)
        advance(tokens // 2)
        del model
        gc.collect()
        _write_merged(config, compute, base, adapter, tokenizer, folder)
        merged = models.load_model(
            folder, tokenizer, config.model, device=compute.device, dtype=compute.dtype
        )
        after = mean_log_likelihoods(merged, rows, batch_size=config.evals.batch_size)
        advance(tokens // 2)
    both = [abs(a - b) for a, b in zip(after, before, strict=True)]
    differences, trained = both[: len(whole)], both[len(whole) :]
    tolerance = config.train.fidelity_tolerance
    summary = MergeSummary(
        shards=len(list(folder.glob("*.safetensors"))),
        bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        dtype=compute.dtype,
        vocabulary=merged.get_input_embeddings().num_embeddings,
        fidelity_items=len(whole),
        max_difference=max(differences),
        mean_difference=sum(differences) / len(differences),
        max_trained_difference=max(trained),
        tolerance=TOLERANCE[compute.dtype] if tolerance is None else tolerance,
    )
    require_fidelity(summary)
    return summary


def _write_merged(
    config: RunConfig, compute: Compute, base: Path, adapter: Path, tokenizer: Any, folder: Path
) -> None:
    """Add the adapter in float32 and round once to the cell's dtype.

    Adding in bfloat16 rounds away every change below half a unit in the last place: on
    SmolLM2-135M that cost 0.12 nats a token instead of 0.02 (docs/architecture.md). Takes 4 bytes
    a parameter of main memory.
    """
    import torch
    from peft import PeftModel

    model: Any = models.load_model(base, tokenizer, config.model, device="cpu", dtype="float32")
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model = model.to(getattr(torch, compute.dtype))
    model.save_pretrained(folder, max_shard_size=config.train.shard_bytes)
    tokenizer.save_pretrained(folder)


def require_fidelity(summary: MergeSummary) -> None:
    """Refuse a merged model that is not its adapter.

    Raises:
        StageError: the largest difference is above the tolerance.
    """
    # Written so that NaN fails too.
    if not summary.max_difference <= summary.tolerance:
        raise StageError(
            f"merge: adapter and merged model differ by {summary.max_difference:.4f} nats a token "
            f"on {summary.fidelity_items} rows, more than {summary.tolerance} for {summary.dtype}; "
            "set model.dtype=float32, or train.fidelity_tolerance if that is good enough"
        )
