"""What a person sees while a study runs: a line a running stage, plain lines without a terminal."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ftsuite import stagelines
from ftsuite.stagestate import CellCounts, StageState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ftsuite.events import Event, Listener, Source

PLAIN_LINE_SECONDS = 10.0
"""How often a plain line tells of a running stage."""
REFRESHES_A_SECOND = 2
"""Of the lines on a terminal; a time left counts down between events."""
INDENT = 4
"""Of a stage's second line."""
SPARE_LINES = 3
"""Of a terminal's height, which stages leave to the study's line and to what is said above."""


@contextmanager
def display(*, cells: int, done: int = 0, output: TextIO | None = None) -> Iterator[Listener]:
    """Show the events that the value is told of, until the block ends.

    On a terminal, lines that others print meanwhile go above the display's. Beside the events of
    stages it takes one of the study: `{"kind": "cell", "run_id": …, "status": "complete"}`, or
    `"failed"`.

    Args:
        cells: of the study.
        done: of these complete before anything runs.
        output: where to; None: stdout.
    """
    out = output or sys.stdout
    started = time.monotonic()
    counts = CellCounts(total=cells, done=done)
    if is_terminal(out):
        console = terminal(out)
        board = Board(counts, console.encoding, lambda text: say_above(console, text))

        def draw() -> Group:
            elapsed = time.monotonic() - started
            return Group(*board.lines(console.width, elapsed, height=console.height))

        with Live(
            console=console,
            get_renderable=draw,
            refresh_per_second=REFRESHES_A_SECOND,
            transient=True,
        ):
            yield board.listen
    else:
        board = Board(counts, encoding_of(out), lambda text: print(text, file=out, flush=True))
        board.is_plain = True
        yield board.listen
    if counts.ended_at and not board.is_plain:
        board.say(stagelines.study_line(counts, time.monotonic() - started, board.side_by_side))


