"""Plot: training and validation loss over the steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ftsuite.reporting import formats as fmt
from ftsuite.reporting.marks import MOST_LABELS, end_labels
from ftsuite.reporting.svg import ACCENT, MUTED, SERIES, Picture, panels, picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ftsuite.records import RunRecord
    from ftsuite.reporting.study import Study

MOST_CURVES = 6
"""Curves in colour; the rest is grey."""

MOST_GREY = 40
"""Further curves in grey: enough to see who leaves the cloud, and a file that loads fast."""

Line = list[tuple[int, float]]


def draw(study: Study) -> Picture | None:
    """Loss over steps, smoothed and as logged; None if nothing was logged."""
    cells = [cell for cell in study.cells if _training(cell)]
    if not cells:
        return None
    colors = _colors(study, cells)
    grey = [cell for cell in cells if cell.run_id not in colors][:MOST_GREY]
    drawn = [*grey, *(cell for cell in cells if cell.run_id in colors)]
    views = [("Training loss", _training)]
    if any(_validation(cell) for cell in drawn):
        views.append(("Validation loss", _validation))
    figure, axes = panels(len(views))
    for panel, (title, line_of) in zip(axes, views, strict=True):
        panel.set_title(title)
        panel.set_xlabel("optimiser step")
        for cell in drawn:
            _draw_line(panel, line_of(cell), colors.get(cell.run_id, MUTED), cell.run_id in colors)
        _loss_scale(panel, [y for cell in drawn for _, y in _smooth(line_of(cell))])
    axes[0].set_ylabel("nats a trained token")
    axes[-1].set_xlim(axes[0].get_xlim())
    figure.draw_without_rendering()
    line_of = views[-1][1]
    end_labels(
        axes[-1],
        [
            (*_smooth(line_of(cell))[-1], study.labels[cell.run_id], colors[cell.run_id])
            for cell in cells
            if cell.run_id in colors and line_of(cell)
        ],
    )
    return picture(
        figure, "training", alt=_alt(study, cells), caption=_caption(cells, colors, grey)
    )


def _colors(study: Study, cells: Sequence[RunRecord]) -> dict[str, str]:
    """The first cells and the recommended one get a colour."""
    pick = study.pick
    others = [cell.run_id for cell in cells if cell is not pick][: MOST_CURVES - 1]
    colors = dict(zip(others, SERIES, strict=False))
    if pick:
        colors[pick.run_id] = ACCENT
    return colors


def _training(cell: RunRecord) -> Line:
    curve = cell.train.curve if cell.train else ()
    return _finite((point.step, point.loss) for point in curve)


def _validation(cell: RunRecord) -> Line:
    curve = cell.train.curve if cell.train else ()
    return _finite((point.step, point.eval_loss) for point in curve)


def _finite(points: Iterable[tuple[int, float | None]]) -> Line:
    return [(step, loss) for step, loss in points if loss is not None and math.isfinite(loss)]


def _smooth(line: Line) -> Line:
    """Mean over a centred window of a sixth of the points.

    The window narrows at the start, where a lop-sided mean would lag behind the fall of the loss;
    at the end, where the curve is flat, it only loses its right half.
    """
    reach = len(line) // 12
    smooth = []
    for place, (step, _) in enumerate(line):
        near = line[place - min(reach, place) : place + min(reach, place) + 1]
        smooth.append((step, sum(loss for _, loss in near) / len(near)))
    return smooth


def _draw_line(panel: Any, line: Line, color: str, colored: bool) -> None:
    if not line:
        return
    sparse = len(line) <= 12
    steps = [step for step, _ in line]
    if colored:
        raw = [loss for _, loss in line]
        panel.plot(steps, raw, color=color, lw=0.8, alpha=0.35)
    smooth = [loss for _, loss in (line if sparse else _smooth(line))]
    panel.plot(
        steps,
        smooth,
        color=color,
        lw=1.8 if colored else 0.6,
        alpha=1 if colored else 0.25,
        marker="o" if sparse else "",
        ms=4,
    )


def _loss_scale(panel: Any, smooth: Sequence[float]) -> None:
    """Scale to the smoothed curves; logarithmic where their end would look flat otherwise."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = min(smooth), max(smooth)
    if low <= 0 or high / low < 8:
        room = 0.08 * (high - low) or 0.1
        panel.set_ylim(max(0.0, low - room) if low >= 0 else low - room, high + room)
        return
    panel.set_yscale("log")
    panel.set_ylim(low / 1.4, high * 1.2)
    panel.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())


def _alt(study: Study, cells: Sequence[RunRecord]) -> str:
    finals = [
        f"{study.labels[cell.run_id]} {fmt.score(cell.train.final_loss)}"
        for cell in cells
        if cell.train
    ]
    listed = fmt.enumerate_words(finals, most=MOST_LABELS)
    return f"Loss over optimiser steps. Final training loss: {listed}."


def _caption(cells: Sequence[RunRecord], colors: dict[str, str], grey: Sequence[RunRecord]) -> str:
    left_out = len(cells) - len(colors)
    of = f"{len(grey)} of {left_out:,}" if left_out > len(grey) else f"{left_out}"
    further = f" Grey: {of} further cells." if left_out else ""
    return (
        "<sub>Thick: smoothed (centred mean); thin: as logged, cut at the edge of the "
        "plot. A lower loss does not make a better "
        f"model: the scores decide.{further}</sub>"
    )
