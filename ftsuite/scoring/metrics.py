"""lm-eval's metrics: what a record keeps of them, and that it gives the value lm-eval reports.

lm-eval gives one item a document and metric (a number, a pair, texts) and a function that makes one
value of the items. Records keep numbers from which any resample of the documents can be scored.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ftsuite.analysis import resampling
from ftsuite.analysis.compare import corpus_value
from ftsuite.errors import StageError
from ftsuite.records import MetricScores
from ftsuite.scoring.aggregation import AGGREGATIONS, BLEU_ORDERS, tables
from ftsuite.scoring.metric_checks import aggregation_name, computes_its_own
from ftsuite.scoring.tasks import documents_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ftsuite.scoring.samples import Kept

REPLICATES = 1_000
"""Resamples on which a task's own function is called while its items are at hand."""
REPLICATES_SECONDS = 900
"""Longest time that they may take."""
CHOICE_ACCURACIES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
SUMMED = ("mean", "brier_score")
"""Aggregations that are the mean of one number a document."""


def collect(
    name: str, members: Sequence[Any], results: dict[str, Any], kept: Kept, *, split: str
) -> list[MetricScores]:
    """The metrics of one task, or of a group whose documents are taken together.

    Args:
        name: the task's or group's name in the configuration.
        members: lm-eval's task objects.
        results: what `simple_evaluate` returned.
        kept: the task's documents, which know their groups and the tokens of their answers.
        split: what the documents are for, 'validation' or 'test'.

    Raises:
        StageError: a value is not a number or differs from lm-eval's own, or a metric is missing.
    """
    logs = {
        task.config.task: sorted(results["samples"][task.config.task], key=lambda r: r["doc_id"])
        for task in members
    }
    every = [row for log in logs.values() for row in log]
    filters = list(dict.fromkeys(row["filter"] for row in every))
    computed = list(dict.fromkeys(metric for row in every for metric in row["metrics"]))
    _require_listed(members[0], computed)
    found = []
    for filter_name in filters:
        for metric in (m for m in computed if m in members[0].aggregation()):
            # A task's own code may leave a metric out for some documents, as lm-eval then does.
            rows = {
                member: [r for r in log if r["filter"] == filter_name and metric in r["metrics"]]
                for member, log in logs.items()
            }
            suffix = "" if len(filters) == 1 else f"@{filter_name}"
            one = _metric(name, metric, suffix, members, rows, split)
            one = dataclasses.replace(one, **_of_documents(members[0], metric, rows, kept))
            _require_lm_evals_value(one, f"{metric},{filter_name}", rows, results["results"])
            found.append(one)
    return found


def _require_listed(task: Any, computed: Sequence[str]) -> None:
    """A metric that a task names must come; lm-eval leaves it out without a word."""
    missing = [metric for metric in task.aggregation() if metric not in computed]
    # A metric of Hugging Face's evaluate may give its values under names of their own.
    if missing and (computes_its_own(task) or len(missing) == len(task.aggregation())):
        raise StageError(
            f"eval: {task.config.task}: its process_results gives no {', '.join(missing)}, only "
            f"{', '.join(computed) or 'nothing'}; mend its metric_list"
        )


def _metric(
    name: str,
    metric: str,
    suffix: str,
    members: Sequence[Any],
    rows: dict[str, list[Any]],
    split: str,
) -> MetricScores:
    items = [[row[metric] for row in mine] for mine in rows.values()]
    function = members[0].aggregation()[metric]
    every = [row for mine in rows.values() for row in mine]
    return MetricScores(
        task=name,
        metric=metric + suffix,
        higher_is_better=bool(members[0].higher_is_better()[metric]),
        split=split,
        **_values(metric, function, items),
        doc_ids=tuple(row["doc_id"] for row in every),
        members={m: len(mine) for m, mine in rows.items()} if len(rows) > 1 else {},
        docs_sha256=documents_digest([row["doc_hash"] for row in every]),
        task_version=str(members[0].VERSION),
        chance=_chance(metric, members, rows),
        available=sum(len(task.eval_docs) for task in members),
    )


