"""A study on disk: `<store>/studies/<study>/{study.json,<run_id>.json}`, and its cells' status."""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ftsuite import jsonfile
from ftsuite.config import RunConfig, identity
from ftsuite.errors import StoreError, one_line
from ftsuite.jsonfile import digest
from ftsuite.records import CellEntry, RunRecord, StudyManifest
from ftsuite.store.entries import holding

UNNAMED = "single"
"""Study of runs that are no sweep and have no name."""
READER_SECONDS = 0.2
"""How long a claim waits before it says that it does: a reader's look at a lock is shorter."""

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell to run: its configuration and its place in the study."""

    study: str
    config: RunConfig
    entry: CellEntry
    place: str
    """For the display, such as '2/4 lora.r=4'."""
    command: str


def run_id(config: RunConfig) -> str:
    """12 hex digits that identify a cell by its settings; the stages' keys say the rest."""
    return digest(identity(config))[:12]


def folder(root: Path, study: str) -> Path:
    """Where the records of `study` lie."""
    return root / "studies" / study


def record_path(root: Path, study: str, run: str) -> Path:
    """Where the record of one run lies."""
    return folder(root, study) / f"{run}.json"


def write_manifest(root: Path, manifest: StudyManifest) -> None:
    """Write `study.json`, the cells of the latest command."""
    jsonfile.write(folder(root, manifest.study) / "study.json", manifest)


def read_manifest(root: Path, study: str) -> StudyManifest:
    """Read `study.json` of a study.

    Raises:
        StoreError: there is no such study, or the file is not a manifest.
    """
    require_study(root, study)
    return jsonfile.read(StudyManifest, folder(root, study) / "study.json")


def require_study(root: Path, study: str) -> None:
    """Raise StoreError, with the names of the known, where there is no such study."""
    if not (folder(root, study) / "study.json").exists():
        known = ", ".join(sorted(p.parent.name for p in root.glob("studies/*/study.json")))
        raise StoreError(f"{study}: no such study in {root}; known are: {known or 'none'}")


def cells_of(manifest: StudyManifest, configs: Sequence[RunConfig]) -> list[Cell]:
    """The cells of a manifest with their configurations and places."""
    total = len(configs)
    entries = {entry.run_id: entry for entry in manifest.cells}
    return [
        Cell(
            study=manifest.study,
            config=config,
            entry=entries[run_id(config)],
            place=f"{number}/{total} {entries[run_id(config)].label}",
            command=manifest.command,
        )
        for number, config in enumerate(configs, start=1)
    ]


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the run's lock: while it is held, a record 'running' means what it says."""
    with _alone(path.with_suffix(".lock"), f"{path.stem}: another process is running this cell"):
        yield


@contextmanager
def claimed_if_free(path: Path) -> Iterator[bool]:
    """Hold the run's lock if nobody does; the value says whether it was free."""
    with holding(path.with_suffix(".lock")) as was_free:
        yield was_free


@contextmanager
def finishing(root: Path, study: str) -> Iterator[None]:
    """Hold the study's lock: only one process at a time writes its report and tracks its runs."""
    lock = folder(root, study) / "finish.lock"
    with _alone(lock, f"{study}: another process is writing the report"):
        yield


@contextmanager
def _alone(path: Path, who: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A reader holds it for an instant, which is not worth a word.
        lock.acquire(timeout=READER_SECONDS, poll_interval=0.02)
    except Timeout:
        print(f"{who}; waiting", flush=True)
        lock.acquire()
    except OSError as error:
        raise StoreError(f"{path}: cannot be locked ({error.strerror}); mend that") from error
    try:
        yield
    finally:
        lock.release()


def read_run(path: Path) -> RunRecord:
    """Read a run's record; one that says 'running' while nobody holds its lock is 'interrupted'."""
    record = jsonfile.read(RunRecord, path)
    if record.status != "running" or _is_held(path.with_suffix(".lock")):
        return record
    # It may have ended between the reading and the look at the lock.
    record = jsonfile.read(RunRecord, path)
    return replace(record, status="interrupted") if record.status == "running" else record


def settled_run(path: Path) -> RunRecord:
    """Read a run's record once nobody runs it any more, so that it never says 'running'."""
    if jsonfile.read(RunRecord, path).status == "running":
        with claimed(path):
            pass
    return read_run(path)


def _is_held(lock: Path) -> bool:
    """Whether a process holds `lock`; writes nothing, so that a store can be read-only."""
    try:
        handle = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared: readers are in nobody's way but a claim's, and there for an instant.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def all_runs(
    root: Path, *, on_broken: Callable[[StoreError], None] | None = None
) -> list[tuple[Path, RunRecord]]:
    """Every run in the store with its record's path, by study and then in the study's order.

    Args:
        root: the store.
        on_broken: told of every file that is no record, which is left out; by default a line on
            stderr tells.
    """
    tell = on_broken or tell_broken
    found: list[tuple[Path, RunRecord]] = []
    for manifest_path in sorted(root.glob("studies/*/study.json")):
        order: dict[str, int] = {}
        try:
            manifest = jsonfile.read(StudyManifest, manifest_path)
            order = {cell.run_id: place for place, cell in enumerate(manifest.cells)}
        except StoreError as error:
            tell(error)
        paths = [p for p in manifest_path.parent.glob("*.json") if p.name != "study.json"]
        # Runs of earlier commands follow those of the latest.
        paths.sort(key=lambda p: (order.get(p.stem, len(order)), p.stem))
        for path in paths:
            try:
                found.append((path, _own_run(path)))
            except StoreError as error:
                tell(error)
    return found


def _own_run(path: Path) -> RunRecord:
    record = read_run(path)
    if (record.study, record.run_id) != (path.parent.name, path.stem):
        raise StoreError(
            f"{path}: is the record of {record.study}/{record.run_id}; a copy has no place here, "
            "`ftsuite report FOLDER` reads one anywhere"
        )
    return record


def tell_broken(error: StoreError) -> None:
    """Say on stderr that a file of the store is left out, and why."""
    print(f"ftsuite: left out: {one_line(error)}", file=sys.stderr)
