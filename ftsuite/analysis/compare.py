"""Base against tuned: what may be compared, the paired deltas, and the gates on them.

A delta is given only where nothing but the weights differs; otherwise it is refused and the
reason is recorded in its place.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from ftsuite.analysis import resampling, statistics
from ftsuite.errors import ComparisonError
from ftsuite.records import Comparison, GateResult
from ftsuite.scoring.aggregation import AGGREGATIONS, tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.config import GatesConfig
    from ftsuite.records import Conditions, MetricScores, RunRecord, Scores

CONDITIONS = {
    "template_sha256": "chat template",
    "template_switches": "template switches",
    "system_place": "place of the system message",
    "stop": "stop strings",
    "system_prompt": "system prompt",
    "bos": "BOS",
    "num_fewshot": "few-shot examples",
    "dtype": "dtype",
    "batch_size": "batch size",
    "harness": "lm-eval version",
    "engine": "engine",
    "device": "device",
    "device_name": "device's name",
    "seeds": "seeds",
    "attention": "attention kernel",
    "generation": "generation settings",
}
"""Field of `Conditions` → its name in words."""


def incomparable(base: Conditions, tuned: Conditions) -> list[str]:
    """Return the conditions that differ, in words with both values; empty if none does."""
    reasons = []
    for name, words in CONDITIONS.items():
        before, after = getattr(base, name), getattr(tuned, name)
        if before != after:
            reasons.append(f"{words} differs: base {show(before)}, tuned {show(after)}")
    return reasons


def compare_scores(base: Scores, tuned: Scores) -> tuple[Comparison, ...]:
    """Pair base and tuned on every metric of either; refuse what is not comparable."""
    reasons = incomparable(base.conditions, tuned.conditions)
    before = {metric.name: metric for metric in base.metrics}
    after = {metric.name: metric for metric in tuned.metrics}
    return tuple(
        _compare_metric(before.get(name), after.get(name), reasons) for name in {**before, **after}
    )


def require_comparable(base: Scores, tuned: Scores, name: str) -> Comparison:
    """Return the comparison of the metric `name` (`task/metric`).

    Raises:
        ComparisonError: The delta is refused; says why.
    """
    for comparison in compare_scores(base, tuned):
        if comparison.name == name:
            if comparison.refused:
                raise ComparisonError(f"{name}: no delta, as the {comparison.refused}")
            return comparison
    raise ComparisonError(f"{name}: scored on neither base nor tuned; add its task to evals.tasks")


def worsening(comparison: Comparison) -> float | None:
    """Return how much worse tuned is than base, in the metric's unit; None if refused."""
    if comparison.difference is None:
        return None
    # 0.0 - x and not -x, which would make -0.0 of 0.0.
    return 0.0 - comparison.difference if comparison.higher_is_better else comparison.difference


def apply_gates(comparisons: Sequence[Comparison], gates: GatesConfig) -> tuple[GateResult, ...]:
    """Check every gate of the configuration; a metric without a delta fails its gate."""
    found = {comparison.name: comparison for comparison in comparisons}
    return tuple(
        _gate(name, limit, found.get(name)) for name, limit in sorted(gates.max_worse.items())
    )


def verdict(comparison: Comparison, adjusted_p: float, alpha: float) -> statistics.Verdict:
    """Put a comparison that was not refused into a word; see `statistics.verdict`."""
    if adjusted_p >= alpha or not comparison.difference:
        return statistics.Verdict.NOISE
    better = (comparison.difference > 0) == comparison.higher_is_better
    return statistics.Verdict.BETTER if better else statistics.Verdict.WORSE


def corpus_value(metric: MetricScores) -> float:
    """Return the value of a metric over all its documents, as lm-eval aggregates it."""
    if metric.value is not None:
        return metric.value
    weights = metric.weights or (1.0,) * len(metric.values)
    total = math.fsum(w * value for w, value in zip(weights, metric.values, strict=True))
    return total / math.fsum(weights)


def value_interval(metric: MetricScores) -> tuple[float, float, float]:
    """Give ``(value, low, high)``: the value of one model and its 95 % interval.

    Raises:
        ValueError: Too few documents.
    """
    if metric.aggregation == "mean":
        return statistics.mean_interval(metric.values, metric.weights)
    if metric.aggregation in AGGREGATIONS:
        (table,) = tables(metric.aggregation, metric.statistics)
        return resampling.aggregate_interval(table, _corpus(metric))
    return resampling.replicate_interval(
        corpus_value(metric), metric.replicates, len(metric.doc_ids)
    )


