"""Which stage is computed next: the union of a study's missing stages, and what has become of them.

The order is that of the cells, so that one cell is finished after another where that costs nothing.
A failed stage fails the cells that need it and no others; a stage that only failed cells need is
not begun.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ftsuite.events import Source

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ftsuite.store.stage import Stage


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


@dataclass(slots=True)
class Schedule:
    """The tasks that are waiting, running and settled."""

    waiting: dict[str, Task]
    """By key, in the order of the cells."""
    running: dict[str, Task] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    """Keys of those that are done or will never be."""
    failed_cells: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, tasks: Iterable[Task]) -> Schedule:
        """Begin with all tasks waiting."""
        return cls(waiting={task.stage.key: task for task in tasks})

    def next(self) -> Task | None:
        """The first task that can begin now, marked as running; None where none can."""
        for key, task in self.waiting.items():
            if not any(need in self.waiting or need in self.running for need in task.needs):
                self.running[key] = self.waiting.pop(key)
                return task
        return None

    def settle(self, outcome: Outcome) -> list[Task]:
        """Take note of an outcome; returns the tasks that nobody needs any more."""
        key = outcome.task.stage.key
        del self.running[key]
        self.settled.add(key)
        if outcome.error is None:
            return []
        return self.fail(outcome.task.run_ids)

    def fail(self, run_ids: Iterable[str]) -> list[Task]:
        """Give cells up; returns the tasks that nobody needs any more, no longer waiting."""
        self.failed_cells.update(run_ids)
        dropped = [
            task for task in self.waiting.values() if self.failed_cells.issuperset(task.run_ids)
        ]
        for task in dropped:
            del self.waiting[task.stage.key]
            self.settled.add(task.stage.key)
        return dropped


def source_of(task: Task) -> Source:
    """Where a task's events come from."""
    return Source(
        stage=task.stage.NAME,
        key=task.stage.key,
        name=task.name,
        place=task.place,
        run_ids=task.run_ids,
    )
