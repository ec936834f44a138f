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
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.05}
"""Largest |Δ mean log-likelihood| a token, nats, between adapter and merged model.

Merging rounds W + BA to the dtype; what that costs was measured (docs/architecture.md)."""


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
    rows = [
        (s.input_ids, s.loss_mask)
        for s in load_split(data, "validation")[: config.train.fidelity_items]
    ]
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
        model = model.merge_and_unload()
        model.save_pretrained(folder, max_shard_size=config.train.shard_bytes)
        tokenizer.save_pretrained(folder)
        del model
        gc.collect()
        merged = models.load_model(
            folder, tokenizer, config.model, device=compute.device, dtype=compute.dtype
        )
        after = mean_log_likelihoods(merged, rows, batch_size=config.evals.batch_size)
        advance(tokens // 2)
    differences = [abs(a - b) for a, b in zip(after, before, strict=True)]
    tolerance = config.train.fidelity_tolerance
    summary = MergeSummary(
        shards=len(list(folder.glob("*.safetensors"))),
        bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        dtype=compute.dtype,
        vocabulary=merged.get_input_embeddings().num_embeddings,
        fidelity_items=len(rows),
        max_difference=max(differences),
        mean_difference=sum(differences) / len(differences),
        tolerance=TOLERANCE[compute.dtype] if tolerance is None else tolerance,
    )
    require_fidelity(summary)
    return summary


def require_fidelity(summary: MergeSummary) -> None:
    """Refuse a merged model that is not its adapter.

    Raises:
        StageError: the largest difference is above the tolerance.
    """
    if summary.max_difference > summary.tolerance:
        raise StageError(
            f"merge: adapter and merged model differ by {summary.max_difference:.4f} nats a token "
            f"on {summary.fidelity_items} rows, more than {summary.tolerance} for {summary.dtype}; "
            "set model.dtype=float32, or train.fidelity_tolerance if that is good enough"
        )
