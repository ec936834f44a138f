"""A study from its composed cells to their records: what is missing is computed, once."""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite import devices, jsonfile, progress
from ftsuite.choices import Keep
from ftsuite.errors import FtsuiteError
from ftsuite.events import Source
from ftsuite.executors import local
from ftsuite.executors.inline import Inline
from ftsuite.executors.schedule import WORKER_DIED, Outcome, Schedule, Task
from ftsuite.store.computing import lookup
from ftsuite.studies import cells as records
from ftsuite.studies import graph, keep, study
from ftsuite.training import fidelity
from ftsuite.worker import error_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftsuite.events import Event, Listener
    from ftsuite.records import RunRecord, StudyManifest
    from ftsuite.studies.graph import Planned, Unplanned
    from ftsuite.studies.study import Cell

PREPARATION = "preparation"
"""What a record calls what went wrong before any stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A study whose cells are planned, and what of it is missing."""

    manifest: StudyManifest
    root: Path
    planned: Sequence[Planned | Unplanned]
    tasks: Sequence[Task]

    @property
    def num_stored(self) -> int:
        """Cells of which nothing has to be computed."""
        missing = {run_id for task in self.tasks for run_id in task.run_ids}
        ready = (one for one in self.planned if isinstance(one, graph.Planned))
        return sum(one.cell.entry.run_id not in missing for one in ready)


def prepare(manifest: StudyManifest, cells: Sequence[Cell], root: Path) -> Prepared:
    """Find the cells' base models and what of their stages is missing.

    Args:
        manifest: of the command.
        cells: its cells, in order.
        root: the store.

    Raises:
        BackendUnavailable: a cell asks for a device that is not there.
    """
    planned = graph.plan(cells, root, devices.probe(), progress.note)
    ready = [one for one in planned if isinstance(one, graph.Planned)]
    path = study.folder(root, manifest.study) / "graph.json"
    jsonfile.write(path, graph.for_watchers(manifest.study, ready))
    return Prepared(manifest=manifest, root=root, planned=planned, tasks=graph.missing(ready, root))


def run(prepared: Prepared, listen: Listener) -> list[str]:
    """Compute what is missing and leave every cell's record; a failure becomes a record too.

    A complete record stays in its place until a stage has to be computed: to run a finished cell
    again changes nothing, whenever it is killed. Only what the user or the kernel interrupts is
    left with the status 'running', which readers see as 'interrupted'.

    Args:
        prepared: the study.
        listen: told of every event of every stage, and of every cell that ends.

    Returns:
        Each cell's status, in order.

    Raises:
        StoreError: a record cannot be written.
    """
    config = prepared.planned[0].cell.config
    with _Study(prepared, listen) as running:
        if config.executor.name == "inline":
            running.go(Inline(prepared.root))
        else:
            tasks = len(prepared.tasks)
            with local.workers(prepared.root, config.executor, config.backend, tasks) as workers:
                running.go(workers)
        return running.statuses()


