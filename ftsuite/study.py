"""A study on disk: `<store>/studies/<study>/{study.json,<run_id>.json}`, and its cells' status."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ftsuite import jsonfile
from ftsuite.config import RunConfig, identity
from ftsuite.errors import StoreError
from ftsuite.records import CellEntry, RunRecord, StudyManifest
from ftsuite.store import digest

UNNAMED = "single"
"""Study of runs that are no sweep and have no name."""

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    return digest(identity(config, without=("study",)))[:12]


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
    path = folder(root, study) / "study.json"
    if not path.exists():
        known = ", ".join(sorted(p.parent.name for p in root.glob("studies/*/study.json")))
        raise StoreError(f"{study}: no such study in {root}; known are: {known or 'none'}")
    return jsonfile.read(StudyManifest, path)


def cell_of(config: RunConfig, root: Path) -> Cell:
    """Find the place of `config` in its study's manifest, which the sweep has written."""
    assert config.study is not None
    manifest = read_manifest(root, config.study)
    mine = run_id(config)
    for number, entry in enumerate(manifest.cells, start=1):
        if entry.run_id == mine:
            place = f"{number}/{len(manifest.cells)} {entry.label}"
            return Cell(
                study=config.study,
                config=config,
                entry=entry,
                place=place,
                command=manifest.command,
            )
    raise StoreError(
        f"{config.study}: another command has replaced the study's cells; run one at a time, or "
        "give each its own name with study=…"
    )


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the run's lock: while it is held, a record 'running' means what it says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{path.stem}: another process is running this cell; waiting", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def read_run(path: Path) -> RunRecord:
    """Read a run's record; one that says 'running' while nobody holds its lock is 'interrupted'."""
    record = jsonfile.read(RunRecord, path)
    if record.status != "running":
        return record
    try:
        with FileLock(path.with_suffix(".lock"), timeout=0):
            # It may have ended between the reading and the lock.
            record = jsonfile.read(RunRecord, path)
            running = record.status == "running"
            return replace(record, status="interrupted") if running else record
    except Timeout:
        return record


def all_runs(root: Path) -> list[tuple[Path, RunRecord]]:
    """Every run in the store with its record's path, by study and then in the study's order."""
    found: list[tuple[Path, RunRecord]] = []
    for manifest_path in sorted(root.glob("studies/*/study.json")):
        manifest = jsonfile.read(StudyManifest, manifest_path)
        order = {cell.run_id: place for place, cell in enumerate(manifest.cells)}
        paths = [p for p in manifest_path.parent.glob("*.json") if p.name != "study.json"]
        # Runs of earlier commands follow those of the latest.
        paths.sort(key=lambda p: (order.get(p.stem, len(order)), p.stem))
        found += [(path, read_run(path)) for path in paths]
    return found
