"""Records of single stages that a run's record holds only in part, or put together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutTasks:
    """The tasks that were built from the held-out rows."""

    name: str
    kind: str
    """labels, json, number or text; prose for rows of plain text."""
    labels: tuple[str, ...]
    tasks: tuple[str, ...]
    """Validation tasks first."""
    limits: dict[str, int]
    """Documents to score where the limit of every task would take too long."""
    rank_by: str
    headline: str
    rows: dict[str, int]
    """Rows of each split."""
    documents: dict[str, int]
    """Documents of each split."""
    data_notes: tuple[str, ...]
    """What the data stage says too: columns, rows that were kept on one side."""
    notes: tuple[str, ...]
    """What the answers are, and what was not built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutLoss:
    """Mean loss of one model over the validation split's trained tokens."""

    loss: float
    """Nats a token."""
    tokens: int
    """Trained tokens, over which the mean is taken."""
    rows: int
    available: int
    """Rows of the split; more than `rows` means a seeded subset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedModel:
    """Result of the merge stage."""

    shards: int
    bytes: int
    dtype: str
    method: str = ""
    """How it was merged: 'streamed' tensor by tensor, or by 'peft' with the whole model in
    memory."""
    reason: str = ""
    """Why it was not streamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeCheck:
    """Result of the check stage: the merged weights proved, and compared by what they answer.

    The differences are not judged here: their tolerance can change without a new computation.
    """

    vocabulary: int
    proved_tensors: int
    """Tensors found to be base + scale·B·A, byte by byte."""
    adapted_tensors: int
    """Of them, those that the adapter changes."""
    items: int
    """Rows that were compared."""
    max_difference: float
    """Largest |Δ log-likelihood| a token of a row between adapter and merged model, nats."""
    mean_difference: float
    max_trained_difference: float
    """The same over the trained tokens alone: what rounding costs where the adapter acts."""
