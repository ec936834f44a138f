"""The end of a study: report, tracking, and what the terminal says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.errors import CellsFailed
from ftsuite.reporting.report import render
from ftsuite.store.commit import require_writable
from ftsuite.studies import study
from ftsuite.studies.keep import keep
from ftsuite.tracking import check, track

if TYPE_CHECKING:
    from ftsuite.config import RunConfig
    from ftsuite.records import RunRecord, StudyManifest


def require_a_way_to_finish(config: RunConfig) -> None:
    """Refuse, before anything is computed, what would fail after everything was.

    Raises:
        StoreError: the store or the folder of the reports cannot be written.
        BackendUnavailable: the tracker's package or key is missing.
    """
    check(config.tracking)
    require_writable(Path(config.store.root), "store.root")
    require_writable(Path(config.store.reports), "store.reports")


def finish(config: RunConfig, manifest: StudyManifest, root: Path) -> None:
    """Render the report, track the runs, and print where everything is.

    The report also shows what other commands, which run at the same time, have put into the study
    so far; the last of them to finish shows everything. Each answers for its own cells alone.

    Raises:
        CellsFailed: some cells failed, or failed a gate while `gates.fail_run` is set.
    """
    paths = [study.record_path(root, manifest.study, cell.run_id) for cell in manifest.cells]
    # Another process that runs the same cells may have one of them in hand.
    records = [study.settled_run(path) for path in paths if path.exists()]
    with study.finishing(root, manifest.study):
        whole, others = study.together(root, manifest)
        shown = [*records, *others]
        report = render(whole, shown, Path(config.store.reports) / manifest.study)
        print(f"report: {report}")
        for line in track(config.tracking, whole, shown, report.parent, root):
            print(line)
        for line in keep(config.store, root, whole, shown):
            print(line)
    failed = [record for record in records if record.status != "complete"]
    if failed or len(records) < len(manifest.cells):
        raise CellsFailed(_failures(failed, len(manifest.cells), len(records)))
    gated = [record.label for record in records if not all(gate.passed for gate in record.gates)]
    if gated and config.gates.fail_run:
        raise CellsFailed(f"{len(gated)} cells failed a gate: {', '.join(gated)}; see the report")


def _failures(failed: list[RunRecord], total: int, there: int) -> str:
    if not failed:
        return f"{total - there} of {total} cells have no record; run the same command again"
    first = failed[0]
    why = first.failure.message if first.failure else first.status
    return f"{len(failed)} of {total} cells failed; {first.label}: {why}"
