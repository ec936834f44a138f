"""How many optimiser steps a training makes, and a word where they are few."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftsuite.config import TrainConfig
    from ftsuite.records import DataSummary

FEW_STEPS = 50
"""Fewer hardly move a model at a usual learning rate: a warm-up alone takes some of them."""


def optimiser_steps(train: TrainConfig, sequences: int) -> int:
    """Steps over so many training sequences, as the trainer counts them."""
    if train.max_steps is not None:
        return train.max_steps
    batches = math.ceil(sequences / train.micro_batch_size)
    return math.ceil(train.epochs * math.ceil(batches / train.gradient_accumulation))


def notes(train: TrainConfig, data: DataSummary) -> list[str]:
    """Say so where packing, or the rows' number, leaves few optimiser steps."""
    split = next(split for split in data.splits if split.name == "train")
    steps = optimiser_steps(train, split.sequences)
    if train.max_steps is not None or steps >= FEW_STEPS:
        return []
    rows = split.rows * train.epochs / steps
    is_packed = split.sequences < split.rows
    ways = ["packing=off", "a smaller data.max_length"] if is_packed else []
    ways += ["more train.epochs", "a smaller train.micro_batch_size"]
    return [
        f"training makes {steps} optimiser steps, each of about {rows:,.0f} rows, from which a "
        f"model may learn little; more are made by {', '.join(ways[:-1])} or {ways[-1]}"
    ]
