"""The lines that tell of running stages: one a stage that fits the terminal, and plain ones."""

from __future__ import annotations

import itertools
import statistics
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from ftsuite.errors import redact
from ftsuite.reporting import formats as fmt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ftsuite.stagestate import CellCounts, StageState

GAP = 2
"""Columns between two parts of a line."""
PERCENT = 5
SHORTEST_BAR, LONGEST_BAR = 8, 30
CURVE = 16
"""Signs of a curve of losses."""
BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_LETTERS = {"·": "-", "…": "~", "–": "-", "−": "-", "→": "->"}
"""What stands for our own signs where the output's encoding lacks them."""


def printable(text: str, encoding: str) -> str:
    """Return `text` on one line, without secrets, and in letters that `encoding` has."""
    shown = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)
    shown = redact(" ".join(shown.split()))
    if not has_signs(encoding):
        for sign, plain in PLAIN_LETTERS.items():
            shown = shown.replace(sign, plain)
    return shown.encode(encoding, "replace").decode(encoding)


def has_signs(encoding: str) -> bool:
    """Whether `encoding` can write bars and curves."""
    return encoding.lower().replace("-", "").startswith("utf")


# --- parts --------------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    """80 → `1:20`; 3723 → `1:02:03`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def amount(number: float, unit: str) -> str:
    """(4096, 'tokens') → `4,096 tokens`; bytes in a larger unit."""
    if unit == "bytes":
        return fmt.size(round(number)) if number else "0 B"
    # A rate below ten would lose its meaning without digits.
    digits = 0 if number >= 10 or number == int(number) else 1 if number >= 1 else 2
    return f"{number:,.{digits}f} {unit.removesuffix('s') if number == 1 else unit}"


def _percent(state: StageState) -> str:
    # Rounded down: 100 % is said when all is done.
    return "" if state.fraction is None else f"{int(state.fraction * 100)} %"


def _rate(state: StageState) -> str:
    rate = state.pace.rate
    return "" if rate is None else f"{amount(rate, state.unit)}/s"


def _loss(state: StageState) -> str:
    return "" if state.loss is None else f"loss {state.loss:.3f}"


def _left(state: StageState, now: float) -> str:
    left = state.left(now)
    return "" if left is None else f"{clock(left)} left"


def _name(state: StageState) -> str:
    """The stage's name, with the loop's where that says more."""
    name, loop = state.source.name, state.loop
    return name if not loop or loop in name else f"{name}, {loop}"


# --- plain lines --------------------------------------------------------------------------------


def progress_line(state: StageState, now: float) -> str:
    """`[2/4 lora.r=4] train: 45 %, 512 tokens/s, loss 1.234, 80 s left`."""
    left = state.left(now)
    parts = [_percent(state), _rate(state), _loss(state)]
    parts.append("" if left is None else f"{fmt.seconds(round(left))} left")
    said = ", ".join(part for part in parts if part) or "running"
    return f"[{state.source.place}] {_name(state)}: {said}"


def ended_line(state: StageState) -> str:
    """`[2/4 lora.r=4] train: 4,096 tokens in 38 s, loss 1.234`; of a failed one, why it failed."""
    where = f"[{state.source.place}] {state.source.name}"
    if state.message:
        return f"{where}: failed: {state.message}"
    counted = ", ".join(amount(*one) for one in state.counted()) or "done"
    loss = f", {_loss(state)}" if state.losses else ""
    return f"{where}: {counted} in {fmt.seconds(state.seconds)}{loss}"


def study_line(counts: CellCounts, elapsed: float, side_by_side: int) -> str:
    """`2 of 4 cells done · 1 failed · 3:12 · about 3:10 left`.

    Args:
        counts: of the study's cells.
        elapsed: seconds since its command began.
        side_by_side: most stages that were seen running at once.
    """
    left = counts.left(elapsed, side_by_side)
    parts = [f"{counts.done:,} of {fmt.plural(counts.total, 'cell')} done"]
    if counts.running is not None:
        parts += [f"{counts.running:,} running", f"{counts.remaining - counts.running:,} waiting"]
    if counts.failed:
        parts.append(f"{counts.failed:,} failed")
    parts.append(clock(elapsed))
    if left is not None:
        parts.append(f"about {clock(left)} left")
    return " · ".join(parts)


