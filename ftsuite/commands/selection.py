"""Which run a user means, and which store."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.config import StoreConfig
from ftsuite.errors import StoreError
from ftsuite.studies import study

if TYPE_CHECKING:
    from argparse import Namespace

    from ftsuite.records import RunRecord

WHOLE_ID = re.compile(r"[0-9a-f]{12}")
MOST_NAMED = 8
"""Runs that an error names."""


def store_root() -> Path:
    """Folder of the store, where no configuration says otherwise."""
    return Path(StoreConfig().root)


def overrides(options: Namespace) -> list[str]:
    """The command line's overrides, with the folder of `--config-dir` in front.

    Raises:
        ConfigError: there is no such folder.
    """
    from ftsuite.studies.compose import search_in

    return [*search_in(options.config_dir), *options.overrides]


def find_run(root: Path, reference: str) -> tuple[Path, RunRecord]:
    """Find one run and its record's path.

    A whole run id goes before a label, and a label before the start of a run id.

    Args:
        root: the store.
        reference: a run id or the start of one, a label, or either after its study and a slash.

    Raises:
        StoreError: no run, or more than one; names the candidates.
    """
    if (named := _by_whole_id(root, reference)) is not None:
        return named
    runs = study.all_runs(root)
    name, _, rest = reference.partition("/")
    for means in (_is_id, _is_label, _starts_id):
        found = [
            (path, record)
            for path, record in runs
            # A label may hold a slash of its own, such as model.id=org/name.
            if means(record, reference) or (record.study == name and means(record, rest))
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise StoreError(
                f"{reference}: {len(found)} runs match; name one by its study and id: "
                f"{_named([record for _, record in found])}"
            )
    known = _named([record for _, record in runs]) or "none"
    raise StoreError(f"{reference}: no such run in {root}; known are: {known}")


def _by_whole_id(root: Path, reference: str) -> tuple[Path, RunRecord] | None:
    """The run of a whole id, alone or after its study, without reading all others; else None."""
    name, slash, run_id = reference.rpartition("/")
    if not WHOLE_ID.fullmatch(run_id) or (slash and not study.folder(root, name).is_dir()):
        return None
    found = [
        path
        for folder in ([study.folder(root, name)] if slash else root.glob("studies/*"))
        if (path := folder / f"{run_id}.json").is_file()
    ]
    # Several, and files that are no records, are told of by who reads all.
    if len(found) != 1 or not (found[0].parent / "study.json").is_file():
        return None
    with contextlib.suppress(StoreError):
        record = study.read_run(found[0])
        if (record.study, record.run_id) == (found[0].parent.name, run_id):
            return found[0], record
    return None


def _is_id(record: RunRecord, reference: str) -> bool:
    return record.run_id == reference


def _is_label(record: RunRecord, reference: str) -> bool:
    return bool(reference) and record.label == reference


def _starts_id(record: RunRecord, reference: str) -> bool:
    return bool(reference) and record.run_id.startswith(reference)


def _named(records: list[RunRecord]) -> str:
    names = [f"{record.study}/{record.run_id} ({record.label})" for record in records]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
