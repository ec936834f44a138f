"""What a number rests on: its interval, its metric's range, and what so few documents can show."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

from ftsuite.analysis.compare import (
    corpus_value,
    find_metric,
    metric_reasons,
    paired,
    value_interval,
)
from ftsuite.analysis.statistics import PairedDifference, holm
from ftsuite.records import RANGES

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from ftsuite.records import Comparison, MetricScores, RunRecord

Key = TypeVar("Key", bound="Hashable")

Point = tuple[float, float, float]
"""Value and the ends of its 95 % interval."""

PERMUTATIONS = ("exact McNemar", "exact sign-flip", "sign-flip", "exact swap", "swap")
"""Starts of `Comparison.method` whose p-values count the ways to swap the two models."""


def range_of(metric: str) -> tuple[float, float]:
    """Least and greatest possible value of a metric; infinite where it is not known.

    Args:
        metric: Name of the metric, with or without its task and its filter.
    """
    name = metric.rpartition("/")[2].partition("@")[0]
    return RANGES.get(name, (-math.inf, math.inf))


def widest(metric: str) -> float:
    """Greatest possible difference between two scores of a metric."""
    low, high = range_of(metric)
    return high - low


def inside(metric: str, low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """Cut the interval of a difference to what the metric can differ by."""
    most = widest(metric)
    return (None if low is None else max(-most, low)), (None if high is None else min(most, high))


def different(metrics: Iterable[MetricScores | None]) -> list[MetricScores]:
    """The scores without repetition: a sweep over one base has its scores in every cell."""
    found: list[MetricScores] = []
    for metric in metrics:
        if metric is not None and metric not in found:
            found.append(metric)
    return found


def point_of(metric: MetricScores | None) -> Point | None:
    """Value and 95 % interval of one model, inside the metric's range.

    A single value is its own interval: there is no spread to make one from.
    """
    if metric is None or not metric.doc_ids:
        return None
    if len(metric.doc_ids) == 1:
        return (corpus_value(metric),) * 3
    value, low, high = value_interval(metric)
    least, most = range_of(metric.metric)
    return value, max(least, low), min(most, high)


def between(one: RunRecord, two: RunRecord, name: str) -> PairedDifference | None:
    """Set two tuned models against each other on a metric; None if that cannot be done."""
    first, second = find_metric(one.tuned, name), find_metric(two.tuned, name)
    if first is None or second is None or metric_reasons(first, second) or len(first.doc_ids) < 2:
        return None
    return paired(first, second)


def possible(metric: str, detectable: float | None) -> float | None:
    """Return a detectable difference; None if the metric cannot differ by so much."""
    if detectable is None or detectable > widest(metric):
        return None
    return detectable


def smallest_p(items: int) -> float:
    """Smallest p-value that so many paired items can give, before any correction.

    All of them have to change in the same direction: 2 / 2**n, for McNemar's test and for sign
    flips alike.
    """
    return min(1.0, 2.0 ** (1 - items))


def smallest_adjusted(floors: Mapping[Key, float]) -> dict[Key, float]:
    """Smallest p-value that each comparison can have after Holm's correction over all of them.

    An adjusted p-value never falls when another p-value rises, so this is each one's floor.

    Args:
        floors: Comparison → its smallest p-value before the correction.
    """
    return dict(zip(floors, holm(list(floors.values())), strict=True)) if floors else {}


def floor_of(comparison: Comparison) -> float:
    """Smallest p-value that a comparison could have had; 0 where its test has no known one."""
    known = comparison.method.startswith(PERMUTATIONS)
    return smallest_p(comparison.n) if known else 0.0


def cannot_rank(cells: int, documents: int, alpha: float) -> bool:
    """Say whether so few documents can tell none of the cells from the best."""
    return cells > 1 and min(1.0, (cells - 1) * smallest_p(documents)) >= alpha
