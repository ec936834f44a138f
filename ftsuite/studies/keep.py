"""Which weights of a study stay in the store (`store.keep`), and whose a stored model is.

A merged model can be made again from the base and the adapter; adapters and records always stay.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftsuite import jsonfile
from ftsuite.choices import Keep
from ftsuite.errors import StoreError, one_line
from ftsuite.records import StudyManifest
from ftsuite.reporting import formats as fmt
from ftsuite.reporting.study import build
from ftsuite.store import pruning
from ftsuite.store.entries import folder_of, stored_files
from ftsuite.studies import study

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from ftsuite.config import StoreConfig
    from ftsuite.records import RunRecord

MERGE = "merge"
"""Stage whose files are a merged model."""
MANIFEST, GRAPH = "study.json", "graph.json"
"""Files of a study that are no run records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A study, as far as it says what has to stay in the store."""

    name: str
    records: tuple[RunRecord, ...]
    """Of all its runs, those of earlier commands included."""
    recommended: RunRecord | None
    """The cell that the report recommends."""
    problem: str
    """Why it recommends none; empty if there is one."""
    planned: frozenset[str]
    """Keys of the stages that its cells need, where the study has a graph.json."""

    @property
    def is_running(self) -> bool:
        """Whether a process is computing a cell of it."""
        return any(record.status == "running" for record in self.records)

    @property
    def kept(self) -> frozenset[str]:
        """Keys of the merged models that stay: the recommended cell's, or all if there is none."""
        chosen = (self.recommended,) if self.recommended else self.records
        return frozenset(key for record in chosen for key in merged_keys(record))


def merged_keys(record: RunRecord) -> list[str]:
    """Keys of the merged model that a run has made or used: one, or none."""
    return [stage.key for stage in record.stages if stage.stage == MERGE]


def held(root: Path, *, on_broken: Callable[[StoreError], None] | None = None) -> list[Held]:
    """Read what every study of the store holds.

    Args:
        root: the store.
        on_broken: told of files that are no records; a study with one recommends no cell.
    """
    runs = study.all_runs(root, on_broken=on_broken)
    by_study = {
        name: tuple(record for _, record in group)
        for name, group in itertools.groupby(runs, key=lambda run: run[0].parent.name)
    }
    folders = sorted(path.parent for path in root.glob(f"studies/*/{MANIFEST}"))
    return [_held(folder, by_study.get(folder.name, ())) for folder in folders]


def _held(folder: Path, records: tuple[RunRecord, ...]) -> Held:
    recommended, problem = None, ""
    there = [path for path in folder.glob("*.json") if path.name not in (MANIFEST, GRAPH)]
    try:
        manifest = jsonfile.read(StudyManifest, folder / MANIFEST)
    except StoreError:
        problem = "its study.json cannot be read"
    else:
        if len(there) > len(records):
            problem = f"{fmt.plural(len(there) - len(records), 'record')} cannot be read"
        elif folder.name == study.UNNAMED:
            problem = "its runs are no sweep"
        else:
            recommended, problem = recommendation(manifest, records)
    return Held(
        name=folder.name,
        records=records,
        recommended=recommended,
        problem=problem,
        planned=_planned(folder / GRAPH),
    )


