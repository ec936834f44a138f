"""Plot: score over the sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftsuite.reporting import formats as fmt
from ftsuite.reporting.marks import (
    MOST_LABELS,
    axis_label,
    base_line,
    base_points,
    end_labels,
    note,
    share_scale,
    title_of,
    tuned_points,
)
from ftsuite.reporting.svg import ACCENT, BLUE, INK, SERIES, Picture, panels, picture
from ftsuite.reporting.sweep import Axis, log_base, numeric_axis, wants_log
from ftsuite.reporting.tables import first

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.records import RunRecord
    from ftsuite.reporting.evidence import Point
    from ftsuite.reporting.study import Study

MOST_LISTED = 25
"""Rows of a categorical plot."""


def draw(study: Study) -> Picture | None:
    """Validation and headline scores over the swept value, or one row a cell."""
    roles = _roles(study)
    if not roles:
        return None
    axis = numeric_axis(study.cells)
    listed = first(study, study.cells, MOST_LISTED)
    height = 3.2 if axis else 1.2 + 0.27 * len(listed)
    figure, axes = panels(len(roles), height=height)
    ends = []
    for place, (panel, (title, name)) in enumerate(zip(axes, roles, strict=True)):
        panel.set_title(f"{title}\n{title_of(name)}")
        if axis:
            ends.append(_numeric_panel(panel, study, name, axis))
        else:
            _listed_panel(panel, study, name, listed, labels=place == 0)
    share_scale(axes, [name for _, name in roles], study.cells, vertical=axis is not None)
    if axis and axis.other:
        for panel, lines in zip(axes, ends, strict=True):
            end_labels(panel, lines)
    return picture(figure, "sweep", alt=_sweep_alt(study, roles), caption=_sweep_caption(study))


def _numeric_panel(
    panel: Any, study: Study, name: str, axis: Axis
) -> list[tuple[float, float, str, str]]:
    """Draw one panel; returns its lines' ends, to label once the scale is known."""
    points = tuned_points(study.cells, name)
    groups: dict[str, list[str]] = {}
    for run_id in sorted(points, key=lambda one: axis.x[one]):
        groups.setdefault(axis.series[run_id], []).append(run_id)
    dense = len(points) > MOST_LISTED
    ends = []
    for place, (value, run_ids) in enumerate(groups.items()):
        color = SERIES[place % len(SERIES)]
        x, y = [axis.x[one] for one in run_ids], [points[one] for one in run_ids]
        _band_or_bars(panel, x, y, color, dense=dense)
        panel.plot(x, [p[0] for p in y], color=color, marker="" if dense else "o", ms=5, lw=1.6)
        ends.append((x[-1], y[-1][0], f"{axis.other.rsplit('.', 1)[-1]}={value}", color))
    base_line(panel, base_points(study.cells, name))
    pick = study.pick
    if pick and pick.run_id in points:
        x_pick, y_pick = axis.x[pick.run_id], points[pick.run_id][0]
        if axis.other:  # a ring, as the dot's own colour tells its line
            panel.plot([x_pick], [y_pick], "o", mfc="none", mec=ACCENT, mew=2, ms=11, zorder=5)
        else:
            panel.plot([x_pick], [y_pick], "o", color=ACCENT, ms=8, zorder=5)
            note(panel, "pick", (x_pick, y_pick), ACCENT, offset=(7, -11))
    numbers = sorted(set(axis.x.values()))
    _number_axis(panel, numbers)
    panel.set_xlabel(axis.key)
    panel.set_ylabel(axis_label(name, study.cells))
    return ends


def _band_or_bars(panel: Any, x: list[float], y: list[Point], color: str, *, dense: bool) -> None:
    low, high = [p[1] for p in y], [p[2] for p in y]
    if dense:
        panel.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
        return
    panel.vlines(x, low, high, color=color, lw=1.6, alpha=0.55)


def _number_axis(panel: Any, numbers: list[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    if wants_log(numbers):
        panel.set_xscale("log", base=log_base(numbers))
    panel.margins(x=0.08)
    if len(numbers) <= 10:
        panel.xaxis.set_major_locator(FixedLocator(numbers))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.xaxis.set_minor_locator(NullLocator())


def _listed_panel(
    panel: Any, study: Study, name: str, cells: Sequence[RunRecord], *, labels: bool
) -> None:
    points, pick = tuned_points(cells, name), study.pick
    for place, cell in enumerate(cells):
        if cell.run_id not in points:
            continue
        mean, low, high = points[cell.run_id]
        color = ACCENT if cell is pick else BLUE
        panel.hlines(place, low, high, color=color, lw=1.8, alpha=0.6)
        panel.plot([mean], [place], "o", color=color, ms=6)
    base_line(panel, base_points(cells, name), vertical=True)
    names = [study.labels[cell.run_id] for cell in cells]
    names = [
        f"{label} (pick)" if cell is pick else label
        for label, cell in zip(names, cells, strict=True)
    ]
    panel.set_yticks(range(len(cells)), labels=names if labels else [""] * len(cells))
    if labels:
        for tick, cell in zip(panel.get_yticklabels(), cells, strict=True):
            tick.set_color(ACCENT if cell is pick else INK)
    panel.set_ylim(len(cells) - 0.4, -0.6)
    panel.grid(visible=False, axis="y")
    panel.grid(visible=True, axis="x")
    panel.set_xlabel(axis_label(name, cells))


def _sweep_alt(study: Study, roles: Sequence[tuple[str, str]]) -> str:
    said = []
    for title, name in roles:
        points = tuned_points(study.cells, name)
        cells = [cell for cell in study.cells if cell.run_id in points]
        values = [
            f"{study.labels[cell.run_id]} {fmt.score(points[cell.run_id][0])}" for cell in cells
        ]
        base = ", ".join(fmt.score(point[0]) for point in base_points(study.cells, name)[:3])
        listed = fmt.enumerate_words(values, most=MOST_LABELS)
        said.append(f"{title}, {title_of(name)}: {listed}; base {base or 'not scored'}")
    return f"Scores of the cells with 95 % intervals. {'. '.join(said)}."


def _sweep_caption(study: Study) -> str:
    listed, only = first(study, study.cells, MOST_LISTED), ""
    if len(study.cells) > len(listed) and not numeric_axis(study.cells):
        which = "best" if study.ranking else "first"
        more = " and the recommended one" if len(listed) > MOST_LISTED else ""
        only = f" The {which} {MOST_LISTED}{more} of {len(study.cells):,} cells."
    pick = " Orange: the recommended cell." if study.pick else ""
    return (
        "<sub>Dots: tuned cells with 95 % intervals; dashed: base, its interval shaded. "
        "Overlapping intervals are not a test: the tables compare document by document."
        f"{pick}{only}</sub>"
    )


def _roles(study: Study) -> list[tuple[str, str]]:
    """(panel title, metric) of the metrics that decide and report."""
    roles = {}
    if study.rank_by:
        words = study.rank_words.removeprefix("the ")
        decides = " (decides)" if study.ranking else ""
        roles[study.rank_by] = f"{words[0].upper()}{words[1:]}{decides}"
    if study.headline and study.headline not in roles:
        split = study.split_of(study.headline)
        roles[study.headline] = f"Headline ({split})" if split else "Headline"
    return [(title, name) for name, title in roles.items() if tuned_points(study.cells, name)]
