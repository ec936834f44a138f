"""Curves while cells train, from the events of their workers, on whatever machine these compute.

The command's process follows the events in a thread of its own, so that neither a slow server nor
the import of a tracker keeps a stage waiting. What is written here is provisional: at the end of
the study `tracking.track` replaces each run by a whole one, under the same id. So a failure here is
said and costs the live curves alone.
"""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ftsuite import events
from ftsuite.config import to_plain
from ftsuite.errors import one_line, redact, redacted
from ftsuite.tracking import forget, is_on, public_config, tracker_type
from ftsuite.tracking.cells import Study, Tracked, axes
from ftsuite.tracking.curve import Curve, Point, from_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from ftsuite.config import RunConfig, TrackingConfig
    from ftsuite.events import Event, Listener, Source
    from ftsuite.records import StudyManifest
    from ftsuite.tracking.cells import CellTracker, LiveRun

WAIT_SECONDS = 60.0
"""How long the end of a sweep waits for what a server has not taken yet."""
STOP_WAIT_SECONDS = 5.0
"""The same where the sweep was stopped or failed."""


@contextmanager
def live(
    config: TrackingConfig,
    manifest: StudyManifest,
    configs: Mapping[str, RunConfig],
    root: Path,
    say: Callable[[str], None] = print,
) -> Iterator[Listener]:
    """Track cells while they train; give what is to be told of every event.

    A training opens a run for every cell that needs it, with its first step: a sweep whose
    trainings are all stored imports no tracker. The run closes with its training.

    Args:
        config: which tracker, and how.
        manifest: the study.
        configs: run id → configuration of every cell of the study.
        root: folder of the store; everything is written under `root/tracking`.
        say: shows the user one line. Called from where the listener is called, never from a
            thread of this module.

    Raises:
        ConfigError: an unknown mode.
    """
    if not is_on(config):
        yield lambda source, event: None
        return
    feed: queue.SimpleQueue[tuple[Source, Event] | None] = queue.SimpleQueue()
    board = _Board(config=config, manifest=manifest, configs=configs, root=root)
    thread = threading.Thread(target=board.follow, args=(feed,), name="tracking", daemon=True)
    wait = STOP_WAIT_SECONDS

    def listener(source: Source, event: Event) -> None:
        if source.stage == "train" and thread.is_alive():
            feed.put((source, event))
        board.tell(say)

    thread.start()
    try:
        yield listener
        wait = WAIT_SECONDS
    finally:
        feed.put(None)
        ended = board.ended.wait(wait)
        board.tell(say)
        if not ended:
            say(f"tracking: live curves are not written after {wait:g} s; {_AGAIN}")


_AGAIN = "training does not need them, and the end of the study tracks every cell again"


@dataclass(slots=True, kw_only=True)
class _Training:
    """One training and the runs that show it."""

    source: Source
    curve: Curve
    runs: list[LiveRun] = field(default_factory=list)
    last: int = 0
    """The step that was logged last."""

    def log(self, point: Point) -> None:
        for run in self.runs:
            run.log(point)
        self.last = point.step

    def close(self, *, failed: bool) -> None:
        while self.runs:
            self.runs.pop().close(failed=failed)


@dataclass(slots=True, kw_only=True)
class _Board:
    """All trainings of a command, and what is to be said about them."""

    config: TrackingConfig
    manifest: StudyManifest
    configs: Mapping[str, RunConfig]
    root: Path
    trainings: dict[str, _Training] = field(default_factory=dict)
    tracker: CellTracker | None = None
    cells: dict[str, Tracked] = field(default_factory=dict)
    lines: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    ended: threading.Event = field(default_factory=threading.Event)
    """Everything is written, or was given up."""

    def tell(self, say: Callable[[str], None]) -> None:
        """Say what has come up, in the thread of the caller."""
        while not self.lines.empty():
            say(self.lines.get())

    def follow(self, feed: queue.SimpleQueue[tuple[Source, Event] | None]) -> None:
        """Take events until None comes, or until the tracker fails."""
        try:
            while (told := feed.get()) is not None:
                self.take(*told)
            for training in self.trainings.values():
                training.close(failed=True)
        # Whatever a tracker, a server or a disk does: training must go on.
        except Exception as error:
            self.lines.put(
                f"tracking: LIVE CURVES HAVE STOPPED: {type(error).__name__}: {one_line(error)}; "
                f"{_AGAIN}"
            )
            self.ended.set()
            self.stop()
        self.ended.set()

    def stop(self) -> None:
        """Free what the tracker holds after a failure; with a dead server that may take long."""
        if self.tracker is None:
            return
        try:
            self.tracker.stop()
        except Exception as error:
            self.lines.put(f"tracking: {type(error).__name__} at the stop: {one_line(error)}")

    def take(self, source: Source, event: Event) -> None:
        """Take one event of a training."""
        training = self.trainings.get(source.key)
        if training is None:
            # A training that goes on after a kill has told its first steps to another command.
            path = events.path_of(self.root, source.stage, source.key)
            earlier = [e for e in events.read(path)[0] if e["time"] < event["time"]]
            training = _Training(source=source, curve=from_events(earlier))
            self.trainings[source.key] = training
        if point := training.curve.add(event):
            if not training.runs or point.step < training.last:
                self.open(training)
            else:
                training.log(point)
        elif event["kind"] == "state" and event["state"] != "started":
            training.close(failed=event["state"] != "finished")

    def open(self, training: _Training) -> None:
        """Open the runs of a training, anew where they were, with its curve so far."""
        training.close(failed=True)
        if self.tracker is None:
            self.prepare()
        assert self.tracker is not None
        for run_id in training.source.run_ids:
            if run_id not in self.cells:
                continue  # of another command of the same study
            forget(self.config, self.manifest, run_id, self.root)
            training.runs.append(self.tracker.open(self.cells[run_id]))
        for point in training.curve.points.values():
            training.log(point)

    def prepare(self) -> None:
        """Import the tracker, and find out what sets the cells apart."""
        study = Study(
            config=self.config,
            name=self.manifest.study,
            command=redact(self.manifest.command),
            report=None,
            folder=self.root / "tracking",
        )
        self.tracker = tracker_type(self.config)(study)
        plain = {run_id: to_plain(config) for run_id, config in self.configs.items()}
        places = axes(self.manifest, plain)
        self.cells = {
            cell.run_id: Tracked(
                run_id=cell.run_id,
                label=redact(cell.label),
                config=public_config(plain[cell.run_id]),
                axes=redacted(places[cell.run_id]),
            )
            for cell in self.manifest.cells
            if cell.run_id in plain
        }
        for line in self.tracker.live_lines():
            self.lines.put(line)