def details_line(state: StageState, width: int, encoding: str = "utf-8") -> str:
    """What else is known of a stage: the losses so far, steps, memory, learning rate, host.

    What does not fit `width` columns is left out, the last first.
    """
    parts = []
    if len(state.losses) > 1:
        first, last = state.losses[0], state.losses[-1]
        drawn = f"{curve(state.losses, CURVE)} " if has_signs(encoding) else ""
        parts.append(f"loss {drawn}{first:.2f} → {last:.2f}")
    if state.steps:
        parts.append(f"step {state.step:,} of {state.steps:,}")
    if state.memory_bytes:
        gpu = f", GPU {fmt.size(state.device_bytes)}" if state.device_bytes else ""
        parts.append(f"memory {fmt.size(state.memory_bytes)}{gpu}")
    if state.learning_rate is not None:
        parts.append(f"learning rate {state.learning_rate:.2g}")
    if state.host:
        parts.append(f"on {state.host}")
    while parts and cell_len(" · ".join(parts)) > width:
        parts.pop()
    return " · ".join(parts)


# --- one line a stage, for a terminal -----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Widths:
    """Columns that each part of the lines gets; 0 for one that has no room."""

    label: int
    bar: int
    percent: int
    rate: int
    loss: int
    left: int


def stage_lines(
    states: Sequence[StageState], now: float, width: int, encoding: str = "utf-8"
) -> list[Text]:
    """One line a stage, its parts under each other, none longer than `width` columns.

    Where there is no room the rate goes first, then the bar, the loss and the time left; the name
    is cut before the percentage is.
    """
    widths = _widths(states, now, width)
    return [_stage_line(state, now, width, widths, encoding) for state in states]


def _widths(states: Sequence[StageState], now: float, width: int) -> _Widths:
    def widest(texts: Iterable[str]) -> int:
        return max((cell_len(text) for text in texts), default=0)

    label = widest(_label(state) for state in states)
    percent = PERCENT if any(state.fraction is not None for state in states) else 0
    wanted = {
        "left": widest(_left(state, now) for state in states),
        "loss": widest(map(_loss, states)),
        "bar": SHORTEST_BAR if percent else 0,
        "rate": widest(map(_rate, states)),
    }
    shortest = min(label, max(16, width * 2 // 5))
    room = width - shortest - (GAP + percent if percent else 0)
    given = dict.fromkeys(wanted, 0)
    for part, columns in wanted.items():
        if columns and GAP + columns <= room:
            given[part] = columns
            room -= GAP + columns
    longest = shortest + min(label - shortest, room)
    # Names that are cut may need less.
    label = widest(_cut_label(state, longest) for state in states)
    room += shortest - label
    if given["bar"]:
        given["bar"] += min(room, LONGEST_BAR - SHORTEST_BAR)
    return _Widths(label=label, percent=percent, **given)


def _label(state: StageState) -> str:
    return f"{state.source.place} · {_name(state)}"


def _stage_line(state: StageState, now: float, width: int, widths: _Widths, encoding: str) -> Text:
    line = Text(no_wrap=True, overflow="crop")
    label = _cut_label(state, widths.label)
    line.append(_filled(printable(label, encoding), widths.label), "bold")
    if state.fraction is None or state.note:
        said = printable(state.note or "starting", encoding)
        line.append(" " * GAP + said)
        line.truncate(width)
        return line
    if widths.bar:
        full = int(state.fraction * widths.bar)
        signs = "━─" if has_signs(encoding) else "#-"
        line.append(" " * GAP + signs[0] * full, "green")
        line.append(signs[1] * (widths.bar - full), "bright_black")
    parts = (
        (_percent(state), widths.percent),
        (_rate(state), widths.rate),
        (_loss(state), widths.loss),
        (_left(state, now), widths.left),
    )
    for text, columns in parts:
        if columns:
            line.append(" " * GAP + printable(text, encoding).rjust(columns))
    line.rstrip()
    return line


def _cut_label(state: StageState, width: int) -> str:
    """Cut the place and then the loop before the stage's name, which tells the lines apart."""
    label = _label(state)
    if cell_len(label) <= width:
        return label
    name = state.source.name
    room = width - cell_len(f" · {name}")
    if room >= 8:
        return f"{_cut(state.source.place, room)} · {name}"
    return _cut(f"{state.source.place} · {name}", width)


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def _filled(text: str, width: int) -> str:
    return set_cell_size(text, width)


def curve(values: Sequence[float], width: int) -> str:
    """A curve of one line: each sign the mean of as many values as fit `width` signs."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(place * len(values) / count) for place in range(count + 1)]
    means = [statistics.fmean(list(values)[a:b]) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    step = (high - low) / (len(BLOCKS) - 1)
    return "".join(BLOCKS[round((mean - low) / step)] if step else BLOCKS[0] for mean in means)