def _of_documents(task: Any, metric: str, rows: dict[str, list[Any]], kept: Kept) -> dict[str, Any]:
    """The fields of a record that the documents themselves tell: groups, tokens of the answers."""
    found = [kept[member, row["doc_id"]] for member, mine in rows.items() for row in mine]
    groups = tuple(document.group for document in found)
    of_answers = task.OUTPUT_TYPE == "loglikelihood" and metric == "bits_per_byte"
    return {
        "groups": groups if any(groups) else (),
        "answer_tokens": sum(document.tokens or 0 for document in found) if of_answers else 0,
    }


def _values(metric: str, function: Callable[[Any], Any], items: list[list[Any]]) -> dict[str, Any]:
    """The fields of a record that a metric's value is computed from, and the value."""
    name = aggregation_name(function)
    flat = [item for member in items for item in member]
    if name == "bits_per_byte":
        # The weighted mean of the documents' values is the corpus' value.
        values = [-ll / math.log(2) / size for ll, size in flat]
        weights = _byte_weights(items)
        return _mean(metric, values, weights)
    if name in SUMMED:
        values = [_brier(*item) for item in flat] if name == "brier_score" else flat
        if others := [value for value in values if not _is_number(value)]:
            # The type alone: a value may be a row's text.
            kind = type(others[0]).__name__
            raise StageError(
                f"eval: {metric} gives values of type {kind}, which have no mean; leave it out"
            )
        return _mean(metric, [float(value) for value in values], None)
    if name in AGGREGATIONS:
        columns = _statistics(name, flat)
        _require_finite(metric, [value for column in columns.values() for value in column])
        (table,) = tables(name, columns)
        sizes = tuple(len(member) for member in items)
        value = resampling.Corpus(value=AGGREGATIONS[name].value, members=sizes).of(table)
        _require_finite(metric, [value])
        return {"values": (), "aggregation": name, "value": value, "statistics": columns}
    value, replicates = _own_function(function, items)
    _require_finite(metric, [value])
    return {"values": (), "aggregation": name, "value": value, "replicates": replicates}


def _is_number(value: Any) -> bool:
    return not isinstance(value, str) and (
        isinstance(value, (bool, int, float)) or hasattr(value, "item")
    )


def _mean(metric: str, values: list[float], weights: list[float] | None) -> dict[str, Any]:
    _require_finite(metric, values)
    total = math.fsum(weights) if weights else len(values)
    value = math.fsum(v * w for v, w in zip(values, weights or [1.0] * len(values), strict=True))
    return {
        "values": tuple(values),
        "weights": tuple(weights) if weights else None,
        "value": value / total,
    }


def _byte_weights(items: list[list[Any]]) -> list[float]:
    """Bytes of each document; a group's members are scaled to weigh as their documents' number."""
    sizes = [[float(size) for _, size in member] for member in items]
    if len(sizes) == 1:
        return sizes[0]
    documents, total = sum(map(len, sizes)), sum(map(sum, sizes))
    scales = [len(member) / documents * total / sum(member) for member in sizes]
    return [scale * size for scale, member in zip(scales, sizes, strict=True) for size in member]


def _brier(gold: int, probabilities: Any) -> float:
    """Brier 1950 (Monthly Weather Review 78): squared distance from the right answer's corner."""
    return float(np.sum((np.asarray(probabilities) - np.eye(len(probabilities))[gold]) ** 2))


def _statistics(name: str, items: list[Any]) -> dict[str, tuple[float, ...]]:
    """One row of numbers a document, by the columns of its aggregation."""
    rows: list[Sequence[float]]
    match name:
        case "perplexity":
            rows = [(item,) for item in items]
        case "nanmean":
            rows = [(0.0, 0.0) if math.isnan(item) else (item, 1.0) for item in items]
        case "f1":
            rows = [
                (
                    gold == predicted == 1,
                    gold != 1 and predicted == 1,
                    gold == 1 and predicted != 1,
                )
                for gold, predicted in items
            ]
        case "bleu" | "chrf" | "chrf++" | "ter":
            rows = _of_texts(name, items)
        case _:
            rows = items
    columns = AGGREGATIONS[name].columns
    by_column = zip(*rows, strict=True)
    try:
        return {
            column: tuple(float(v) for v in values)
            for column, values in zip(columns, by_column, strict=True)
        }
    except (TypeError, ValueError):
        raise StageError(
            f"eval: the aggregation {name} gets values of type {_kinds(items)}; let "
            "process_results give numbers"
        ) from None  # the cause's message holds the value, which may be a row's text


