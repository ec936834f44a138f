"""lm-eval's metrics: which can be scored, checked at load, and what a record keeps of them.

lm-eval gives one item a document and metric (a number, a pair, texts) and a function that makes one
value of the items. Records keep numbers from which any resample of the documents can be scored.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ftsuite import resampling
from ftsuite.aggregation import AGGREGATIONS, BLEU_ORDERS, tables
from ftsuite.compare import corpus_value
from ftsuite.errors import ConfigError, StageError
from ftsuite.records import MetricScores
from ftsuite.tasks import documents_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ftsuite.tasks import LoadedTask

REPLICATES = 1_000
"""Resamples on which a task's own function is called while its items are at hand."""
PER_OUTPUT = {
    "loglikelihood": ("acc", "perplexity"),
    "loglikelihood_rolling": ("bits_per_byte", "byte_perplexity", "word_perplexity"),
    "multiple_choice": (
        *("acc", "acc_norm", "acc_bytes", "acc_mutual_info"),
        *("exact_match", "f1", "mcc", "brier_score"),
    ),
}
"""What lm-eval computes for each output type; a task with its own process_results gives others."""
CHOICE_ACCURACIES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
SUMMED = ("mean", "brier_score")
"""Aggregations that are the mean of one number a document."""


def check(loaded: Sequence[LoadedTask]) -> None:
    """Refuse metrics that would give no value, a wrong one, or a failure after the forward passes.

    Raises:
        ConfigError: names the task, the metric and the remedy.
    """
    for item in loaded:
        names = list(item.task.aggregation())
        if not _computes_its_own(item.task):
            names = list(dict.fromkeys((*item.task._metric_fn_list, *names)))
        if not names:
            raise _refusal(item, "it has no metric; name one in its metric_list")
        for metric in names:
            if why := _why_not(item.task, metric):
                raise _refusal(item, f"metric {metric}: {why}")


def _computes_its_own(task: Any) -> bool:
    """Whether a task's own Python makes the documents' values, and not lm-eval."""
    from lm_eval.api.task import ConfigurableTask

    given = getattr(type(task), "process_results", None)
    return callable(task.config.process_results) or given is not ConfigurableTask.process_results


def _refusal(item: LoadedTask, why: str) -> ConfigError:
    member = item.task.config.task
    return ConfigError("evals.tasks", item.name, why if member == item.name else f"{member}: {why}")


def _why_not(task: Any, metric: str) -> str:
    """Say why a metric of a task cannot be scored; empty if it can."""
    own = _computes_its_own(task)
    kind, computed = task.OUTPUT_TYPE, PER_OUTPUT.get(task.OUTPUT_TYPE)
    if not own and computed is not None and metric not in computed:
        return f"lm-eval does not compute it for {kind}; choose of {', '.join(computed)}"
    if not own and computed is None and task._metric_fn_list.get(metric) is None:
        return "lm-eval does not know it; check its name"
    function = task.aggregation().get(metric)
    if function is None:
        return "it has no aggregation that lm-eval knows; write aggregation: mean, or another"
    name = aggregation_name(function)
    if name == "bypass":
        return "it scores nothing; choose a metric that does"
    better = task.higher_is_better().get(metric)
    if not isinstance(better, bool):
        return "whether higher is better is not said; write higher_is_better: true or false"
    natural = AGGREGATIONS[name].higher_is_better if name in AGGREGATIONS else None
    if name in ("bits_per_byte", "brier_score"):
        natural = False
    if natural is not None and better != natural:
        return f"by {name} {'higher' if natural else 'lower'} is better; mend higher_is_better"
    return "" if own else _why_no_classes(task, name)


def _why_no_classes(task: Any, name: str) -> str:
    """lm-eval's own functions fail on such classes only after everything was scored."""
    if name not in ("f1", "matthews_corrcoef", "brier_score"):
        return ""
    if task.OUTPUT_TYPE != "multiple_choice":
        if name == "matthews_corrcoef":
            return ""
        return f"aggregation {name} needs classes; use it in a multiple_choice task"
    numbers = {len(task.doc_to_choice(doc)) for doc in task.eval_docs}
    if name == "f1" and numbers != {2}:
        return f"lm-eval's f1 is for two choices, and documents have {_span(numbers)}; use mcc"
    if name == "brier_score" and len(numbers) > 1:
        return f"brier_score needs as many choices in every document, not {_span(numbers)}"
    return ""


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def aggregation_name(function: Callable[[Any], Any]) -> str:
    """lm-eval's name of an aggregation; `module.function` for one of a task's own."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    for name, known in AGGREGATION_REGISTRY.items():
        if known is function:
            return str(name)
    # A partial has no name of its own.
    inner = getattr(function, "func", function)
    return f"{inner.__module__}.{getattr(inner, '__name__', type(inner).__name__)}"


def collect(name: str, members: Sequence[Any], results: dict[str, Any]) -> list[MetricScores]:
    """The metrics of one task, or of a group whose documents are taken together.

    Args:
        name: the task's or group's name in the configuration.
        members: lm-eval's task objects.
        results: what `simple_evaluate` returned.

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
            one = _metric(name, metric, suffix, members, rows)
            _require_lm_evals_value(one, f"{metric},{filter_name}", rows, results["results"])
            found.append(one)
    return found


def _require_listed(task: Any, computed: Sequence[str]) -> None:
    """A metric that a task names must come; lm-eval leaves it out without a word."""
    missing = [metric for metric in task.aggregation() if metric not in computed]
    # A metric of Hugging Face's evaluate may give its values under names of their own.
    if missing and (_computes_its_own(task) or len(missing) == len(task.aggregation())):
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
) -> MetricScores:
    items = [[row[metric] for row in mine] for mine in rows.values()]
    function = members[0].aggregation()[metric]
    every = [row for mine in rows.values() for row in mine]
    return MetricScores(
        task=name,
        metric=metric + suffix,
        higher_is_better=bool(members[0].higher_is_better()[metric]),
        **_values(metric, function, items),
        doc_ids=tuple(row["doc_id"] for row in every),
        members={m: len(mine) for m, mine in rows.items()} if len(rows) > 1 else {},
        docs_sha256=documents_digest([row["doc_hash"] for row in every]),
        task_version=str(members[0].VERSION),
        chance=_chance(metric, members, rows),
        available=sum(len(task.eval_docs) for task in members),
    )


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
        if not all(isinstance(v, (bool, int, float)) or hasattr(v, "item") for v in values):
            raise StageError(f"eval: {metric} gives {flat[0]!r}, which has no mean; leave it out")
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
    _require_finite(metric, [value, *replicates])
    return {"values": (), "aggregation": name, "value": value, "replicates": replicates}


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
    return {
        column: tuple(float(v) for v in values)
        for column, values in zip(columns, by_column, strict=True)
    }


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
    """A task's own aggregation on all documents, and on resamples of them."""
    sizes = [len(member) for member in items]

    def weighted(picked: list[list[Any]]) -> float:
        values = [float(function(member)) for member in picked]
        return sum(size * v for size, v in zip(sizes, values, strict=True)) / sum(sizes)

    replicates = [
        weighted([[member[i] for i in places] for member, places in zip(items, drawn, strict=True)])
        for drawn in resampling.draws(sizes, REPLICATES)
    ]
    return weighted(items), tuple(replicates)


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
