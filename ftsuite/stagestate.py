"""What is known of a running stage from its events: how far, how fast, which loss, how long still.

Times of events are compared with times of the same stage alone: another machine's clock may be off
by hours, and none of it shows here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftsuite.events import Event, Source

RATE_SECONDS = 20.0
"""Stretch of time that a rate is the mean of: long enough for a steady number, and short enough to
follow a machine that another process slows down."""
KEPT_LOSSES = 200
"""Losses that are kept for a curve of one line."""
LEAST_CELLS = 2
"""Finished cells from which on the time left of a study is told."""


class Pace:
    """How fast a loop is, over its last `RATE_SECONDS`.

    Counted from the first time that something was done: what came before is start-up, or the work
    of an earlier process that a resumed stage counts in one go.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, seconds: float, done: int) -> None:
        """Take note that `done` was done at `seconds`."""
        if self._seen and (seconds < self._seen[-1][0] or done < self._seen[-1][1]):
            # Another process's clock, or the loop began anew.
            self._seen.clear()
        if not done:
            return
        self._seen.append((seconds, done))
        # One that is older stays: a step may take longer than the stretch.
        while len(self._seen) > 2 and self._seen[1][0] <= seconds - RATE_SECONDS:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """How much is done a second; None while it cannot be told."""
        if len(self._seen) < 2:
            return None
        (begun, before), (ended, after) = self._seen[0], self._seen[-1]
        if ended <= begun or after <= before:
            return None
        return (after - before) / (ended - begun)


@dataclass(slots=True)
class StageState:
    """One attempt at a stage, from its events so far."""

    source: Source
    heard: float = 0.0
    """When its last progress was heard of, on the reader's own clock."""
    note: str = ""
    """What it said last, while it told of no progress since."""
    loop: str = ""
    """The loop it is in; a stage may have several, one after another."""
    done: int = 0
    total: int = 0
    unit: str = ""
    pace: Pace = field(default_factory=Pace)
    finished_loops: dict[str, int] = field(default_factory=dict)
    """What the loops before did, by unit."""
    step: int = 0
    steps: int = 0
    learning_rate: float | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_LOSSES))
    memory_bytes: int = 0
    device_bytes: int = 0
    host: str = ""
    message: str = ""
    """Why it failed."""
    first: float | None = None
    last: float = 0.0
    """Time of its first and its last event, on its own clock."""

    def hear(self, event: Event, now: float) -> None:
        """Take note of an event; one of an unknown kind changes nothing.

        Args:
            event: of this attempt.
            now: seconds on the reader's clock.
        """
        self.last = event["time"]
        if self.first is None or self.last < self.first:
            self.first = self.last
        match event["kind"]:
            case "state":
                self.host = event.get("host", self.host)
                self.message = event.get("message", "")
            case "note":
                self.note = event["text"]
            case "progress":
                self.heard = now
                self._advance(event)
            case "step":
                self.step, self.steps = event["step"], event["steps"]
                self.learning_rate = event.get("learning_rate", self.learning_rate)
                if event.get("loss") is not None:
                    self.losses.append(event["loss"])
            case "memory":
                self.memory_bytes = event["bytes"]
                self.device_bytes = event.get("device_bytes", 0)

    def _advance(self, event: Event) -> None:
        loop = (event["name"], event["total"], event["unit"])
        is_new = loop != (self.loop, self.total, self.unit) or event["done"] < self.done
        if is_new:
            self._end_loop()
            self.loop, self.total, self.unit = loop
            self.pace = Pace()
        self.done = event["done"]
        self.pace.add(event["time"], self.done)
        if self.done:
            self.note = ""

    def _end_loop(self) -> None:
        if self.done:
            self.finished_loops[self.unit] = self.finished_loops.get(self.unit, 0) + self.done
        self.done = 0

    @property
    def fraction(self) -> float | None:
        """How much of the loop is done, 0 to 1; None before one has begun."""
        return min(self.done / self.total, 1.0) if self.total > 0 else None

    @property
    def loss(self) -> float | None:
        """The last training loss, in nats a token."""
        return self.losses[-1] if self.losses else None

    def left(self, now: float) -> float | None:
        """Seconds that the loop still needs at its pace; None while that cannot be told."""
        rate = self.pace.rate
        if rate is None or self.done >= self.total:
            return None
        return max((self.total - self.done) / rate - (now - self.heard), 0.0)

    @property
    def seconds(self) -> float:
        """From its first event to its last."""
        return self.last - self.first if self.first is not None else 0.0

    def counted(self) -> list[tuple[int, str]]:
        """What all its loops did, and the unit of each."""
        amounts = dict(self.finished_loops)
        if self.done:
            amounts[self.unit] = amounts.get(self.unit, 0) + self.done
        return [(amount, unit) for unit, amount in amounts.items()]


@dataclass(slots=True)
class CellCounts:
    """How far a study is, in cells."""

    total: int
    done: int = 0
    """Complete, those that were so before this command included."""
    failed: int = 0
    running: int | None = None
    """None where only the executor knows."""
    ended_at: list[float] = field(default_factory=list)
    """When cells were finished or failed while somebody looked on, seconds since the beginning."""

    @property
    def remaining(self) -> int:
        """Cells that are neither complete nor failed."""
        return max(self.total - self.done - self.failed, 0)

    def left(self, elapsed: float, side_by_side: int) -> float | None:
        """Seconds that the study still needs, if its cells go on as those that have ended.

        Args:
            elapsed: seconds since the beginning.
            side_by_side: most stages that were seen running at once. Cells that run together end
                together, so that the mean is true only from the first such round on.

        Returns:
            None while it cannot be told: too few cells have ended, or the next is overdue.
        """
        ended = len(self.ended_at)
        if ended < max(LEAST_CELLS, side_by_side) or not self.remaining:
            return None
        expected = self.ended_at[-1] / ended * self.remaining
        left = expected - (elapsed - self.ended_at[-1])
        return left if left > 0 else None
