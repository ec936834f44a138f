"""What a run's record keeps of its documents (doctables.py makes it of the store's files)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_TEXT = 300
"""Characters of a question, answer, label or group in a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRow:
    """One document with the answers of base and tuned, its texts shortened."""

    member: str = ""
    """lm-eval's name of the task where the scored one is a group."""
    number: int
    group: str = ""
    question: str
    expected: str
    base: str
    tuned: str
    base_value: float | None = None
    """Of the table's metric; None where it has no value a document."""
    tuned_value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRow:
    """The documents whose right answer is one label of a closed set."""

    label: str
    n: int
    base_right: int
    tuned_right: int
    gained: int
    """Documents that tuned alone has right."""
    lost: int
    """Documents that base alone has right."""


def label_row(label: str, right: Sequence[tuple[bool, bool]]) -> LabelRow:
    """Count the documents of a label.

    Args:
        label: as it is shown.
        right: for each document, whether base and whether tuned is right.
    """
    return LabelRow(
        label=label,
        n=len(right),
        base_right=sum(base for base, _ in right),
        tuned_right=sum(tuned for _, tuned in right),
        gained=sum(tuned and not base for base, tuned in right),
        lost=sum(base and not tuned for base, tuned in right),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusionRow:
    """How often one label was expected and another answered."""

    expected: str
    answered: str
    base: int
    tuned: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLengths:
    """Median characters of the answers to the same questions."""

    expected: float
    base: float
    tuned: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentTable:
    """One task document by document: base against tuned.

    Of the documents that are listed, those with the largest change come first; of equal changes
    those with the smallest hash, so that no order of the file decides. The store keeps them all.
    """

    task: str
    metric: str = ""
    """By what a document is won or lost; empty where no metric has a value a document."""
    n: int
    won: int = 0
    """Documents on which tuned is better than base."""
    lost: int = 0
    same: int = 0
    won_documents: tuple[DocumentRow, ...] = ()
    lost_documents: tuple[DocumentRow, ...] = ()
    examples: tuple[DocumentRow, ...] = ()
    """Generated answers where no document was won or lost."""
    labels: tuple[LabelRow, ...] = ()
    """By label, the most frequent first, where the right answers are of a closed set."""
    labels_left_out: int = 0
    confusions: tuple[ConfusionRow, ...] = ()
    """The most frequent first; none where every wrong answer is outside of the closed set."""
    confusions_left_out: int = 0
    another_base: int = 0
    """Wrong answers of base that are none of the closed set."""
    another_tuned: int = 0
    unlabelled: int = 0
    """Documents that do not have one right answer of their `metadata.labels`: then the task has no
    closed set, and neither labels nor confusions."""
    contradicted: int = 0
    """Documents of which the choice that a model picked is right where the metric says wrong, or
    the other way round: then neither labels nor confusions are kept."""
    fields: tuple[LabelRow, ...] = ()
    """By field, where the right answers are JSON objects: `label` is the field's name."""
    fields_left_out: int = 0
    lengths: AnswerLengths | None = None
    """Of generated answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """One group of a task's documents."""

    group: str
    n: int
    base: float
    tuned: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTable:
    """One metric by the groups of its documents, those with the most documents first."""

    task: str
    metric: str
    higher_is_better: bool
    rows: tuple[GroupRow, ...]
    left_out: int = 0

    @property
    def name(self) -> str:
        """`task/metric`, as used in the configuration."""
        return f"{self.task}/{self.metric}"
