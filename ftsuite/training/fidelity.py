"""The check stage: is the merged model its adapter, by its weights and by what it answers?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ftsuite.data.prepare import load_split
from ftsuite.errors import StageError
from ftsuite.models import sources, warm
from ftsuite.models.loglikelihood import log_likelihoods, masked_mean
from ftsuite.records import MergeSummary
from ftsuite.stagerecords import MergeCheck
from ftsuite.training import mergecheck

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.config import MergeConfig
    from ftsuite.events import Events
    from ftsuite.stagerecords import MergedModel
    from ftsuite.stages import CheckMerge
    from ftsuite.store.stage import Folders

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
TRAINED_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.4, "float16": 0.1}
"""Largest |Δ mean log-likelihood| a token between adapter and merged model, nats: over a row's
tokens, and over its trained tokens alone, which may be two or three.

The weights are proved apart (mergecheck.py), so this is what rounding W + BA to the dtype costs.
Seen on SmolLM2-135M over 16 rows: float32 2e-6 and 2e-5; bfloat16 0.12 and 0.21 (H200, H100), 0.04
a row (CPU); float16 0.01 a row (CPU). A model loaded under a wrong configuration costs whole nats.
"""


def check_merge(stage: CheckMerge, folders: Folders, _: Path, events: Events) -> MergeCheck:
    """Prove the merged weights; then adapter and merged model score the same validation rows.

    Raises:
        StageError: the weights are not base + scale·B·A, or the adapter gives no numbers.
    """
    assert stage.adapter.base is not None and stage.adapter.adapter is not None
    merged = warm.locate(stage.merged, folders)
    sequences = load_split(folders[stage.data.key], "validation")[: stage.items]
    rows = [sequence.input_ids for sequence in sequences]
    tokens = sum(map(len, rows))
    with events.progress("check", 2 * tokens, "tokens") as advance:
        proof = mergecheck.prove(
            sources.locate(stage.adapter.base, folders),
            folders[stage.adapter.adapter.key] / "adapter",
            merged,
            stage.target.dtype,
            trust_remote_code=stage.adapter.settings.trust_remote_code,
        )
        with warm.model(stage.adapter, folders, stage.target) as (model, _tokenizer):
            before = log_likelihoods(model, rows, batch_size=stage.batch_size)
        _require_numbers(before)
        advance(tokens)
        with warm.model(stage.merged, folders, stage.target) as (model, _tokenizer):
            after = log_likelihoods(model, rows, batch_size=stage.batch_size)
            vocabulary = model.get_input_embeddings().num_embeddings
        advance(tokens)
    # Whole rows, and the trained tokens alone, where the adapter acts.
    differences = _differences(before, after, [[1] * len(ids) for ids in rows])
    trained = _differences(before, after, [sequence.loss_mask for sequence in sequences])
    return MergeCheck(
        vocabulary=vocabulary,
        proved_tensors=proof.tensors,
        adapted_tensors=proof.adapted,
        items=len(rows),
        max_difference=max(differences),
        mean_difference=sum(differences) / len(differences),
        max_trained_difference=max(trained),
    )


def _require_numbers(rows: list[list[float]]) -> None:
    if not all(math.isfinite(value) for row in rows for value in row):
        raise StageError(
            "check: the tuned model's log-probabilities are not numbers: training has ruined its "
            "weights; lower train.learning_rate, or set model.dtype=float32"
        )


def _differences(
    before: list[list[float]], after: list[list[float]], masks: list[list[int]]
) -> list[float]:
    return [
        abs(masked_mean(new, mask) - masked_mean(old, mask))
        for old, new, mask in zip(before, after, masks, strict=True)
    ]


def summary(merged: MergedModel, check: MergeCheck, config: MergeConfig) -> MergeSummary:
    """What a run's record says of a merge and its check, with the tolerances that judge it."""
    tolerance = config.fidelity_tolerance
    return MergeSummary(
        shards=merged.shards,
        bytes=merged.bytes,
        dtype=merged.dtype,
        method=merged.method,
        reason=merged.reason,
        vocabulary=check.vocabulary,
        proved_tensors=check.proved_tensors,
        adapted_tensors=check.adapted_tensors,
        fidelity_items=check.items,
        max_difference=check.max_difference,
        mean_difference=check.mean_difference,
        max_trained_difference=check.max_trained_difference,
        tolerance=TOLERANCE[merged.dtype] if tolerance is None else tolerance,
        trained_tolerance=TRAINED_TOLERANCE[merged.dtype] if tolerance is None else tolerance,
    )


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
                f"{summary.dtype}; set model.dtype=float32, or merge.fidelity_tolerance if that "
                "is good enough"
            )