def paired(base: MetricScores, tuned: MetricScores) -> statistics.PairedDifference:
    """Compare two models on one metric; `metric_reasons` says whether that is possible.

    Raises:
        ValueError: Too few documents, or a value that is not a number.
    """
    if base.aggregation == "mean":
        return statistics.paired_difference(base.values, tuned.values, base.weights)
    if base.aggregation in AGGREGATIONS:
        before, after = tables(base.aggregation, base.statistics, tuned.statistics)
        return resampling.paired_aggregates(before, after, _corpus(base))
    return resampling.paired_replicates(
        (corpus_value(base), base.replicates),
        (corpus_value(tuned), tuned.replicates),
        len(base.doc_ids),
    )


def _corpus(metric: MetricScores) -> resampling.Corpus:
    kind = AGGREGATIONS[metric.aggregation]
    members = tuple(metric.members.values()) or (len(metric.doc_ids),)
    return resampling.Corpus(value=kind.value, members=members, span=kind.span)


def find_metric(scores: Scores | None, name: str) -> MetricScores | None:
    """Return the metric `task/metric` of `scores`, None if it was not scored."""
    metrics = scores.metrics if scores else ()
    return next((metric for metric in metrics if metric.name == name), None)


def find_comparison(record: RunRecord, name: str) -> Comparison | None:
    """Return the comparison of the metric `task/metric`, None if there is none."""
    return next((found for found in record.comparisons if found.name == name), None)


def show(value: object) -> str:
    """Return `value` as it stands in a reason: short enough for a line."""
    text = repr(value)
    # Of a hash the start is enough to tell two apart.
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,}", value):
        return f"{value[:12]}…"
    return text if len(text) <= 60 else f"{text[:57]}…'"


def _compare_metric(
    base: MetricScores | None, tuned: MetricScores | None, reasons: list[str]
) -> Comparison:
    known = base or tuned
    assert known is not None  # the name came from one of the two
    reasons = reasons + metric_reasons(base, tuned)
    if base and tuned and not reasons:
        try:
            found = paired(base, tuned)
        except ValueError as error:
            reasons = [f"scores cannot be paired: {error}"]
        else:
            return Comparison(
                task=known.task,
                metric=known.metric,
                higher_is_better=known.higher_is_better,
                n=found.n,
                base=found.base,
                tuned=found.tuned,
                difference=found.difference,
                low=found.low,
                high=found.high,
                p_value=found.p_value,
                minimum_detectable=found.minimum_detectable,
                method=found.method,
            )
    return Comparison(
        task=known.task,
        metric=known.metric,
        higher_is_better=known.higher_is_better,
        n=min(len(side.doc_ids) for side in (base, tuned) if side),
        refused="; ".join(reasons),
    )


def metric_reasons(base: MetricScores | None, tuned: MetricScores | None) -> list[str]:
    """Return why two scores of one metric cannot be paired, in words; empty if they can."""
    if base is None or tuned is None:
        return [f"metric was scored on {'tuned' if base is None else 'base'} only"]
    reasons = []
    for name, words in (
        ("task_version", "task version"),
        ("docs_sha256", "documents' hash"),
        ("higher_is_better", "direction of better"),
        ("aggregation", "aggregation"),
        ("members", "documents of the group's members"),
    ):
        before, after = getattr(base, name), getattr(tuned, name)
        if before != after:
            reasons.append(f"{words} differs: base {show(before)}, tuned {show(after)}")
    # Long lists: the reader needs the fact and the sizes, not the ids.
    if base.doc_ids != tuned.doc_ids:
        reasons.append(
            f"documents differ: base {len(base.doc_ids)}, tuned {len(tuned.doc_ids)}, "
            f"{len(_documents(base) & _documents(tuned))} in common"
        )
    if base.weights != tuned.weights:
        reasons.append("weights of the documents differ")
    return reasons


def _documents(metric: MetricScores) -> set[tuple[str, int]]:
    """Documents by member and number."""
    members = [name for name, count in metric.members.items() for _ in range(count)]
    return set(zip(members or [""] * len(metric.doc_ids), metric.doc_ids, strict=True))


def _gate(name: str, limit: float, comparison: Comparison | None) -> GateResult:
    worse = worsening(comparison) if comparison else None
    if worse is None:
        why = comparison.refused if comparison else "the metric was not scored"
        # Not NaN, which JSON cannot hold: the reason says that nothing was observed.
        return GateResult(
            metric=name, limit=limit, observed=0.0, passed=False, reason=f"no delta: {why}"
        )
    # 0.30 - 0.28 is a little more than 0.02 in floating point.
    passed = worse <= limit + 1e-9
    change = f"{'worse' if worse > 0 else 'better'} by {abs(worse):.4g}"
    return GateResult(
        metric=name,
        limit=limit,
        observed=worse,
        passed=passed,
        reason=f"{change if worse else 'unchanged'}; at most {limit:.4g} worse is allowed",
    )
