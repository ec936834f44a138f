"""Tasks with a closed set of right answers: how often each was answered, and what instead of it."""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftsuite.docrecords import LONGEST_TEXT, ConfusionRow, LabelRow, label_row
from ftsuite.errors import shorten
from ftsuite.scoring import documents

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ftsuite.scoring.documents import Document, Pair

    Answered = tuple[str, str, str]
    """Of one document the label that is expected, answered by base, answered by tuned."""

OTHER_TEXT = "(another text)"
"""Stands for an answer outside of the closed set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The answers of one task by label; the fields are those of `DocumentTable`, not cut."""

    labels: tuple[LabelRow, ...] = ()
    confusions: tuple[ConfusionRow, ...] = ()
    another_base: int = 0
    another_tuned: int = 0
    unlabelled: int = 0
    contradicted: int = 0


def judge(pairs: Sequence[Pair], metric: str, *, is_right_or_wrong: bool) -> Judged:
    """Count the answers by label, or say why they are not counted.

    Args:
        pairs: all documents of one task.
        metric: by which documents are won or lost; empty without one.
        is_right_or_wrong: it is 1 where an answer is right and 0 where it is wrong. Then documents
            without a value are not counted, as the score does not count them either.
    """
    unlabelled = sum(_is_unlabelled(pair.base) for pair in pairs)
    labels = closed_set(pairs)
    if is_right_or_wrong:
        pairs = [p for p in pairs if metric in p.base.values and metric in p.tuned.values]
        contradicted = sum(
            is_contradicted(pair.base, metric) or is_contradicted(pair.tuned, metric)
            for pair in pairs
        )
        if contradicted:
            return Judged(unlabelled=unlabelled, contradicted=contradicted)
    if not labels:
        return Judged(unlabelled=unlabelled)
    answered = [
        (
            pair.base.expected[0],
            answered_label(pair.base, labels, metric, is_right_or_wrong=is_right_or_wrong),
            answered_label(pair.tuned, labels, metric, is_right_or_wrong=is_right_or_wrong),
        )
        for pair in pairs
    ]
    confusions = _confusions(answered)
    return Judged(
        labels=tuple(_labels(answered, labels)),
        confusions=tuple(confusions) if any(c.answered != OTHER_TEXT for c in confusions) else (),
        another_base=sum(base == OTHER_TEXT for _, base, _ in answered),
        another_tuned=sum(tuned == OTHER_TEXT for *_, tuned in answered),
    )


def closed_set(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """The answers that every document of a task has to be answered with; empty without such a set.

    Of choices those that all documents share, of generated answers the YAML's
    `metadata: {labels: […]}`; each document has one right answer, which is in the set.
    """
    first = pairs[0].base
    labels = tuple(choice.text for choice in first.choices) or first.labels
    for pair in pairs:
        own = tuple(choice.text for choice in pair.base.choices) or pair.base.labels
        if own != labels or not _has_one_right_answer(pair.base, labels):
            return ()
    return labels


def _has_one_right_answer(document: Document, labels: Sequence[str]) -> bool:
    return len(document.expected) == 1 and document.expected[0] in labels


def _is_unlabelled(document: Document) -> bool:
    """Whether the YAML lists labels, of which this document's right answer is none."""
    if document.choices or not document.labels:
        return False
    return not _has_one_right_answer(document, document.labels)


def is_contradicted(document: Document, metric: str) -> bool:
    """Whether the picked choice is right where a metric of 0 and 1 says wrong, or the reverse.

    So it is with metrics that take no highest score, such as exact_match of choices, with a task's
    own function, and in files of before, which lack the lengths that acc_norm divides by.
    """
    place = documents.picked(document, metric)
    if place is None:
        return False
    is_right = document.choices[place].text in document.expected
    return is_right != (document.values[metric] == 1)


def answered_label(
    document: Document, labels: Sequence[str], metric: str, *, is_right_or_wrong: bool
) -> str:
    """The label that a model answered, `OTHER_TEXT` where it is none.

    A generated answer that the metric takes for right is the expected label, whatever it looks
    like. Otherwise case does not count, nor do spaces and punctuation at the ends, each only where
    the labels stay distinct without: of C, C# and C++ none is another with a full stop.

    Args:
        document: with one expected answer, of `labels`.
        labels: the closed set.
        metric: picks the choice, or the filter of a generated answer; empty without one.
        is_right_or_wrong: the metric is 1 where the answer is right and 0 where it is wrong.
    """
    place = documents.picked(document, metric)
    if place is not None:
        return document.choices[place].text
    if is_right_or_wrong and document.values[metric] == 1:
        return document.expected[0]
    found = _label_of(documents.filtered_answer(document, metric), tuple(dict.fromkeys(labels)))
    return OTHER_TEXT if is_right_or_wrong and found == document.expected[0] else found


def _label_of(said: str, labels: Sequence[str]) -> str:
    """The label that a text is, by the strictest reading that finds one."""
    readings: tuple[Callable[[str], str], ...] = (str, str.strip, _folded, _bare)
    for read in readings:
        by_reading = {read(label): label for label in labels}
        distinct = len(by_reading) == len(labels) and (read is str or "" not in by_reading)
        if distinct and read(said) in by_reading:
            return by_reading[read(said)]
    return OTHER_TEXT


def _folded(text: str) -> str:
    return text.strip().casefold()


def _bare(text: str) -> str:
    return text.strip(string.whitespace + string.punctuation).casefold()


def _labels(answered: Sequence[Answered], labels: Sequence[str]) -> list[LabelRow]:
    by_label: dict[str, list[tuple[bool, bool]]] = {}
    for expected, base, tuned in answered:
        by_label.setdefault(expected, []).append((base == expected, tuned == expected))
    order = sorted(by_label, key=lambda label: (-len(by_label[label]), labels.index(label)))
    return [label_row(shorten(label, LONGEST_TEXT), by_label[label]) for label in order]


def _confusions(answered: Sequence[Answered]) -> list[ConfusionRow]:
    base = Counter((expected, said) for expected, said, _ in answered if said != expected)
    tuned = Counter((expected, said) for expected, _, said in answered if said != expected)
    order = sorted({*base, *tuned}, key=lambda key: (-max(base[key], tuned[key]), key))
    return [
        ConfusionRow(
            expected=shorten(key[0], LONGEST_TEXT),
            answered=shorten(key[1], LONGEST_TEXT),
            base=base[key],
            tuned=tuned[key],
        )
        for key in order
    ]
