"""Which stage is computed next: the union of a study's missing stages, and what has become of them.

The order is that of the cells, so that one cell is finished after another where that costs nothing.
A failed stage fails the cells that need it and no others; a stage that only failed cells need is
not begun.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.events import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ftsuite.store.stage import Stage


WORKER_DIED = "WorkerDied"
"""Kind of the error of a task whose worker ended without an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A stage to be computed."""

    stage: Stage[Any]
    name: str
    """What the study calls it, such as 'eval-tuned intent_test'."""
    place: str
    """The first cell that needs it, such as '2/4 lora.r=4'."""
    run_ids: tuple[str, ...]
    """All cells that need it."""
    needs: frozenset[str]
    """Keys of the tasks that have to be done before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a task."""

    task: Task
    error: dict[str, Any] | None = None
    """kind, message and traceback (empty unless it is a bug); None where the result is there."""


class Schedule:
    """The tasks that wait, those that can begin, and those that are running."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        """Begin with all tasks waiting; they are in the order in which they should begin."""
        self._tasks = {task.stage.key: task for task in tasks}
        self._place = {key: place for place, key in enumerate(self._tasks)}
        self._needs = {key: set(task.needs) for key, task in self._tasks.items()}
        self._needed_by: dict[str, list[str]] = {}
        for key, task in self._tasks.items():
            for need in task.needs:
                self._needed_by.setdefault(need, []).append(key)
        self._left = {run_id: set[str]() for task in tasks for run_id in task.run_ids}
        for key, task in self._tasks.items():
            for run_id in task.run_ids:
                self._left[run_id].add(key)
        self._failed_cells = set[str]()
        self._ready: list[int] = []
        self._keys = list(self._tasks)
        self._groups: dict[tuple[str, str], set[str]] = {}
        self.waiting = set(self._tasks)
        """Keys of the tasks that have not begun."""
        self.running = set[str]()
        for key, needs in self._needs.items():
            if not needs:
                self._offer(key)

    def next(self, idle: int = 1) -> list[Task]:
        """The first task that can begin now, with those that are best computed together with it.

        They are marked as running; none where none can begin.

        Args:
            idle: workers that wait for tasks: they share what can be computed together.
        """
        while self._ready:
            key = self._keys[heapq.heappop(self._ready)]
            if key in self.waiting:
                break
        else:
            return []
        together = self._groups.get(_group(self._tasks[key]), {key}) & self.waiting
        keys = sorted(together, key=self._place.__getitem__)[: math.ceil(len(together) / idle)]
        # What was first is in: it is the first of its group.
        self.waiting.difference_update(keys)
        self.running.update(keys)
        return [self._tasks[one] for one in keys]

    def settle(self, outcome: Outcome) -> None:
        """Take note of an outcome; a failed task fails all cells that need it."""
        key = outcome.task.stage.key
        self.running.discard(key)
        if outcome.error is not None:
            self.fail(outcome.task.run_ids)
            return
        for other in self._needed_by.get(key, ()):
            self._needs[other].discard(key)
            if not self._needs[other] and other in self.waiting:
                self._offer(other)

    def fail(self, run_ids: Iterable[str]) -> None:
        """Give cells up: what no other cell needs is not begun any more."""
        for run_id in run_ids:
            if run_id in self._failed_cells:
                continue
            self._failed_cells.add(run_id)
            for key in self._left.get(run_id, ()):
                if self._failed_cells.issuperset(self._tasks[key].run_ids):
                    self.waiting.discard(key)

    def _offer(self, key: str) -> None:
        heapq.heappush(self._ready, self._place[key])
        task = self._tasks[key]
        if task.stage.MANY:
            self._groups.setdefault(_group(task), set()).add(key)


def _group(task: Task) -> tuple[str, str]:
    return task.stage.NAME, task.stage.together if task.stage.MANY else task.stage.key


def source_of(task: Task) -> Source:
    """Where a task's events come from."""
    return Source(
        stage=task.stage.NAME,
        key=task.stage.key,
        name=task.name,
        place=task.place,
        run_ids=task.run_ids,
    )
