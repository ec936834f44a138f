"""The loss stage: one model's mean loss over the validation split's trained tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ftsuite.data.prepare import load_split
from ftsuite.errors import StageError
from ftsuite.models import warm
from ftsuite.models.loglikelihood import log_likelihoods
from ftsuite.stagerecords import HeldOutLoss

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.events import Events
    from ftsuite.stages import HeldOutLossOf
    from ftsuite.store.stage import Folders


def held_out_loss(stage: HeldOutLossOf, folders: Folders, _: Path, events: Events) -> HeldOutLoss:
    """Score the first rows of the validation split, each one alone.

    The mean is over tokens, so that long answers count by their length, as in training.

    Raises:
        StageError: the loss is not a number.
    """
    split = load_split(folders[stage.data.key], "validation")
    rows = split[: stage.rows]
    losses: list[float] = []
    with (
        warm.model(stage.model, folders, stage.target) as (model, _tokenizer),
        events.progress("held-out loss", sum(len(row.input_ids) for row in rows), "tokens") as told,
    ):
        for start in range(0, len(rows), stage.batch_size):
            batch = rows[start : start + stage.batch_size]
            ids = [row.input_ids for row in batch]
            scored = log_likelihoods(model, ids, batch_size=stage.batch_size)
            for row, values in zip(batch, scored, strict=True):
                # The first token has no context to be predicted from.
                masked = zip(values, row.loss_mask[1:], strict=True)
                losses += [-value for value, mask in masked if mask]
            told(sum(map(len, ids)))
    loss = math.fsum(losses) / len(losses)
    if not math.isfinite(loss) and stage.model.merged is None:
        raise StageError(
            f"loss: the base model's held-out loss is {loss} before training; its weights hold "
            "NaN, or model.dtype is too narrow for them; set model.dtype=float32"
        )
    if not math.isfinite(loss):
        raise StageError(
            f"loss: the held-out loss is {loss}; set model.dtype=float32, or lower "
            "train.learning_rate"
        )
    return HeldOutLoss(loss=loss, tokens=len(losses), rows=len(rows), available=len(split))
