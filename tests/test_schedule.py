"""The order of a study's stages, on tasks that compute nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hypothesis import given
from hypothesis import strategies as st

from ftsuite.executors.schedule import Outcome, Schedule, Task
from ftsuite.store.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

ERROR = {"kind": "StageError", "message": "no", "traceback": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made(Stage[str]):
    NAME: ClassVar = "made"
    VERSION: ClassVar = 1
    FUNCTION: ClassVar = "nowhere:nothing"
    RECORD: ClassVar = str

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Together(Made):
    NAME: ClassVar = "together"
    MANY: ClassVar = "nowhere:many"

    @property
    def together(self) -> str:
        return self.name[0]


def task(name: str, *needs: Task, cells: Sequence[str] = ("a",), kind: type[Made] = Made) -> Task:
    return Task(
        stage=kind(name=name),
        name=name,
        place="",
        run_ids=tuple(cells),
        needs=frozenset(one.stage.key for one in needs),
    )


def names(tasks: Sequence[Task]) -> list[str]:
    return [one.name for one in tasks]


def test_cells_are_finished_one_after_another() -> None:
    shared = task("data", cells=("a", "b"))
    first = task("train a", shared)
    second = task("train b", shared, cells=("b",))
    last = task("score a", first)
    schedule = Schedule([shared, first, last, second])
    order = []
    while tasks := schedule.next():
        order += names(tasks)
        schedule.settle(Outcome(task=tasks[0]))
    assert order == ["data", "train a", "score a", "train b"]
    assert not schedule.waiting and not schedule.running


def test_nothing_begins_before_what_it_needs() -> None:
    first = task("one")
    second = task("two", first)
    schedule = Schedule([first, second])
    assert names(schedule.next()) == ["one"]
    assert schedule.next() == []
    schedule.settle(Outcome(task=first))
    assert names(schedule.next()) == ["two"]


def test_a_failed_stage_fails_the_cells_that_need_it_and_no_others() -> None:
    shared = task("data", cells=("a", "b"))
    bad = task("train a", shared)
    after = task("score a", bad)
    good = task("train b", shared, cells=("b",))
    both = task("base", cells=("a", "b"))
    schedule = Schedule([shared, bad, after, good, both])
    schedule.settle(Outcome(task=schedule.next()[0]))
    (running,) = schedule.next()
    schedule.settle(Outcome(task=running, error=ERROR))
    left = []
    while tasks := schedule.next():
        left += names(tasks)
        schedule.settle(Outcome(task=tasks[0]))
    assert left == ["train b", "base"]
    assert not schedule.waiting


def test_what_belongs_together_begins_together_and_is_shared_between_workers() -> None:
    scores = [task(f"x{n}", kind=Together) for n in range(4)]
    others = [task("y", kind=Together), task("z")]
    assert names(Schedule([*scores, *others]).next()) == ["x0", "x1", "x2", "x3"]
    schedule = Schedule([*scores, *others])
    assert names(schedule.next(idle=2)) == ["x0", "x1"]
    assert names(schedule.next(idle=1)) == ["x2", "x3"]
    assert names(schedule.next()) == ["y"]
    assert names(schedule.next()) == ["z"]


@given(st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 20))), max_size=20), st.data())
def test_everything_ends_whatever_fails(
    drawn: list[tuple[int, list[int]]], data: st.DataObject
) -> None:
    tasks: list[Task] = []
    for number, (cell, needs) in enumerate(drawn):
        needed = [tasks[need] for need in needs if need < len(tasks)]
        # A cell that needs a task needs what that task needs.
        made = task(f"{number}", *needed, cells=(str(cell),))
        tasks.append(made)
    cells: dict[str, set[str]] = {one.stage.key: set(one.run_ids) for one in tasks}
    for one in reversed(tasks):
        for need in one.needs:
            cells[need] |= cells[one.stage.key]
    tasks = [dataclasses.replace(t, run_ids=tuple(sorted(cells[t.stage.key]))) for t in tasks]
    schedule = Schedule(tasks)
    done, failed = set[str](), set[str]()
    while schedule.waiting or schedule.running:
        (one,) = schedule.next()
        assert one.needs <= done
        assert not set(one.run_ids) <= failed
        if data.draw(st.booleans()):
            done.add(one.stage.key)
            schedule.settle(Outcome(task=one))
        else:
            failed |= set(one.run_ids)
            schedule.settle(Outcome(task=one, error=ERROR))
    whole = [one for one in tasks if not set(one.run_ids) <= failed]
    assert {one.stage.key for one in whole} <= done
