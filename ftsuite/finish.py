"""The end of a study: report, tracking, and what the terminal says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite import study
from ftsuite.errors import CellsFailed
from ftsuite.report import load_study, render
from ftsuite.tracking import track

if TYPE_CHECKING:
    from ftsuite.config import RunConfig
    from ftsuite.records import RunRecord, StudyManifest


def finish(config: RunConfig, manifest: StudyManifest, root: Path) -> None:
    """Render the report, track the runs, and print where everything is.

    Raises:
        CellsFailed: some cells failed, or failed a gate while `gates.fail_run` is set.
    """
    _, records = load_study(study.folder(root, manifest.study))
    report = render(manifest, records, Path(config.store.reports) / manifest.study)
    for line in track(config.tracking, manifest, records, report.parent, root):
        print(line)
    print(f"report: {report}")
    failed = [record for record in records if record.status != "complete"]
    if failed:
        raise CellsFailed(_failures(failed, len(manifest.cells)))
    gated = [record.label for record in records if not all(gate.passed for gate in record.gates)]
    if gated and config.gates.fail_run:
        raise CellsFailed(f"{len(gated)} cells failed a gate: {', '.join(gated)}; see the report")


def _failures(failed: list[RunRecord], total: int) -> str:
    first = failed[0]
    why = first.failure.message if first.failure else first.status
    return f"{len(failed)} of {total} cells failed; {first.label}: {why}"
