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


class Inline:
    """The executor that computes here."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Refuse what cannot work, before anything is spent."""
        for task in tasks:
            yield from self._asked([task], "check")

    def run(self, schedule: Schedule, listen: Listener) -> Iterator[Outcome]:
        """Compute tasks; the events of each are passed on when it has ended."""
        while tasks := schedule.next():
            offsets = {task.stage.key: self._size(task) for task in tasks}
            for outcome in self._asked(tasks, "compute"):
                stage = outcome.task.stage
                for event in read(path_of(self._root, stage.NAME, stage.key), offsets[stage.key])[
                    0
                ]:
                    listen(source_of(outcome.task), event)
                schedule.settle(outcome)
                yield outcome

    def _size(self, task: Task) -> int:
        path = path_of(self._root, task.stage.NAME, task.stage.key)
        return path.stat().st_size if path.exists() else 0

    def _asked(self, tasks: Sequence[Task], what: str) -> Iterator[Outcome]:
        by_key = {task.stage.key: task for task in tasks}
        orders = [task.stage.order() for task in tasks]
        asked = {"do": what, "store": str(self._root.resolve()), "orders": orders}
        for told in worker.answers_to(asked):
            yield Outcome(task=by_key[told["key"]], error=told.get("error"))
