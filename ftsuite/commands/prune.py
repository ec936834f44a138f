"""`ftsuite prune`: free what can be computed again, after saying what and how much."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.commands.display import one_line, table, write, write_json
from ftsuite.commands.selection import store_root
from ftsuite.errors import StoreError
from ftsuite.reporting import formats as fmt
from ftsuite.scoring import documents
from ftsuite.store import pruning
from ftsuite.store.entries import stored_files
from ftsuite.studies import study
from ftsuite.studies.keep import MERGE, holdings

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ftsuite.records import RunRecord
    from ftsuite.studies.keep import Held, Holdings

KINDS = {MERGE: "merged model", "data": "tokenised rows", "train": "adapter", "eval": "documents"}
"""Stage → what of it can be freed, in the order of freeing."""
WHOLE = (*KINDS, "check", "loss", "probe")
"""Stages whose entries belong to cells: one that no record mentions is an orphan."""
MODEL = "model"
"""Stage of base models that were converted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something to free."""

    study: str
    cells: tuple[str, ...]
    """Labels of the cells that made or used it; empty where no record says."""
    what: str
    folder: Path
    names: tuple[str, ...] | None
    """Files of the entry that go; None: the whole folder goes."""
    bytes: int


def prune(options: Namespace) -> int:
    """List what can be freed, ask, and free it; exit with 1 if something could not be."""
    root = store_root()
    for name in options.studies:
        study.require_study(root, name)
    if options.studies and (options.models or options.orphans):
        raise StoreError("--models and --orphans free what belongs to no study; name none with it")
    if options.json and not (options.yes or options.dry_run):
        raise StoreError("--json does not ask; give --yes to free, or --dry-run")
    broken: list[StoreError] = []
    items, notes = _found(root, options, broken.append)
    for error in broken:
        study.tell_broken(error)
    if not options.json:
        _write(root, items, notes)
    freed, failed = 0, 0
    if items and not options.dry_run and _agreed(options, items):
        shown = {item.folder for item in items}
        # A study may have begun while the question stood.
        now, _ = _found(root, options, lambda _: None)
        items = [item for item in now if item.folder in shown]
        freed, failed = _free(items)
        if not options.json:
            write(f"freed {fmt.size(freed) if freed else 'nothing'}")
    if options.json:
        write_json(
            {
                "store": str(root),
                "items": [_object(item) for item in items],
                "bytes": sum(item.bytes for item in items),
                "freed": freed,
                "notes": notes,
            }
        )
    return 1 if failed or broken else 0


def _found(
    root: Path, options: Namespace, on_broken: Callable[[StoreError], None]
) -> tuple[list[Item], list[str]]:
    """What the options free, in order, and what to say of the rest."""
    held_by = holdings(root, options.studies, on_broken)
    items: list[Item] = []
    notes = list(_of_studies(held_by, root, options))
    entries = pruning.entries(root)
    place = {name: number for number, name in enumerate(held_by.users)}
    mentioned = [path for path in entries if path.name in place]
    mentioned.sort(key=lambda path: place[path.name])
    asked = {"train": options.adapters, "eval": options.documents}
    for stage in KINDS:
        if asked.get(stage, True):
            found = [path for path in mentioned if path.parent.name == stage]
            items += _items(found, held_by, on_broken, all_cells=options.all_cells)
    if not options.studies:
        more, said = _of_no_study(root, entries, held_by, options)
        items += more
        notes += said
    return items, notes


def _items(
    folders: list[Path],
    held_by: Holdings,
    on_broken: Callable[[StoreError], None],
    *,
    all_cells: bool,
) -> Iterator[Item]:
    """The entries, of one stage, that may be freed and take space."""
    for folder in folders:
        users = held_by.users[folder.name]
        chosen = [(one, record) for one, record in users if one.name in held_by.chosen]
        if not chosen or folder.name in held_by.in_use:
            continue
        stage, is_shared = folder.parent.name, len(chosen) < len(users)
        if stage == MERGE and folder.name in held_by.kept and not (all_cells and not is_shared):
            continue
        if stage in ("train", "eval") and is_shared:
            continue
        if stage == "train" and not all_cells and _is_kept(chosen):
            continue
        try:
            names = tuple(stored_files(folder))
        except StoreError as error:
            on_broken(error)
            continue
        if stage == "eval":
            names = tuple(name for name in names if name == documents.FILE)
        if size := pruning.bytes_of_files(folder, names):
            yield Item(
                study=chosen[0][0].name,
                cells=tuple(dict.fromkeys(record.label for _, record in chosen)),
                what=KINDS[stage],
                folder=folder,
                names=names,
                bytes=size,
            )


def _is_kept(users: list[tuple[Held, RunRecord]]) -> bool:
    """Whether one of the cells is recommended, or its study recommends none."""
    return any(
        one.recommended is None or one.recommended.run_id == record.run_id for one, record in users
    )


def _of_no_study(
    root: Path, entries: list[Path], held_by: Holdings, options: Namespace
) -> tuple[list[Item], list[str]]:
    """Broken-off work, orphans and base models, and what is left of them, in words."""
    items: list[Item] = []
    left: list[Path] = []
    running = any(one.is_running for one in held_by.studies)
    for folder in pruning.broken_off(root):
        stage = folder.parent.name
        if stage in pruning.RESUMED and not options.orphans:
            left.append(folder)
        else:
            items.append(_whole(folder, f"broken-off {stage}"))
    # A record says which entries its cell used only when the cell has ended.
    unsure = running or bool(held_by.num_broken)
    for folder in entries:
        stage = folder.parent.name
        if stage == MODEL and options.models and not running:
            items.append(_whole(folder, "base model"))
        known = folder.name in held_by.users or folder.name in held_by.planned
        if stage not in WHOLE or known:
            continue
        if options.orphans and not unsure:
            items.append(_whole(folder, f"orphan: {KINDS.get(stage, stage)}"))
        else:
            left.append(folder)
    notes = []
    if left:
        what = f"{fmt.plural(len(left), 'folder')} ({fmt.size(sum(map(pruning.bytes_of, left)))})"
        why = "--orphans frees them"
        if options.orphans:
            why = "left alone while a study runs or a record cannot be read"
        notes.append(f"{what} that no record mentions: {why}")
    if running and options.models:
        notes.append("base models: left alone while a study runs")
    return items, notes


def _whole(folder: Path, what: str) -> Item:
    size = pruning.bytes_of(folder)
    return Item(study="", cells=(), what=what, folder=folder, names=None, bytes=size)


def _of_studies(held_by: Holdings, root: Path, options: Namespace) -> Iterator[str]:
    """Which studies keep their merged models, and why."""
    for one in held_by.studies:
        if one.name not in held_by.chosen:
            continue
        if one.is_running:
            yield f"{one.name}: is running, left alone"
            continue
        size = sum(pruning.bytes_of(root / MERGE / key[:24]) for key in one.kept)
        if not size or options.all_cells:
            continue
        if one.recommended:
            what = f"the merged model of {one.recommended.label}, which is recommended"
        else:
            what = f"all merged models, for it recommends no cell ({one.problem})"
        yield f"{one.name}: keeps {what}: {fmt.size(size)}; --all-cells frees that too"


def _write(root: Path, items: list[Item], notes: list[str]) -> None:
    rows = [
        (item.study or fmt.NONE, _cells(item), item.what, fmt.size(item.bytes)) for item in items
    ]
    total = fmt.size(sum(item.bytes for item in items))
    title = f"to be freed in {root}: {total}" if items else f"nothing to free in {root}"
    drawn = [table(title, ("=study", "cell", "=what", ">bytes"), rows)] if items else [title]
    write(*drawn, *map(one_line, notes))


def _cells(item: Item) -> str:
    if not item.cells:
        return str(item.folder.name)
    more = f" and {len(item.cells) - 1:,} more" if len(item.cells) > 1 else ""
    return item.cells[0] + more


def _agreed(options: Namespace, items: list[Item]) -> bool:
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise StoreError("nothing was freed: without a terminal it needs --yes (or --dry-run)")
    total = fmt.size(sum(item.bytes for item in items))
    return input(f"free {total}? [y/N] ").strip().lower() in ("y", "yes")


def _free(items: list[Item]) -> tuple[int, int]:
    """Free the items; returns the bytes freed and how many items could not be."""
    freed = failed = 0
    for item in items:
        try:
            if item.names is None:
                freed += pruning.remove(item.folder)
            else:
                freed += pruning.prune(item.folder, item.names)
        except StoreError as error:
            failed += 1
            print(f"ftsuite: {one_line(str(error))}", file=sys.stderr)
    return freed, failed


def _object(item: Item) -> dict[str, Any]:
    return {
        "study": item.study or None,
        "cells": list(item.cells),
        "what": item.what,
        "folder": str(item.folder),
        "files": None if item.names is None else list(item.names),
        "bytes": item.bytes,
    }
