"""`ftsuite runs`: every run in the store."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite.analysis.compare import find_comparison
from ftsuite.analysis.ranking import cost
from ftsuite.commands.display import MOST_ROWS, one_line, table, write, write_json
from ftsuite.commands.selection import store_root
from ftsuite.jsonfile import to_json
from ftsuite.reporting import formats as fmt
from ftsuite.store.pruning import bytes_of, is_pruned
from ftsuite.studies import study

if TYPE_CHECKING:
    from argparse import Namespace

    from ftsuite.errors import StoreError
    from ftsuite.records import Comparison, RunRecord

ARTIFACTS = ("adapter", "merged")


def runs(options: Namespace) -> int:
    """List the runs, as a table or as JSON; exit with 1 if one cannot be read."""
    root = store_root()
    if options.study is not None:
        study.require_study(root, options.study)
    broken: list[StoreError] = []
    found = [
        (path, record)
        for path, record in study.all_runs(root, on_broken=broken.append)
        if options.study in (None, record.study) and options.status in (None, record.status)
    ]
    if options.json:
        write_json([run_object(root, path, record) for path, record in found])
    elif found:
        most = None if options.all else MOST_ROWS
        _write_table(root, [record for _, record in found], most)
    else:
        write(f"no such runs in {root}; `ftsuite run +sweep=lora_rank` makes some")
    sys.stdout.flush()
    for error in broken:
        study.tell_broken(error)
    return 1 if broken else 0


def run_object(root: Path, path: Path, record: RunRecord) -> dict[str, Any]:
    """Return what `--json` says of one run (docs/commands.md)."""
    headline = _headline(record)
    return {
        "run_id": record.run_id,
        "study": record.study,
        "label": record.label,
        "status": record.status,
        "overrides": list(record.overrides),
        "record": str(path),
        "headline": None
        if headline is None
        else {
            "metric": headline.name,
            "base": headline.base,
            "tuned": headline.tuned,
            "difference": headline.difference,
            "low": headline.low,
            "high": headline.high,
            "refused": headline.refused,
        },
        "seconds": cost(record)[1],
        "stages": [
            {"stage": s.stage, "key": s.key, "seconds": s.seconds, "reused": s.reused}
            for s in record.stages
        ],
        "artifacts": artifacts(root, record),
        "bytes": sizes(root, record),
        "failure": to_json(record.failure) if record.failure else None,
    }


def artifacts(root: Path, record: RunRecord) -> dict[str, str | None]:
    """Paths of the adapter and the merged model; None for one that is not there, or was freed."""
    found: dict[str, str | None] = dict.fromkeys(ARTIFACTS)
    for name in ARTIFACTS:
        if name not in record.artifacts or is_pruned(entry_folder(root, record, name)):
            continue
        if (root / record.artifacts[name]).exists():
            found[name] = str(root / record.artifacts[name])
    return found


def sizes(root: Path, record: RunRecord) -> dict[str, int | None]:
    """Bytes on disk of the adapter and the merged model; None for one that was never made."""
    return {
        name: bytes_of(root / record.artifacts[name]) if name in record.artifacts else None
        for name in ARTIFACTS
    }


def entry_folder(root: Path, record: RunRecord, artifact: str) -> Path:
    """Folder of the store's entry that an artifact of the run belongs to."""
    stage, key = Path(record.artifacts[artifact]).parts[:2]
    return root / stage / key


def _on_disk(root: Path, record: RunRecord) -> str:
    """Sizes of adapter and merged model, such as `1.2 MB + freed`."""
    found = sizes(root, record)
    if all(size is None for size in found.values()):
        return fmt.NONE
    freed = {n for n in ARTIFACTS if found[n] == 0 and is_pruned(entry_folder(root, record, n))}
    return " + ".join("freed" if name in freed else fmt.size(found[name] or 0) for name in found)


def _headline(record: RunRecord) -> Comparison | None:
    return find_comparison(record, record.config.get("evals", {}).get("headline", ""))


def _write_table(root: Path, records: list[RunRecord], most: int | None) -> None:
    shown = [
        record
        for _, of_study in itertools.groupby(records, key=lambda one: one.study)
        for record in itertools.islice(of_study, most)
    ]
    rows = []
    for record in shown:
        headline, seconds = _headline(record), cost(record)[1]
        change = "refused" if headline and headline.refused else None
        rows.append(
            (
                record.study,
                record.run_id,
                record.label,
                record.status,
                change or fmt.change(headline.difference if headline else None),
                fmt.seconds(seconds) if seconds else fmt.NONE,
                f"{sum(s.reused for s in record.stages)}/{len(record.stages)}",
                _on_disk(root, record),
            )
        )
    headers = ("=study", "=run", "label", "=status", ">headline Δ", ">time", ">stored", ">on disk")
    failures = [
        one_line(f"{r.run_id} failed in {r.failure.stage}: {r.failure.message}")
        for r in shown
        if r.failure
    ]
    write(
        table(fmt.plural(len(records), "run"), headers, rows),
        *_left_out(records, most),
        "time: to train, merge and evaluate. stored: stages found in the store. on disk: adapter + "
        "merged model.",
        *failures,
    )


def _left_out(records: list[RunRecord], most: int | None) -> list[str]:
    """A line for each study of which the table has the first runs alone."""
    said = []
    for name, of_study in itertools.groupby(records, key=lambda one: one.study):
        statuses = Counter(record.status for record in of_study)
        if most is not None and statuses.total() > most:
            counts = ", ".join(f"{count:,} {status}" for status, count in statuses.most_common())
            said.append(
                f"{name}: the first {most} of {statuses.total():,} runs ({counts}); --all prints "
                "all, --json too"
            )
    return [one_line(line) for line in said]
