"""Every cell of a study as CSV: what the report's tables have no room for."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from ftsuite.analysis.compare import find_comparison
from ftsuite.analysis.ranking import cost
from ftsuite.reporting import evidence, tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftsuite.records import Comparison, RunRecord
    from ftsuite.reporting.study import Study

ABOUT = (
    *("rank", "cell", "run_id", "status", "recommended", "within_noise_of_best", "excluded"),
    *("gates_failed", "trained_parameters", "training_seconds", "own_seconds"),
)
"""Columns of the cell; `own_seconds` are those of training, merge and evaluation."""
OF_METRIC = ("base", "tuned", "difference", "low", "high", "p", "holm_p", "verdict")
"""Columns of each metric, after its name: `low` and `high` bound the difference (95 %)."""


def is_wanted(study: Study) -> bool:
    """Whether a study has more cells than every table of the report shows."""
    return len(study.manifest.cells) > tables.MOST_CELLS


def text(study: Study) -> str:
    """One row a cell: the scored ones in the report's order, then all others; numbers in full.

    The metric that ranks has no `p` among those that are adjusted, so its `holm_p` is empty.
    """
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    names = [name for name in (study.rank_by, *study.test_metrics) if name]
    rows.writerow([*ABOUT, *(f"{name} {column}" for name in names for column in OF_METRIC)])
    places = tables.places(study) if study.ranking else {}
    pick = study.pick
    for cell in study.cells:
        about = _about(study, cell, str(places.get(cell.run_id, "")), is_pick=cell is pick)
        rows.writerow([*about, *(part for name in names for part in _metric(study, cell, name))])
    scored = {cell.run_id for cell in study.cells}
    for record in study.records:
        if record.run_id not in scored:
            rows.writerow(_about(study, record, "", is_pick=False))
    for entry in study.missing:
        rows.writerow(["", entry.label, entry.run_id, "not run"])
    return written.getvalue()


def _about(study: Study, cell: RunRecord, rank: str, *, is_pick: bool) -> Iterator[str]:
    parameters, seconds = cost(cell)
    yield from (rank, cell.label, cell.run_id, cell.status)
    yield "yes" if is_pick else ""
    yield "yes" if cell.run_id in study.near else ""
    yield study.ranking.excluded.get(cell.run_id, "") if study.ranking else ""
    yield "; ".join(gate.metric for gate in cell.gates if not gate.passed)
    yield from (str(parameters), _number(tables.train_seconds(cell)), _number(seconds))


def _metric(study: Study, cell: RunRecord, name: str) -> Iterator[str]:
    found = find_comparison(cell, name)
    if found is None:
        yield from [""] * len(OF_METRIC)
        return
    low, high = (None, None) if found.refused else _interval(found)
    yield from map(_number, (found.base, found.tuned, found.difference, low, high, found.p_value))
    yield _number(study.adjusted_p(cell, name))
    yield "refused" if found.refused else str(study.verdict(cell, found) or "")


def _interval(found: Comparison) -> tuple[float | None, float | None]:
    return evidence.inside(found.metric, found.low, found.high)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
