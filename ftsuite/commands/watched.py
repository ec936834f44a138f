"""A study in the store as others compute it: which stages run, and how its cells stand."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite import events, jsonfile, stagelines
from ftsuite.display import Board, encoding_of
from ftsuite.errors import StoreError
from ftsuite.events import Source
from ftsuite.graphrecords import StudyGraph
from ftsuite.stagestate import CellCounts
from ftsuite.store import holders, leases
from ftsuite.store.entries import folder_of
from ftsuite.studies import study

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftsuite.records import StudyManifest

QUIET_SECONDS = 60.0
"""A stage of another host that is silent for so long is not running: workers tell every 2 s."""


@dataclass(slots=True)
class _Tail:
    """How far a file of events was read."""

    offset: int = 0
    size: int = -1
    grown_at: float | None = None
    """When it was last seen to grow, on this process's clock."""


class Watched:
    """A study in the store as it was at the last look: what runs, and how its cells stand."""

    def __init__(self, root: Path, name: str, say: Callable[[str], None]) -> None:
        """Find the study.

        Raises:
            StoreError: there is no such study, or no file says which stages it has.
        """
        self.name = name
        self.board = Board(CellCounts(total=0), encoding_of(sys.stdout), say)
        self.elapsed = 0.0
        """Seconds from the study's command to its last sign of life, by the store's clock."""
        self._root, self._folder = root, study.folder(root, name)
        study.require_study(root, name)
        if not (self._folder / "graph.json").exists():
            raise StoreError(
                f"{name}: no graph.json, which a study has once its cells are planned; wait until "
                "then, or run it again if an earlier version made it"
            )
        self._read_at: tuple[int, int] | None = None
        self._began = 0.0
        self._manifest: StudyManifest
        self._sources: dict[str, Source] = {}
        self._tails: dict[str, _Tail] = {}
        self._stored = set[str]()
        self._records: dict[str, tuple[int, str, str]] = {}
        self._failed_now: list[str] = []
        self._alive_at = -math.inf
        """When something was last seen to be computed, on this process's clock."""

    @property
    def is_over(self) -> bool:
        """Whether every cell is complete or has failed in this command."""
        return not self.board.counts.remaining

    def look(self) -> None:
        """Read what is new in the store."""
        is_new = self._read_graph()
        # What happened before is caught up with in silence.
        self.board.is_silent = is_new
        self._look_at_stages(is_new=is_new)
        self._look_at_cells()
        self.board.is_silent = False

    def study_line(self) -> str:
        """How many cells are done, running, waiting and failed."""
        return stagelines.study_line(self.board.counts, self.elapsed, self.board.side_by_side)

    def hints(self) -> list[str]:
        """Why cells failed, and what to do where nothing runs."""
        counts = self.board.counts
        is_quiet = time.monotonic() - self._alive_at > QUIET_SECONDS
        if counts.remaining and not counts.running and is_quiet:
            going_on = f"nothing is running; the same command goes on: {self._manifest.command}"
            return [*self._failed_now, going_on]
        return self._failed_now

    def _read_graph(self) -> bool:
        """Read which stages there are, if another command has written it anew."""
        paths = [self._folder / name for name in ("graph.json", "study.json")]
        read_at = (paths[0].stat().st_mtime_ns, paths[1].stat().st_mtime_ns)
        if read_at == self._read_at:
            return False
        graph = jsonfile.read(StudyGraph, paths[0])
        self._manifest = study.read_manifest(self._root, self.name)
        self._read_at, self._began = read_at, read_at[0] / 1e9
        self._sources = {}
        for cell in graph.cells:
            for one in cell.stages:
                known = self._sources.get(one.key) or Source(
                    stage=one.stage, key=one.key, name=one.name, place=cell.place, run_ids=()
                )
                run_ids = (*known.run_ids, cell.run_id)
                self._sources[one.key] = dataclasses.replace(known, run_ids=run_ids)
        return True

    def _look_at_stages(self, *, is_new: bool) -> None:
        """Read the events of stages that are not done, from one listing a kind of stage."""
        kinds = {source.stage for source in self._sources.values()}
        listed = {kind: _listed(self._root / kind) for kind in kinds}
        newest = self._began
        for key, source in self._sources.items():
            there = listed[source.stage]
            path = events.path_of(self._root, source.stage, key)
            if path.name not in there or (key in self._stored):
                continue
            if is_new and key[:24] in there:
                self._stored.add(key)
                continue
            stat = there[path.name].stat()
            newest = max(newest, stat.st_mtime)
            self._read_events(source, path, stat)
            if key[:24] in there:
                self._stored.add(key)
                self.board.running.pop(key, None)
        if abs(time.time() - newest) < QUIET_SECONDS:
            self._alive_at = time.monotonic()
        self.elapsed = max(self.elapsed if not is_new else 0.0, newest - self._began)

    def _read_events(self, source: Source, path: Path, stat: os.stat_result) -> None:
        tail = self._tails.setdefault(source.key, _Tail())
        if stat.st_size < tail.size:
            # Made anew.
            tail.offset = 0
        if stat.st_size != tail.size:
            if tail.size >= 0:
                tail.grown_at = self._alive_at = time.monotonic()
            tail.size = stat.st_size
            found, tail.offset = events.read(path, tail.offset)
            for event in found:
                self.board.listen(source, event)
        if _is_computed(folder_of(self._root, source.stage, source.key), stat, tail):
            self.board.quiet.discard(source.key)
        else:
            self.board.quiet.add(source.key)

    def _look_at_cells(self) -> None:
        """Count the cells by what their records say."""
        listed, cells = _listed(self._folder), self._manifest.cells
        at_work, running = self.board.cells_at_work(), 0
        counts = CellCounts(total=len(cells))
        self._failed_now = []
        for number, cell in enumerate(cells, start=1):
            entry = listed.get(f"{cell.run_id}.json")
            changed = entry.stat().st_mtime_ns if entry else 0
            status, message = self._status(Path(entry.path), changed) if entry else ("", "")
            is_of_now = changed / 1e9 >= self._began
            # A cell that failed in an earlier command waits to be run again.
            if status == "failed" and is_of_now:
                self._failed_now.append(f"[{number}/{len(cells)} {cell.label}] failed: {message}")
            elif status == "complete":
                counts.done += 1
            elif cell.run_id in at_work:
                running += 1
            if is_of_now and status in ("complete", "failed"):
                counts.ended_at.append(changed / 1e9 - self._began)
        counts.running, counts.failed = running, len(self._failed_now)
        counts.ended_at.sort()
        self.elapsed = max([self.elapsed, *counts.ended_at])
        self.board.counts = counts

    def _status(self, path: Path, changed: int) -> tuple[str, str]:
        """Status and failure of a run's record, read again when it has changed."""
        known = self._records.get(path.name)
        if known is None or known[0] != changed:
            # Whole records are large, and a study may have a thousand.
            plain = json.loads(path.read_text(encoding="utf-8"))
            failure = plain.get("failure") or {}
            known = (changed, plain["status"], failure.get("message", ""))
            self._records[path.name] = known
        return known[1], known[2]


def _listed(folder: Path) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except FileNotFoundError:
        return {}


def _is_computed(entry: Path, stat: os.stat_result, tail: _Tail) -> bool:
    """Whether a process computes a stage that has begun and not ended.

    A process of this host is believed while it lives. Whether another host's does, its events tell.
    """
    by = leases.holder(entry)
    if by is None:
        return False
    if holders.is_here(by):
        return True
    if tail.grown_at is not None and time.monotonic() - tail.grown_at < QUIET_SECONDS:
        return True
    return abs(time.time() - stat.st_mtime) < QUIET_SECONDS
