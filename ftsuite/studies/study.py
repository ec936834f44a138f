"""A study on disk, and its cells' status.

Layout, below `<store>/studies/<study>/`:

```
study.json             the cells of the latest command, or of all that run at once
graph.json             their stages, for who watches
<run_id>.json          a cell's record
<run_id>.lease         held while the cell runs: a record 'running' means what it says
study.lease            held for an instant, while a command joins
finish.lease           held while the report is written
commands/<token>.json  the cells of a command that runs; its lease beside it
```
"""

from __future__ import annotations

import sys
import uuid
from contextlib import contextmanager
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
AT_ONCE = " & "
"""Between the commands of a study that ran at once, as in a shell."""

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ftsuite.store.holders import Holder


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


@contextmanager
def command(root: Path, manifest: StudyManifest) -> Iterator[StudyManifest]:
    """Run the cells of `manifest` as one command of its study; hold this around all of them.

    Commands of one study that run at the same time share its `study.json` (`joined`).

    Yields:
        What `study.json` says at the beginning; a later command may add cells.
    """
    here = folder(root, manifest.study)
    mine = here / "commands" / f"{uuid.uuid4().hex}.json"
    with leases.held(mine.with_suffix("")):
        try:
            with _alone(here / "study", f"{manifest.study}: another command is beginning"):
                _forget_ended(mine.parent)
                whole = joined(root, manifest)
                jsonfile.write(here / "study.json", whole)
                jsonfile.write(mine, manifest)
            yield whole
        finally:
            mine.unlink(missing_ok=True)


def joined(root: Path, manifest: StudyManifest) -> StudyManifest:
    """What `study.json` becomes when a command with the cells of `manifest` begins.

    `manifest` alone where no other command of the study runs. Else the older commands' cells
    first: those of commands that still run, and those that are complete.
    """
    running = _running(root, manifest.study)
    if not running:
        return manifest
    wanted = {cell.run_id for other in running for cell in other.cells}
    try:
        before = read_manifest(root, manifest.study)
    except StoreError:
        # Damaged; what runs is known without it.
        before = running[0]
    kept = [
        cell
        for cell in before.cells
        if cell.run_id in wanted or _is_complete(record_path(root, manifest.study, cell.run_id))
    ]
    return _united([replace(before, cells=tuple(kept)), *running, manifest])


def together(root: Path, mine: StudyManifest) -> tuple[StudyManifest, list[RunRecord]]:
    """The study as it is now, of which `mine` is one command's part.

    Returns:
        The manifest of all cells, and the records that other commands' cells have so far.
    """
    try:
        whole = _united([read_manifest(root, mine.study), mine])
    except StoreError:
        return mine, []
    own = {cell.run_id for cell in mine.cells}
    paths = [record_path(root, mine.study, c.run_id) for c in whole.cells if c.run_id not in own]
    return whole, [read_run(path) for path in paths if path.exists()]


def _running(root: Path, study: str) -> list[StudyManifest]:
    """The commands of `study` that run, the oldest first."""
    found = []
    for path in (folder(root, study) / "commands").glob("*.json"):
        holder = leases.holder(path.with_suffix(""))
        try:
            if holder is not None:
                found.append((holder.started, path.stem, jsonfile.read(StudyManifest, path)))
        except StoreError:
            if path.exists():
                raise  # else it has just ended
    return [manifest for *_, manifest in sorted(found, key=lambda one: one[:2])]


def _forget_ended(commands: Path) -> None:
    """Remove what killed commands have left behind."""
    for path in commands.glob("*.json"):
        if leases.holder(path.with_suffix("")) is None:
            path.with_suffix(".lease").unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _united(manifests: list[StudyManifest]) -> StudyManifest:
    """The cells of all, each once, and the commands of all; no two cells have one label."""
    cells: dict[str, CellEntry] = {}
    labels: set[str] = set()
    for cell in (cell for manifest in manifests for cell in manifest.cells):
        if cell.run_id not in cells:
            # Two commands may differ in what neither sweeps.
            label = f"{cell.label} {cell.run_id[:6]}" if cell.label in labels else cell.label
            cells[cell.run_id] = replace(cell, label=label)
            labels.add(label)
    lines = dict.fromkeys(line for one in manifests for line in one.command.split(AT_ONCE))
    return replace(manifests[-1], command=AT_ONCE.join(lines), cells=tuple(cells.values()))


def _is_complete(path: Path) -> bool:
    try:
        return jsonfile.read(RunRecord, path).status == "complete"
    except StoreError:
        return False


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
    mine = [entries[run_id(config)] for config in configs]
    return [
        Cell(
            study=manifest.study,
            config=config,
            entry=entry,
            place=f"{number}/{total} {entry.label}",
            command=manifest.command,
        )
        for number, (config, entry) in enumerate(zip(configs, mine, strict=True), start=1)
    ]


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the run's lease: while it is held, a record 'running' means what it says."""
    with _alone(path.with_suffix(""), f"{path.stem}: another process is running this cell"):
        yield


@contextmanager
def claimed_if_free(path: Path) -> Iterator[bool]:
    """Hold the run's lease if nobody does; the value says whether it was free."""
    with leases.held_if_free(path.with_suffix("")) as lease:
        yield lease is not None


@contextmanager
def finishing(root: Path, study: str) -> Iterator[None]:
    """Hold the study's end: only one process at a time writes its report and tracks its runs."""
    path = folder(root, study) / "finish"
    with _alone(path, f"{study}: another process is writing the report"):
        yield


@contextmanager
def _alone(path: Path, who: str) -> Iterator[None]:
    with leases.held(path, on_wait=_telling(who)):
        yield


def _telling(who: str) -> Callable[[Holder], None]:
    return lambda holder: print(f"{who} ({holder}); waiting", flush=True)


def read_run(path: Path) -> RunRecord:
    """Read a run's record; one that says 'running' while nobody runs it is 'interrupted'."""
    record = jsonfile.read(RunRecord, path)
    if record.status != "running" or leases.holder(path.with_suffix("")) is not None:
        return record
    return _ended_run(path)


def settled_run(path: Path) -> RunRecord:
    """Read a run's record once nobody runs it any more, so that it never says 'running'."""
    if jsonfile.read(RunRecord, path).status == "running":
        who = f"{path.stem}: another process is running this cell"
        leases.wait(path.with_suffix(""), on_wait=_telling(who))
    return _ended_run(path)


def _ended_run(path: Path) -> RunRecord:
    # Read again: it may have ended between the first reading and the look at the lease.
    record = jsonfile.read(RunRecord, path)
    return replace(record, status="interrupted") if record.status == "running" else record


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