def _kinds(items: Sequence[Any]) -> str:
    """Names of the types of the values, or of those in their tuples."""
    parts = [part for item in items for part in (item if isinstance(item, tuple) else (item,))]
    return ", ".join(dict.fromkeys(type(part).__name__ for part in parts))


def _of_texts(name: str, items: list[Any]) -> list[Sequence[float]]:
    """Counts by sacrebleu for each document, with the settings that lm-eval gives it."""
    from lm_eval.api.metrics import _sacreformat
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    references, answers = zip(*items, strict=True)
    references, answers = _sacreformat(references, answers)
    scorer: Any
    match name:
        case "bleu":
            scorer = BLEU(max_ngram_order=BLEU_ORDERS)
        case "ter":
            scorer = TER()
        case _:
            scorer = CHRF(word_order=2 if name == "chrf++" else 0)
    counts: list[Sequence[float]] = scorer._extract_corpus_statistics(answers, references)
    return counts


def _own_function(
    function: Callable[[Any], Any], items: list[list[Any]]
) -> tuple[float, tuple[float, ...]]:
    """A task's own aggregation on all documents, and on resamples of them.

    No resamples where they would take too long (a function that runs a model of its own), or where
    one has no value (no document of a class): then a comparison is refused.
    """
    sizes = [len(member) for member in items]

    def weighted(picked: list[list[Any]]) -> float:
        values = [float(function(member)) for member in picked]
        return sum(size * v for size, v in zip(sizes, values, strict=True)) / sum(sizes)

    start = time.perf_counter()
    value = weighted(items)
    if (time.perf_counter() - start) * REPLICATES > REPLICATES_SECONDS:
        return value, ()
    replicates = []
    for drawn in resampling.draws(sizes, REPLICATES):
        picked = [[m[i] for i in places] for m, places in zip(items, drawn, strict=True)]
        try:
            replicates.append(weighted(picked))
        except Exception:  # the function is the task's; what it raises on a resample is its own
            return value, ()
    return value, tuple(replicates) if all(map(math.isfinite, replicates)) else ()


def _require_finite(metric: str, values: Sequence[float]) -> None:
    if bad := sum(not math.isfinite(value) for value in values):
        raise StageError(
            f"eval: {metric} is not a number for {bad} documents; the model's weights hold NaN, or "
            "model.dtype is too narrow for them"
        )


def _require_lm_evals_value(
    metric: MetricScores, key: str, rows: dict[str, list[Any]], results: dict[str, Any]
) -> None:
    """The value over all documents must be the one that lm-eval itself reports."""
    sizes = {member: len(mine) for member, mine in rows.items()}
    theirs = sum(size * float(results[m][key]) for m, size in sizes.items()) / sum(sizes.values())
    ours = corpus_value(metric)
    if not math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9):
        raise StageError(
            f"eval: {metric.name} is {ours!r} but {theirs!r} by lm-eval; report this with the task"
        )


def _chance(metric: str, members: Sequence[Any], rows: dict[str, list[Any]]) -> float | None:
    """Accuracy of a uniformly random choice."""
    if members[0].OUTPUT_TYPE != "multiple_choice" or metric not in CHOICE_ACCURACIES:
        return None
    shares = []
    for task, mine in zip(members, rows.values(), strict=True):
        for row in mine:
            right = len(set(row["target"])) if isinstance(row["target"], list) else 1
            shares.append(right / len(task.doc_to_choice(row["doc"])))
    return math.fsum(shares) / len(shares)
