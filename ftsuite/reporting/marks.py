"""Marks that the plots share: points with intervals, the base, labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftsuite.analysis.compare import find_metric
from ftsuite.reporting import formats as fmt
from ftsuite.reporting.evidence import Point, different, point_of
from ftsuite.reporting.svg import MUTED, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.records import RunRecord

MOST_LABELS = 12
"""Cells that a plot names; of more only the recommended and the best."""


def tuned_points(cells: Sequence[RunRecord], name: str) -> dict[str, Point]:
    """run_id → score of the tuned model, for the cells that have one."""
    found = {cell.run_id: point_of(find_metric(cell.tuned, name)) for cell in cells}
    return {run_id: point for run_id, point in found.items() if point}


def base_points(cells: Sequence[RunRecord], name: str) -> list[Point]:
    """The base's score, once for each different base."""
    metrics = different(find_metric(cell.base, name) for cell in cells)
    return [point for metric in metrics if (point := point_of(metric))]


def title_of(name: str) -> str:
    """`arc_easy/acc` → `arc_easy: accuracy`."""
    task, _, metric = name.partition("/")
    return f"{task}: {fmt.metric_words(metric)}"


def axis_label(name: str, cells: Sequence[RunRecord]) -> str:
    """The metric in words, with its direction where that is not up."""
    metric = next((m for cell in cells if (m := find_metric(cell.tuned, name))), None)
    unit = fmt.metric_words(name.partition("/")[2])
    if metric is None or metric.higher_is_better:
        return unit
    return f"{unit} (lower is better)"


def base_line(panel: Any, bases: list[Point], *, vertical: bool = False) -> None:
    """A dashed line a base; its interval only where there is one base."""
    for mean, low, high in bases:
        line = panel.axvline if vertical else panel.axhline
        span = panel.axvspan if vertical else panel.axhspan
        line(mean, color=MUTED, lw=1.2, ls=(0, (4, 3)), zorder=1)
        if len(bases) == 1:
            span(low, high, color=MUTED, alpha=0.13, lw=0, zorder=0)
    if not bases or vertical:
        return
    text = f"base\n{fmt.score(bases[0][0])}" if len(bases) == 1 else "bases"
    panel.annotate(
        text,
        (1, bases[0][0]),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        color=MUTED,
        fontsize=8.5,
    )


def note(
    panel: Any, text: str, at: tuple[float, float], color: str, *, offset: tuple[float, float]
) -> None:
    """Write a small label beside a point; `offset` in points."""
    panel.annotate(
        text, at, xytext=offset, textcoords="offset points", color=color, fontsize=8.5, zorder=6
    )


def end_labels(panel: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Label lines at their right end, moved apart where they would overlap."""
    panel.get_ylim()  # the scale is stale until it is asked for
    to_axes = panel.transData + panel.transAxes.inverted()
    heights = [float(to_axes.transform((x, y))[1]) for x, y, _, _ in ends]
    for (_, _, text, color), height in zip(ends, spread(heights, 0.065), strict=True):
        panel.annotate(
            text,
            (1, height),
            xycoords="axes fraction",
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=8.5,
            annotation_clip=False,
        )


def share_scale(
    panels: Sequence[Any], names: Sequence[str], cells: Sequence[RunRecord], *, vertical: bool
) -> None:
    """Give panels of the same kind of metric one scale, so that heights compare."""
    if len({axis_label(name, cells) for name in names}) > 1 or len(panels) < 2:
        return
    get, put = ("get_ylim", "set_ylim") if vertical else ("get_xlim", "set_xlim")
    limits = [getattr(panel, get)() for panel in panels]
    for panel in panels:
        getattr(panel, put)(min(low for low, _ in limits), max(high for _, high in limits))


def label_points(panel: Any, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Label points (x, y, text, colour) where the text hits neither a label nor a point.

    A label that fits nowhere is left out: the table has it.
    """
    dots = [tuple(panel.transData.transform((x, y))) for x, y, _, _ in labels]
    pixel = panel.figure.dpi / 72
    # A little over the right edge is free; the left one has the axis' numbers.
    room = panel.bbox.x0, panel.bbox.x1 + 20 * pixel
    taken = [(x - 5 * pixel, y - 5 * pixel, x + 5 * pixel, y + 5 * pixel) for x, y in dots]
    for (x, y, text, color), (left, bottom) in zip(labels, dots, strict=True):
        width, height = 5.6 * len(text) * pixel, 10 * pixel
        for dx, dy in ((7, -3), (7, 5), (7, -12), (-7, -3), (-7, 5), (-7, -12)):
            start = left + dx * pixel - (width if dx < 0 else 0)
            low = bottom + dy * pixel
            box = (start, low, start + width, low + height)
            inside = room[0] <= box[0] and box[2] <= room[1]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                panel.annotate(
                    text,
                    (x, y),
                    xytext=(dx, dy),
                    textcoords="offset points",
                    ha="right" if dx < 0 else "left",
                    color=color,
                    fontsize=8.5,
                    zorder=6,
                )
                break


def _overlap(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
