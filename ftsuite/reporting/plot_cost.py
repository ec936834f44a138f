"""Plot: quality against cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftsuite.analysis.ranking import cost
from ftsuite.reporting import formats as fmt
from ftsuite.reporting.marks import (
    MOST_LABELS,
    axis_label,
    base_line,
    base_points,
    label_points,
    title_of,
    tuned_points,
)
from ftsuite.reporting.svg import ACCENT, BLUE, INK, Picture, panels, picture
from ftsuite.reporting.sweep import wants_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.records import RunRecord
    from ftsuite.reporting.evidence import Point
    from ftsuite.reporting.study import Study

MOST_POINT_LABELS = 8
"""Cells with a label and an interval; of more only the recommended and the best have them."""


def draw(study: Study) -> Picture | None:
    """The ranking metric over trained parameters and over seconds; None with nothing to tell."""
    name = study.rank_by or study.headline
    points = tuned_points(study.cells, name)
    cells = [cell for cell in study.cells if cell.run_id in points and cell.train]
    if len(cells) < 2:
        return None
    costs = {cell.run_id: cost(cell) for cell in cells}
    views = [("trained parameters", 0), ("training, merge and evaluation, seconds", 1)]
    views = [(label, at) for label, at in views if len({c[at] for c in costs.values()}) > 1]
    if not views:
        return None
    figure, axes = panels(len(views))
    labels = []
    for panel, (label, at) in zip(axes, views, strict=True):
        x = {run_id: float(pair[at]) for run_id, pair in costs.items()}
        labels.append(_cost_panel(panel, study, cells, x, points))
        panel.set_xlabel(label)
        if at == 0:
            panel.xaxis.set_major_formatter(lambda value, _: fmt.count(value))
    axes[0].set_ylabel(axis_label(name, cells))
    axes[0].set_title(title_of(name))
    figure.draw_without_rendering()
    # The labels go where the layout left room; a new layout would move the points under them.
    figure.set_layout_engine("none")
    for panel, wanted in zip(axes, labels, strict=True):
        label_points(panel, wanted)
    return picture(
        figure,
        "cost",
        alt=f"{title_of(name)} against cost. {_listed(study, cells, costs, points)}.",
        caption=_caption(study, many=len(cells) > MOST_POINT_LABELS),
    )


def _cost_panel(
    panel: Any,
    study: Study,
    cells: Sequence[RunRecord],
    x: dict[str, float],
    points: dict[str, Point],
) -> list[tuple[float, float, str, str]]:
    """Draw one panel; returns the labels to place once the layout is known."""
    pick, order = study.pick, study.ranking
    many = len(cells) > MOST_POINT_LABELS
    _scale(panel, sorted(set(x.values())))
    rest = [cell.run_id for cell in cells if cell is not pick]
    if not many:
        panel.vlines(
            [x[one] for one in rest],
            [points[one][1] for one in rest],
            [points[one][2] for one in rest],
            color=BLUE,
            lw=1.4,
            alpha=0.45,
        )
    panel.plot(
        [x[one] for one in rest],
        [points[one][0] for one in rest],
        "o",
        color=BLUE,
        ms=4 if many else 6,
        alpha=0.7 if many else 1.0,
    )
    if pick and pick.run_id in points:
        mean, low, high = points[pick.run_id]
        panel.vlines(x[pick.run_id], low, high, color=ACCENT, lw=1.6, alpha=0.6)
        panel.plot([x[pick.run_id]], [mean], "o", color=ACCENT, ms=8)
    panel.margins(x=0.16, y=0.1)
    base_line(panel, base_points(cells, study.rank_by or study.headline))
    best = order.best if order else None
    return [
        (
            x[cell.run_id],
            points[cell.run_id][0],
            study.labels[cell.run_id],
            ACCENT if cell is pick else INK,
        )
        for cell in sorted(cells, key=lambda one: (one is not pick, one.run_id != best))
        if not many or cell is pick or cell.run_id == best
    ]


def _caption(study: Study, *, many: bool) -> str:
    lower = study.ranking is not None and not study.ranking.higher_is_better
    pick = "Orange: the recommended cell. " if study.pick else ""
    bars = "" if many else "bars are 95 % intervals, "
    return (
        f"<sub>{pick}Cells further {'down' if lower else 'up'} score better, further left cost "
        f"less; {bars}dashed is the base. What the sweep shares (base scores, data) is not "
        "counted.</sub>"
    )


def _listed(
    study: Study,
    cells: Sequence[RunRecord],
    costs: dict[str, tuple[int, float]],
    points: dict[str, Point],
) -> str:
    listed = [
        f"{study.labels[cell.run_id]}: {fmt.score(points[cell.run_id][0])} for "
        f"{fmt.count(costs[cell.run_id][0])} parameters and {fmt.seconds(costs[cell.run_id][1])}"
        for cell in cells
    ]
    return fmt.enumerate_words(listed, most=MOST_LABELS)


def _scale(panel: Any, numbers: list[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    if not wants_log(numbers):
        return
    panel.set_xscale("log", base=2)
    panel.xaxis.set_minor_locator(NullLocator())
    if len(numbers) <= 6:
        panel.xaxis.set_major_locator(FixedLocator(numbers))
