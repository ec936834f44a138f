"""The report's plots: score over the sweep, quality against cost, training curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftsuite.compare import find_metric
from ftsuite.ranking import cost
from ftsuite.reporting import formats as fmt
from ftsuite.reporting.svg import (
    ACCENT,
    BLUE,
    INK,
    MUTED,
    SERIES,
    Picture,
    panels,
    picture,
    spread,
    style,
)
from ftsuite.reporting.sweep import (
    Axis,
    log_base,
    numeric_axis,
    short_label,
    swept_keys,
    wants_log,
)
from ftsuite.statistics import mean_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.records import MetricScores, RunRecord
    from ftsuite.reporting.study import Study

MOST_LISTED = 25
"""Rows of a categorical plot."""
MOST_LABELS = 12
"""Cells that a scatter plot labels; of more only the recommended and the best."""
MOST_CURVES = 6
"""Training curves in colour; the rest is grey."""

Point = tuple[float, float, float]
"""Mean and the ends of its 95 % interval."""


def draw(study: Study) -> dict[str, Picture]:
    """Return the plots of a study by name; a study without complete cells has none."""
    if not study.cells:
        return {}
    with style():
        made = (_sweep(study), _cost(study), _training(study))
    return {one.name: one for one in made if one is not None}


def _point(metric: MetricScores | None) -> Point | None:
    if metric is None or not metric.values:
        return None
    if len(metric.values) == 1:
        return (metric.values[0],) * 3
    return mean_interval(metric.values, metric.weights)


def _tuned(cells: Sequence[RunRecord], name: str) -> dict[str, Point]:
    found = {cell.run_id: _point(find_metric(cell.tuned, name)) for cell in cells}
    return {run_id: point for run_id, point in found.items() if point}


def _base(cells: Sequence[RunRecord], name: str) -> list[Point]:
    """The base's score, once for each different base."""
    metrics = {metric.values: metric for cell in cells if (metric := find_metric(cell.base, name))}
    return [point for metric in metrics.values() if (point := _point(metric))]
