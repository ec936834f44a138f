"""Everything in the command's own process, one stage after another: for debuggers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite import worker
from ftsuite.events import path_of, read
from ftsuite.executors.schedule import Outcome, Schedule, Task, source_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ftsuite.events import Listener


def run(schedule: Schedule, root: Path, listen: Listener) -> Iterator[Outcome]:
    """Compute tasks; events are passed on when a stage has ended."""
    while task := schedule.next():
        path = path_of(root, task.stage.NAME, task.stage.key)
        offset = path.stat().st_size if path.exists() else 0
        outcome = _asked(task, root, "compute")
        for event in read(path, offset)[0]:
            listen(source_of(task), event)
        schedule.settle(outcome)
        yield outcome


def check(tasks: Sequence[Task], root: Path) -> Iterator[Outcome]:
    """Refuse what cannot work, before anything is spent."""
    for task in tasks:
        yield _asked(task, root, "check")


def _asked(task: Task, root: Path, what: str) -> Outcome:
    asked = {"do": what, "store": str(root.resolve()), "order": task.stage.order()}
    return Outcome(task=task, error=worker.answer(asked).get("error"))
