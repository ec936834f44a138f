"""What a run record keeps of its documents: won and lost, by label, confused, by group.

Records stay small: of long tables the most frequent rows are kept and the others counted.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, TypeVar

from ftsuite.analysis import doclabels, jsonfields
from ftsuite.analysis.compare import find_metric
from ftsuite.docrecords import (
    LONGEST_TEXT,
    AnswerLengths,
    DocumentRow,
    DocumentTable,
    GroupRow,
    GroupTable,
)
from ftsuite.errors import shorten
from ftsuite.scoring import documents
from ftsuite.scoring.aggregation import AGGREGATIONS, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ftsuite.config import EvalsConfig
    from ftsuite.records import Comparison, MetricScores, Scores
    from ftsuite.scoring.documents import Document, Pair

T = TypeVar("T")

MOST_DOCUMENTS = 10
"""Won and lost documents of a task that a record lists, each."""
MOST_ROWS = 100
"""Labels or groups of a table."""
MOST_CONFUSIONS = 20


def document_tables(
    evals: EvalsConfig,
    comparisons: Sequence[Comparison],
    base: Sequence[Document],
    tuned: Sequence[Document],
) -> tuple[DocumentTable, ...]:
    """The headline's task, then every task whose answers are generated.

    Args:
        evals: the headline.
        comparisons: base against tuned; a task without one that was not refused has no table.
        base: all documents of the base.
        tuned: all documents of the tuned model.

    Raises:
        ComparisonError: they are not the same documents.
    """
    allowed = {c.task for c in comparisons if not c.refused}
    by_task: dict[str, list[Pair]] = {}
    before, after = ([d for d in side if d.task in allowed] for side in (base, tuned))
    for pair in documents.join(before, after):
        by_task.setdefault(pair.base.task, []).append(pair)
    headline = evals.headline.rpartition("/")[0]
    generated = [name for name, pairs in by_task.items() if _is_generated(pairs)]
    names = dict.fromkeys([headline, *generated])
    return tuple(
        _table(name, by_task[name], judge(name, evals.headline, comparisons, by_task[name]))
        for name in names
        if name in by_task
    )


def _is_generated(pairs: Sequence[Pair]) -> bool:
    return pairs[0].base.kind == documents.GENERATED


def judge(
    task: str, headline: str, comparisons: Sequence[Comparison], pairs: Sequence[Pair]
) -> Comparison | None:
    """The metric by which a document is won or lost: the headline, else the task's first.

    It needs a value for some document, and a difference that was not refused; None without one.
    """
    # A task's own code may leave a metric out for some documents, the first among them.
    has = {metric for pair in pairs for metric in pair.base.values if metric in pair.tuned.values}
    fit = [c for c in comparisons if c.task == task and not c.refused and c.metric in has]
    return next((c for c in fit if c.name == headline), fit[0] if fit else None)


def _table(task: str, pairs: Sequence[Pair], by: Comparison | None) -> DocumentTable:
    metric = by.metric if by else ""
    changes = [
        pair.change(metric, higher_is_better=by.higher_is_better) if by else None for pair in pairs
    ]
    # The hash breaks ties: a file that is sorted by label would else show one label alone.
    order = sorted(
        zip(pairs, changes, strict=True),
        key=lambda one: (-abs(one[1] or 0), one[0].base.sha256, one[0].base.member),
    )
    won = [pair for pair, change in order if change is not None and change > 0]
    lost = [pair for pair, change in order if change is not None and change < 0]
    same = sum(change == 0 for change in changes)
    examples = [pair for pair, _ in order] if _is_generated(pairs) and not (won or lost) else []
    rows = [
        tuple(_row(pair, metric) for pair in some[:MOST_DOCUMENTS])
        for some in (won, lost, examples)
    ]
    judged = doclabels.judge(pairs, metric, is_right_or_wrong=_is_right_or_wrong(pairs, by))
    labels, labels_left_out = _first(judged.labels, MOST_ROWS)
    confusions, confusions_left_out = _first(judged.confusions, MOST_CONFUSIONS)
    fields, fields_left_out = _first(
        jsonfields.rows(pairs, metric) if _is_generated(pairs) else (), MOST_ROWS
    )
    return DocumentTable(
        task=task,
        metric=metric,
        n=len(pairs),
        won=len(won),
        lost=len(lost),
        same=same,
        won_documents=rows[0],
        lost_documents=rows[1],
        examples=rows[2],
        labels=labels,
        labels_left_out=labels_left_out,
        confusions=confusions,
        confusions_left_out=confusions_left_out,
        another_base=judged.another_base,
        another_tuned=judged.another_tuned,
        unlabelled=judged.unlabelled,
        contradicted=judged.contradicted,
        fields=fields,
        fields_left_out=fields_left_out,
        lengths=_lengths(pairs) if _is_generated(pairs) else None,
    )


def _row(pair: Pair, metric: str) -> DocumentRow:
    base = pair.base
    return DocumentRow(
        member=base.member,
        number=base.number,
        group=shorten(base.group, LONGEST_TEXT),
        question=shorten(base.question, LONGEST_TEXT),
        expected=shorten(" / ".join(base.expected), LONGEST_TEXT),
        base=shorten(documents.answer(base, metric), LONGEST_TEXT),
        tuned=shorten(documents.answer(pair.tuned, metric), LONGEST_TEXT),
        base_value=base.values.get(metric),
        tuned_value=pair.tuned.values.get(metric),
    )


def _first(rows: Sequence[T], most: int) -> tuple[tuple[T, ...], int]:
    """The first so many rows, and how many there are beside them."""
    return tuple(rows[:most]), max(0, len(rows) - most)


def _is_right_or_wrong(pairs: Sequence[Pair], by: Comparison | None) -> bool:
    """Whether the metric is 1 where an answer is right and 0 where it is wrong."""
    if by is None:
        return False
    values = {one.values.get(by.metric) for pair in pairs for one in (pair.base, pair.tuned)}
    return by.higher_is_better and values <= {0.0, 1.0, None}


def _lengths(pairs: Sequence[Pair]) -> AnswerLengths:
    def median(texts: Iterable[Sequence[str]]) -> float:
        return float(statistics.median(len(some[0]) if some else 0 for some in texts))

    return AnswerLengths(
        expected=median(pair.base.expected for pair in pairs),
        base=median(pair.base.answers for pair in pairs),
        tuned=median(pair.tuned.answers for pair in pairs),
    )


# --- groups ---------------------------------------------------------------------------------


def group_tables(
    evals: EvalsConfig, comparisons: Sequence[Comparison], base: Scores, tuned: Scores
) -> tuple[GroupTable, ...]:
    """The headline, the ranking and the watched metrics, by the groups of their documents."""
    compared = {c.name for c in comparisons if not c.refused}
    made = []
    for name in dict.fromkeys([evals.headline, evals.rank_by, *evals.watch]):
        before, after = find_metric(base, name), find_metric(tuned, name)
        if before and after and before.groups and name in compared:
            made.append(_group_table(before, after))
    return tuple(table for table in made if table)


def _group_table(base: MetricScores, tuned: MetricScores) -> GroupTable | None:
    values = _values_of(base, tuned)
    if values is None or base.groups != tuned.groups:
        return None
    places: dict[str, list[int]] = {}
    for place, group in enumerate(base.groups):
        places.setdefault(group, []).append(place)
    order = sorted(places, key=lambda group: (-len(places[group]), group))
    rows, left_out = _first(order, MOST_ROWS)
    return GroupTable(
        task=base.task,
        metric=base.metric,
        higher_is_better=base.higher_is_better,
        rows=tuple(
            GroupRow(
                group=shorten(group, LONGEST_TEXT),
                n=len(places[group]),
                base=values[0](places[group]),
                tuned=values[1](places[group]),
            )
            for group in rows
        ),
        left_out=left_out,
    )


def _values_of(*sides: MetricScores) -> list[Callable[[list[int]], float]] | None:
    """For each model the metric's value of some of its documents, by their places.

    None where the value is a function of the task's own, of which no statistics are kept.
    """
    kind = sides[0].aggregation
    if kind == "mean":
        return [_mean_of(side) for side in sides]
    if kind not in AGGREGATIONS:
        return None
    value = AGGREGATIONS[kind].value
    matrices = tables(kind, *(side.statistics for side in sides))
    return [
        lambda some, m=matrix: float(value(m[some].sum(axis=0), len(some)))  # type: ignore[misc]
        for matrix in matrices
    ]


def _mean_of(metric: MetricScores) -> Callable[[list[int]], float]:
    def mean(places: list[int]) -> float:
        weights = [metric.weights[place] if metric.weights else 1.0 for place in places]
        weighed = (w * metric.values[place] for w, place in zip(weights, places, strict=True))
        return sum(weighed) / sum(weights)

    return mean
