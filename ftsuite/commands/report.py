"""`ftsuite report`: a study's records as a Markdown report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.commands.selection import store_root
from ftsuite.config import StoreConfig
from ftsuite.errors import StoreError
from ftsuite.studies import study

if TYPE_CHECKING:
    from argparse import Namespace


def report(options: Namespace) -> int:
    """Render the report and print its path."""
    from ftsuite.reporting.report import load_study, render

    folder = _folder(options.study)
    manifest, records = load_study(folder)
    # A killed run still says 'running' in its file; its lock tells.
    records = [
        study.read_run(folder / f"{record.run_id}.json") if record.status == "running" else record
        for record in records
    ]
    out = Path(options.out) if options.out else Path(StoreConfig().reports) / manifest.study
    print(render(manifest, records, out))
    return 0


def _folder(name: str) -> Path:
    """Where the records of a study lie, named by its folder or by its name in the store."""
    given = Path(name)
    if (given / "study.json").is_file():
        return given
    if given.is_absolute() or len(given.parts) != 1:
        raise StoreError(f"{name}: no study.json in this folder; name a study or such a folder")
    root = store_root()
    study.require_study(root, name)
    return study.folder(root, name)