class Board:
    """The stages that run now, as their events tell; says lines about those that end."""

    def __init__(self, counts: CellCounts, encoding: str, say: Callable[[str], None]) -> None:
        """Begin with no stage; `say` prints one line."""
        self.counts = counts
        self.encoding = encoding
        self.is_plain = False
        """Whether lines tell of running stages too."""
        self.is_silent = False
        """Whether nothing is said for now: events of the past are caught up with."""
        self.running: dict[str, StageState] = {}
        """By the stage's key, in the order in which they began."""
        self.quiet = set[str]()
        """Keys of those of them that nobody computes any more; no line tells of them."""
        self.side_by_side = 0
        """Most stages that ran at once."""
        self._print = say
        self._started = time.monotonic()
        self._said_at: dict[str, float] = {}
        self._failed: dict[str, tuple[str, ...]] = {}
        self._ended_cells: dict[str, str] = {}
        # The lines are drawn by a thread of rich's. Nothing is printed while this is held, for
        # printing waits for that thread.
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Print one line."""
        if not self.is_silent:
            self._print(stagelines.printable(text, self.encoding))

    def listen(self, source: Source, event: Event) -> None:
        """Take note of an event, and say what is to be said of it at once."""
        now = time.monotonic()
        with self._lock:
            said = list(self._heard(source, event, now))
        for text in said:
            self.say(text)

    def _heard(self, source: Source, event: Event, now: float) -> Iterator[str]:
        """Change what is known; gives the lines to say."""
        kind = event["kind"]
        if kind == "cell":
            yield from self._cell_ended(event, now)
            return
        state = self._state(source, event, now)
        if state is None:
            return
        state.hear(event, now)
        if kind == "note":
            yield f"[{source.place}] {event['text']}"
        elif kind == "state" and event["state"] in ("finished", "failed"):
            self.running.pop(source.key, None)
            if event["state"] == "failed":
                self._failed[source.key] = source.run_ids
            self._count_failed()
            yield stagelines.ended_line(state)
        elif self.is_plain and now - self._said_at[source.key] >= PLAIN_LINE_SECONDS:
            self._said_at[source.key] = now
            yield stagelines.progress_line(state, now)

    def _state(self, source: Source, event: Event, now: float) -> StageState | None:
        """The state that an event belongs to; None where it comes too late to belong to any."""
        state = self.running.get(source.key)
        has_begun = event["kind"] == "state" and event["state"] == "started"
        # A worker's look at its memory may come after the end of its stage; and where two
        # processes wanted the stage, both tell of the end.
        works = event["kind"] in ("note", "progress", "step") or has_begun
        if state is None and not works and event.get("state") != "failed":
            return None
        if state is None or has_begun:
            state = self.running[source.key] = StageState(source)
            self._said_at.setdefault(source.key, now)
            self.side_by_side = max(self.side_by_side, len(self.running))
            self._failed.pop(source.key, None)
            self._count_failed()
        return state

    def _cell_ended(self, event: Event, now: float) -> Iterator[str]:
        if event["run_id"] not in self._ended_cells:
            self.counts.ended_at.append(now - self._started)
        self._ended_cells[event["run_id"]] = event["status"]
        if event["status"] == "complete":
            self.counts.done += 1
        # A worker that was killed has told of no end of its stage.
        for key, state in list(self.running.items()):
            if self._ended_cells.keys() >= set(state.source.run_ids):
                del self.running[key]
        self._count_failed()
        if self.is_plain:
            yield stagelines.study_line(self.counts, now - self._started, self.side_by_side)

    def _count_failed(self) -> None:
        """Cells fail with a stage that they need, or are said to have failed."""
        failed = {run_id for run_ids in self._failed.values() for run_id in run_ids}
        failed |= {run_id for run_id, status in self._ended_cells.items() if status == "failed"}
        self.counts.failed = len(failed)

    def cells_at_work(self) -> set[str]:
        """Run ids of the first cells that need the running stages."""
        return {state.source.run_ids[0] for state in self._at_work()}

    def _at_work(self) -> list[StageState]:
        states = [state for key, state in self.running.items() if key not in self.quiet]
        # A cell's line keeps its place when its next stage begins.
        return sorted(states, key=lambda state: _number(state.source.place))

    def lines(
        self, width: int, elapsed: float, *, height: int | None = None, with_details: bool = False
    ) -> list[Text]:
        """The lines of the running stages and the study's.

        Args:
            width: columns that a line may have.
            elapsed: seconds since the study's command began.
            height: lines of the terminal; None: no limit.
            with_details: whether each stage has a second line.
        """
        with self._lock:
            states = self._at_work()
            room = len(states)
            if height is not None:
                room = max(height - SPARE_LINES, 1) // (2 if with_details else 1)
            shown = states if len(states) <= room else states[: max(room - 1, 1)]
            lines = stagelines.stage_lines(shown, time.monotonic(), width, self.encoding)
            if with_details:
                below = (stagelines.details_line(s, width - INDENT, self.encoding) for s in shown)
                pairs = zip(lines, (self.line(text, indent=INDENT) for text in below), strict=True)
                lines = [line for pair in pairs for line in pair if line]
            head = stagelines.study_line(self.counts, elapsed, self.side_by_side)
        if len(shown) < len(states):
            lines.append(self.line(f"and {len(states) - len(shown)} more"))
        lines.append(self.line(head))
        for line in lines:
            line.truncate(width)
        return lines

    def line(self, text: str, *, indent: int = 0) -> Text:
        """One line that is cut where the terminal ends, rather than folded."""
        shown = " " * indent + stagelines.printable(text, self.encoding)
        return Text(shown.rstrip(), no_wrap=True, overflow="crop")


def _number(place: str) -> int:
    """'2/4 lora.r=4' → 2."""
    number = place.partition("/")[0]
    return int(number) if number.isdecimal() else 0


def is_terminal(output: TextIO) -> bool:
    """Whether lines can be drawn anew on `output`."""
    return output.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def terminal(output: TextIO) -> Console:
    """A console that takes no text for markup."""
    return Console(file=output, markup=False, highlight=False, emoji=False, force_terminal=True)


def say_above(console: Console, text: str) -> None:
    """Print a line above the display; the terminal may wrap it, which copying undoes."""
    console.print(Text(text), soft_wrap=True)


def encoding_of(output: TextIO) -> str:
    """The encoding of `output`; of one that only keeps text, UTF-8."""
    return output.encoding or "utf-8"
