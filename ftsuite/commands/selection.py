"""Which run a user means, and which store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite import study
from ftsuite.config import StoreConfig
from ftsuite.errors import StoreError

if TYPE_CHECKING:
    from ftsuite.records import RunRecord

MOST_NAMED = 8
"""Runs that an error names."""


def store_root() -> Path:
    """Folder of the store, where no configuration says otherwise."""
    return Path(StoreConfig().root)


def find_run(root: Path, reference: str) -> tuple[Path, RunRecord]:
    """Find one run and its record's path.

    Args:
        root: the store.
        reference: the start of a run id, a label, or either after its study and a slash.

    Raises:
        StoreError: no run, or more than one; names the candidates.
    """
    runs = study.all_runs(root)
    name, _, rest = reference.partition("/")
    found = [
        (path, record)
        for path, record in runs
        if _means(record, reference) or (rest and record.study == name and _means(record, rest))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise StoreError(
            f"{reference}: {len(found)} runs match; name one by its id or as study/label: "
            f"{_named([record for _, record in found])}"
        )
    known = _named([record for _, record in runs]) or "none"
    raise StoreError(f"{reference}: no such run in {root}; known are: {known}")


def _means(record: RunRecord, reference: str) -> bool:
    return bool(reference) and (record.label == reference or record.run_id.startswith(reference))


def _named(records: list[RunRecord]) -> str:
    names = [f"{record.run_id} ({record.study}/{record.label})" for record in records]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