def _planned(path: Path) -> frozenset[str]:
    if not path.is_file():
        return frozenset()
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return frozenset(stage["key"] for cell in cells for stage in cell["stages"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); delete it") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """The store's studies, and which cells made or used which entry."""

    studies: tuple[Held, ...]
    chosen: frozenset[str]
    """Names of the studies that the user means."""
    users: dict[str, list[tuple[Held, RunRecord]]]
    """Name of an entry's folder → its cells."""
    in_use: frozenset[str]
    """Entries that a running study, or a cell that is not complete, will read."""
    kept: frozenset[str]
    """Merged models of recommended cells, and of studies that recommend none."""
    planned: frozenset[str]
    """Entries that a study's graph names."""
    num_broken: int
    """Files that are no records, which may mention anything."""


def holdings(root: Path, names: list[str], on_broken: Callable[[StoreError], None]) -> Holdings:
    """Read whose the store's entries are.

    Args:
        root: the store.
        names: the studies that the user means; empty means all.
        on_broken: told of files that are no records.
    """
    broken: list[StoreError] = []
    studies = held(root, on_broken=broken.append)
    for error in broken:
        on_broken(error)
    chosen = frozenset(names or [one.name for one in studies])
    users: dict[str, list[tuple[Held, RunRecord]]] = {}
    in_use: set[str] = set()
    for one in studies:
        unfinished = any(record.status != "complete" for record in one.records)
        for record in one.records:
            mine = {stage.key[:24]: stage.stage for stage in record.stages}
            for name in mine:
                users.setdefault(name, []).append((one, record))
            if one.is_running or record.status != "complete":
                in_use |= mine.keys()
            elif unfinished:
                # The cells that are still to come train on the same rows.
                in_use |= {name for name, stage in mine.items() if stage == "data"}
        if one.is_running:
            in_use |= {key[:24] for key in one.planned}
    return Holdings(
        studies=tuple(studies),
        chosen=chosen,
        users=users,
        in_use=frozenset(in_use),
        kept=frozenset(key[:24] for one in studies for key in one.kept),
        planned=frozenset(key[:24] for one in studies for key in one.planned),
        num_broken=len(broken),
    )


def recommendation(
    manifest: StudyManifest, records: Sequence[RunRecord]
) -> tuple[RunRecord | None, str]:
    """The cell that the report recommends, or None and why there is none."""
    built = build(manifest, records)
    if built.pick is not None:
        return built.pick, ""
    if built.only_seeds:
        return None, "its cells differ in their seed alone"
    return None, built.problem or (built.ranking.reason.rstrip(".") if built.ranking else "")


def elsewhere(root: Path, name: str) -> frozenset[str]:
    """Keys of the merged models that studies other than `name` keep or may be about to read."""
    others = [one for one in held(root) if one.name != name]
    return frozenset().union(
        *(one.kept | (one.planned if one.is_running else frozenset()) for one in others)
    )


def keep(
    config: StoreConfig, root: Path, manifest: StudyManifest, records: Sequence[RunRecord]
) -> list[str]:
    """Free the merged models that `store.keep` gives up, at the end of a study.

    A model stays while a cell that is not complete will read it, or another study recommends its
    cell, or another study that has it recommends no cell.

    Returns:
        What was done, in lines to print.
    """
    if config.keep is Keep.all:
        return []
    others = elsewhere(root, manifest.study)
    needed = {key for r in records if r.status != "complete" for key in merged_keys(r)}
    said = after_cell(config, root, manifest, records, needed=needed, others=others)
    shared = others & {key for record in records for key in merged_keys(record)}
    if shared:
        models = fmt.plural(len(shared), "merged model")
        said.append(f"store.keep={config.keep}: another study keeps {models} of this one")
    if config.keep is Keep.recommended:
        said += _recommended(root, *recommendation(manifest, records))
    return said


def after_cell(
    config: StoreConfig,
    root: Path,
    manifest: StudyManifest,
    records: Sequence[RunRecord],
    *,
    needed: Collection[str],
    others: Collection[str],
) -> list[str]:
    """Free what `store.keep` gives up while the sweep goes on, so that the disk does not fill.

    With `adapters` the merged models of all complete cells go. With `recommended` that of the
    cell stays that the report would recommend by the records so far; as long as it would
    recommend none, all stay. A later record can bring a cell back whose model is gone: `keep`,
    at the end, then says so.

    Args:
        config: of the cells.
        root: the store.
        manifest: the study.
        records: of its cells so far.
        needed: keys of merged models that a stage still to be computed reads.
        others: keys that other studies keep (`elsewhere`), found once a sweep.

    Returns:
        What was done, in lines to print.
    """
    if config.keep is Keep.all:
        return []
    stay = {*needed, *others}
    if config.keep is Keep.recommended:
        pick, _ = recommendation(manifest, records)
        if pick is None:
            return []
        stay |= set(merged_keys(pick))
    complete = [record for record in records if record.status == "complete"]
    keys = {key for record in complete for key in merged_keys(record)} - stay
    freed, said = [], []
    for key in sorted(keys):
        try:
            freed.append(free_entry(folder_of(root, MERGE, key)))
        except StoreError as error:
            said.append(one_line(error))
    if total := sum(freed):
        models = fmt.plural(sum(1 for size in freed if size), "merged model")
        said.insert(
            0,
            f"store.keep={config.keep}: freed {models} ({fmt.size(total)}); adapters and records "
            "stay",
        )
    return said


def free_entry(folder: Path) -> int:
    """Free all files of an entry and return their bytes; 0 where there is nothing to free.

    Raises:
        StoreError: the entry is corrupted, or another process has it in hand.
    """
    if not pruning.bytes_of(folder):
        return 0
    return pruning.prune(folder, stored_files(folder).keys())


def _recommended(root: Path, pick: RunRecord | None, problem: str) -> list[str]:
    """What to say where there is no recommended cell, or its merged model was freed before."""
    if pick is None:
        return [f"store.keep=recommended: no cell is, so all merged models stay ({problem})"]
    folders = [folder_of(root, MERGE, key) for key in merged_keys(pick)]
    return [
        f"store.keep=recommended: the merged model of {pick.label} was freed before; to make it "
        f"again, delete {folder} and run this command again"
        for folder in folders
        if pruning.is_pruned(folder)
    ]
