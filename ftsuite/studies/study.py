"""A study on disk: `<store>/studies/<study>/{study.json,<run_id>.json}`, and its cells' status."""

from __future__ import annotations

import sys
import time
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ftsuite import jsonfile
from ftsuite.config import RunConfig, identity
from ftsuite.errors import StoreError, one_line
from ftsuite.jsonfile import digest
from ftsuite.records import CellEntry, RunRecord, StudyManifest
from ftsuite.store import leases

NO_RUNS = ("study.json", "graph.json")
"""Files of a study's folder that are no run's record."""
UNNAMED = "single"
"""Study of runs that are no sweep and have no name."""

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ftsuite.store.leases import Holder


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
    """Hold the run's lease: while it is held, a record 'running' means what it says."""
    with _alone(path, f"{path.stem}: another process is running this cell"):
        yield


@contextmanager
def claimed_if_free(path: Path) -> Iterator[bool]:
    """Hold the run's lease if nobody does; the value says whether it was free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with leases.held_if_free(path) as lease:
        yield lease is not None


@contextmanager
def finishing(root: Path, study: str) -> Iterator[None]:
    """Hold the study's lease: only one process at a time writes its report and tracks its runs."""
    with _alone(folder(root, study) / "finish", f"{study}: another process is writing the report"):
        yield


@contextmanager
def command(root: Path, manifest: StudyManifest) -> Iterator[StudyManifest]:
    """Make a command known while it runs; the study's cells are those of all that run now.

    Commands that have ended before leave their runs in the store, but not in the manifest.

    Args:
        root: the store.
        manifest: the command's own cells.
    """
    mine = folder(root, manifest.study) / "commands" / f"{time.time_ns()}-{uuid.uuid4().hex}.json"
    with _alone(mine, ""):
        jsonfile.write(mine, manifest)
        try:
            with _alone(folder(root, manifest.study) / "study.json", "study.json is being written"):
                whole = _union(_running(mine.parent))
                write_manifest(root, whole)
            yield whole
        finally:
            mine.unlink()


def _running(commands: Path) -> list[StudyManifest]:
    """Manifests of the commands that run now, the oldest first; those of ended ones are removed."""
    found = []
    for path in sorted(commands.glob("*.json")):
        if leases.holder(path):
            found.append(jsonfile.read(StudyManifest, path))
        elif lease := leases.acquire(path):
            # It was killed.
            path.unlink(missing_ok=True)
            lease.release()
    return found


def _union(manifests: list[StudyManifest]) -> StudyManifest:
    cells = {cell.run_id: cell for manifest in manifests for cell in manifest.cells}
    lines = dict.fromkeys(manifest.command for manifest in manifests)
    return replace(manifests[0], command=" & ".join(lines), cells=tuple(cells.values()))


@contextmanager
def _alone(path: Path, who: str) -> Iterator[None]:
    def tell(holder: Holder) -> None:
        print(f"{who} ({holder.host}, process {holder.pid}); waiting", flush=True)

    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(leases.held(path, tell))
        except OSError as error:
            reason = f"cannot be locked ({error.strerror}); mend that"
            raise StoreError(f"{path}: {reason}") from error
        yield


def read_run(path: Path) -> RunRecord:
    """Read a run's record; where it says 'running' and nobody holds its lease: 'interrupted'."""
    record = jsonfile.read(RunRecord, path)
    if record.status != "running" or leases.holder(path) is not None:
        return record
    # It may have ended between the reading and the look at the lease.
    record = jsonfile.read(RunRecord, path)
    return replace(record, status="interrupted") if record.status == "running" else record


def settled_run(path: Path) -> RunRecord:
    """Read a run's record once nobody runs it any more, so that it never says 'running'."""
    if jsonfile.read(RunRecord, path).status == "running":
        with claimed(path):
            pass
    return read_run(path)


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
        paths = [p for p in manifest_path.parent.glob("*.json") if p.name not in NO_RUNS]
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
