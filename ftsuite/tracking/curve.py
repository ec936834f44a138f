"""The curve of a training, from its events while it goes on and from its record afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftsuite import events

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ftsuite.events import Event
    from ftsuite.records import RunRecord

_STEP_VALUES = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens")
_HIGHEST = {"bytes": "worker/memory_bytes", "device_bytes": "worker/device_bytes"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What is known of one step."""

    step: int
    time: float | None
    """When it was told, seconds since 1970; None where only the record knows the step."""
    values: dict[str, float]
    """train/…: loss and eval_loss (nats a token), learning_rate, grad_norm, tokens so far and
    tokens_per_second. worker/…: the highest memory_bytes and device_bytes since the step before,
    and the last cpu_percent."""


class Curve:
    """The points of one training so far.

    A training that goes on from a checkpoint tells some steps again: those told before are dropped.
    """

    def __init__(self) -> None:
        """Begin without points."""
        self.points: dict[int, Point] = {}
        self._worker: dict[str, float] = {}
        self._before: tuple[float, float] | None = None  # time and tokens of the step before

    def add(self, event: Event) -> Point | None:
        """Take one event of the training; a step gives what is new of its point."""
        if event["kind"] == "state":
            self._before = None
        elif event["kind"] == "memory":
            self._remember(event)
        elif event["kind"] == "step":
            return self._step(event)
        return None

    def _remember(self, event: Event) -> None:
        for name, shown in _HIGHEST.items():
            if event.get(name):
                self._worker[shown] = max(self._worker.get(shown, 0.0), float(event[name]))
        if event.get("cpu_percent") is not None:
            self._worker["worker/cpu_percent"] = float(event["cpu_percent"])

    def _step(self, event: Event) -> Point:
        step, time = int(event["step"]), float(event["time"])
        values = {
            f"train/{name}": float(event[name])
            for name in _STEP_VALUES
            if event.get(name) is not None
        }
        self._rate(time, values)
        values |= self._worker
        self._worker = {}
        if self.points and step < next(reversed(self.points)):
            self.points = {n: point for n, point in self.points.items() if n < step}
        before = self.points.get(step)
        self.points[step] = Point(
            step=step, time=time, values=(before.values if before else {}) | values
        )
        return Point(step=step, time=time, values=values)

    def _rate(self, time: float, values: dict[str, float]) -> None:
        """Add tokens a second since the step or evaluation before."""
        tokens = values.get("train/tokens")
        if self._before and tokens is not None:
            seconds, done = time - self._before[0], tokens - self._before[1]
            if seconds > 0 and done > 0:
                values["train/tokens_per_second"] = done / seconds
        if tokens is None and self._before:
            tokens = self._before[1]  # an evaluation: its time is not the next step's
        self._before = None if tokens is None else (time, tokens)


def from_events(told: Iterable[Event]) -> Curve:
    """Return the curve that a training has told."""
    curve = Curve()
    for event in told:
        curve.add(event)
    return curve


def from_record(record: RunRecord, root: Path) -> tuple[Point, ...]:
    """Return the curve of a finished cell, by rising step.

    Its values are the record's. Where the store still has the training's events, they add the
    times, tokens a second and the memory of the worker.
    """
    if record.train is None:
        return ()
    keys = [stage.key for stage in record.stages if stage.stage == "train"]
    told: dict[int, Point] = {}
    for key in keys:
        told |= from_events(events.read(events.path_of(root, "train", key))[0]).points
    points = {step: point for step, point in told.items() if step <= record.train.steps}
    for recorded in record.train.curve:
        known = points.get(recorded.step)
        values = {
            f"train/{name}": value
            for name in _STEP_VALUES
            if (value := getattr(recorded, name, None)) is not None
        }
        points[recorded.step] = Point(
            step=recorded.step,
            time=known.time if known else None,
            values=(known.values if known else {}) | values,
        )
    return tuple(points[step] for step in sorted(points))