class _Study:
    """The cells of a study while their stages are computed."""

    def __init__(self, prepared: Prepared, listen: Listener) -> None:
        planned, tasks, root = prepared.planned, prepared.tasks, prepared.root
        manifest = prepared.manifest
        self._planned = {one.cell.entry.run_id: one for one in planned}
        self._listen = listen
        self._tasks, self._root = tasks, root
        self._schedule = Schedule(tasks)
        self._left: dict[str, set[str]] = {run_id: set() for run_id in self._planned}
        for task in tasks:
            for run_id in task.run_ids:
                self._left[run_id].add(task.stage.key)
        self._was_missing = {run_id: bool(left) for run_id, left in self._left.items()}
        self._computed: dict[str, set[str]] = {run_id: set() for run_id in self._planned}
        self._statuses: dict[str, str] = {}
        self._kept: list[RunRecord] = []
        self._claims = ExitStack()
        self._claimed: dict[str, tuple[ExitStack, bool]] = {}
        self._manifest, self._store = manifest, planned[0].cell.config.store
        self._others: frozenset[str] = frozenset()
        if self._store.keep is not Keep.all:
            self._others = keep.elsewhere(root, manifest.study)
        self._said = set[str]()

    def __enter__(self) -> _Study:
        return self

    def __exit__(self, *_: object) -> None:
        self._claims.close()

    def statuses(self) -> list[str]:
        """Each cell's status, in order."""
        return [self._statuses[run_id] for run_id in self._planned]

    def go(self, executor: Inline | local.Workers) -> None:
        """Compute what is missing, and leave a record of each cell."""
        self._refuse(executor)

        def told(source: Source, event: Event) -> None:
            if event["kind"] == "state" and event["state"] == "started":
                self._begin(source)
            self._listen(source, event)

        for outcome in executor.run(self._schedule, told):
            self._settle(outcome)

    def _refuse(self, executor: Inline | local.Workers) -> None:
        """Give up the cells that cannot work, before anything is computed; settle what is there."""
        for run_id, one in self._planned.items():
            if isinstance(one, graph.Unplanned):
                self._fail(run_id, PREPARATION, error_of(one.error))
                continue
            try:
                self._say_stored(run_id, one)
            except FtsuiteError as error:
                # A stored result that cannot be read fails its cells alone.
                self._fail(run_id, PREPARATION, error_of(error))
        for outcome in executor.check([task for task in self._tasks if task.stage.CHECK]):
            if outcome.error is not None:
                for run_id in outcome.task.run_ids:
                    self._fail(run_id, PREPARATION, outcome.error)
        for run_id, left in self._left.items():
            if not left and run_id not in self._statuses:
                self._complete(run_id)

    def _settle(self, outcome: Outcome) -> None:
        """Take note of a stage that has ended, and of the cells that end with it."""
        task = outcome.task
        if outcome.error is not None:
            # The display has said what a stage told; a dead worker tells nothing.
            is_said = outcome.error["kind"] != WORKER_DIED
            for run_id in task.run_ids:
                self._fail(run_id, task.name, outcome.error, is_said=is_said)
            return
        self._computed[task.run_ids[0]].add(task.stage.key)
        for run_id in task.run_ids:
            self._left[run_id].discard(task.stage.key)
            one = self._planned[run_id]
            assert isinstance(one, graph.Planned)
            if run_id in self._statuses:
                continue
            try:
                if task.stage.key == one.recipe.data.key:
                    self._say_notes(one)
                if task.stage.key == one.recipe.check.key:
                    self._judge(one)
            except FtsuiteError as error:
                self._fail(run_id, task.name, error_of(error))
            if not self._left[run_id] and run_id not in self._statuses:
                self._complete(run_id)

    def _judge(self, one: Planned) -> None:
        """Refuse a merged model that is not its adapter, before it is scored.

        Raises:
            StageError: they differ by more than the cell's tolerance.
        """
        check = lookup(self._root, one.recipe.check)
        merged = lookup(self._root, one.recipe.merged)
        assert check is not None and merged is not None
        fidelity.require_fidelity(
            fidelity.summary(merged.record, check.record, one.cell.config.merge)
        )

    def _begin(self, source: Source) -> None:
        """Write 'running' for the first cell that needs a stage, once."""
        run_id = source.run_ids[0]
        if run_id in self._claimed or run_id in self._statuses:
            return
        one = self._planned[run_id]
        path = self._path(run_id)
        claim = self._claims.enter_context(ExitStack())
        # Another command may have this cell in hand; then it is the one that says so.
        is_mine = claim.enter_context(study.claimed_if_free(path))
        self._claimed[run_id] = (claim, is_mine)
        if is_mine:
            jsonfile.write(path, records.begun(one.cell, one.target))

    def _complete(self, run_id: str) -> None:
        one = self._planned[run_id]
        assert isinstance(one, graph.Planned)
        record = records.begun(one.cell, one.target)
        try:
            record = records.complete(
                record, one.cell.config, one.base, one.recipe, self._root, self._computed[run_id]
            )
        except FtsuiteError as error:
            self._fail(run_id, PREPARATION, error_of(error))
        else:
            self._write(run_id, record)

    def _fail(
        self, run_id: str, stage: str, error: dict[str, Any], *, is_said: bool = False
    ) -> None:
        if run_id in self._statuses:
            return
        one = self._planned[run_id]
        record = records.begun(one.cell, one.target)
        record = records.failed(record, stage, error, self._path(run_id))
        if isinstance(one, graph.Planned):
            there = records.stages_there(one.recipe, self._root, self._computed[run_id])
            record = records.with_stages(record, there)
        assert record.failure is not None
        if not is_said:
            progress.note(one.cell.place, f"failed: {record.failure.message}")
        self._schedule.fail([run_id])
        self._write(run_id, record)

    def _write(self, run_id: str, record: RunRecord) -> None:
        """Write a cell's record, unless what is there tells more."""
        path = self._path(run_id)
        was_begun = run_id in self._claimed
        claim, is_mine = self._claimed.pop(run_id, (ExitStack(), False))
        with claim, nullcontext() if is_mine else study.claimed(path):
            earlier = records.previous(path)
            if earlier and records.same_results(earlier, record):
                # Nothing was computed, so the record still tells of the run that did.
                record = records.with_provenance(record, earlier.provenance)
            is_lost = record.status == "failed" and not was_begun
            # Nothing was computed and the run failed: what was complete before still is.
            if not (is_lost and earlier is not None and earlier.status == "complete"):
                jsonfile.write(path, record)
        self._statuses[run_id] = record.status
        if self._was_missing[run_id]:
            self._tell_end(run_id, record)
        self._free(record)

    def _tell_end(self, run_id: str, record: RunRecord) -> None:
        place = self._planned[run_id].cell.place
        source = Source(stage="cell", key=run_id, name="", place=place, run_ids=(run_id,))
        event = {"time": time.time(), "kind": "cell", "run_id": run_id, "status": record.status}
        self._listen(source, event)

    def _free(self, record: RunRecord) -> None:
        """Free what `store.keep` gives up: a disk must not fill while the sweep goes on."""
        config = self._store
        if config.keep is Keep.all:
            return
        self._kept.append(record)
        needed = {
            one.recipe.merged.key
            for run_id, one in self._planned.items()
            if isinstance(one, graph.Planned) and run_id not in self._statuses
        }
        for line in keep.after_cell(
            config, self._root, self._manifest, self._kept, needed=needed, others=self._others
        ):
            progress.note(record.label, line)

    def _path(self, run_id: str) -> Path:
        return study.record_path(self._root, self._planned[run_id].cell.study, run_id)

    def _say_stored(self, run_id: str, one: Planned) -> None:
        total, left = len(list(one.recipe.named())), len(self._left[run_id])
        if left < total:
            progress.note(one.cell.place, f"{total - left} of {total} stages are in the store")
        if one.recipe.data.key not in self._left[run_id]:
            self._say_notes(one)

    def _say_notes(self, one: Planned) -> None:
        """Say once a study what is to be said of its cells' data."""
        entry = lookup(self._root, one.recipe.data)
        assert entry is not None
        for text in records.notes(one.cell.config, entry.record):
            if text not in self._said:
                self._said.add(text)
                progress.note(one.cell.place, f"note: {text}")
