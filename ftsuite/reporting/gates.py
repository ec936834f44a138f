"""What got worse, and every gate: the observed value, its interval, and where the limit lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.analysis.compare import find_comparison
from ftsuite.reporting import formats as fmt
from ftsuite.reporting.tables import MOST_CELLS, beyond, difference_of, first, verdict_words

if TYPE_CHECKING:
    from ftsuite.records import Comparison, GateResult, RunRecord
    from ftsuite.reporting.study import Study

NOTE = (
    "A gate looks at the observed difference alone. Where the limit lies inside the interval, the "
    "documents do not tell on which side of the limit the model is."
)


def section(study: Study) -> str:
    """The losses in a sentence, and a row for every loss and every gate."""
    if not study.cells:
        return ""
    cells = first(study, study.cells, MOST_CELLS)
    rows = [row for cell in cells for row in _rows(study, cell)]
    parts = [_losses(study)]
    if rows:
        headers = ["cell", "metric", ">difference [95 %]", ">Holm p", "verdict", "gate"]
        parts.append(fmt.table(headers, rows) + beyond(len(study.cells), len(cells)))
    if any(cell.gates for cell in study.cells):
        parts.append(f"<sub>{NOTE}</sub>")
    return "\n\n".join(parts)


def words(gate: GateResult, found: Comparison | None) -> str:
    """`0.054 worse, 0.050 is allowed; the limit lies inside the interval [0.039, 0.070]`."""
    ends = _worsening_interval(found)
    if ends is None:
        return fmt.escape(gate.reason, limit=200)
    observed, limit = _apart(abs(gate.observed), gate.limit)
    amount = f"{observed} {'worse' if gate.observed > 0 else 'better'}"
    allowed = f"{limit} is allowed" if gate.limit else "no loss is allowed"
    low, high = ends
    where = "the whole interval is within the limit"
    if low <= gate.limit < high:
        where = f"the limit lies inside the interval {fmt.interval(low, high)}"
    elif low > gate.limit:
        where = "the whole interval is past the limit"
    return f"{amount if gate.observed else 'unchanged'}, {allowed}; {where}"


def undecided(gate: GateResult, found: Comparison | None) -> bool:
    """Say whether the gate's limit lies inside the interval of what was observed."""
    ends = _worsening_interval(found)
    return ends is not None and ends[0] <= gate.limit < ends[1]


def failing(cell: RunRecord) -> str:
    """The gates that a cell fails, with their numbers; empty if there are none."""
    failed = [gate for gate in cell.gates if not gate.passed]
    said = []
    for gate in failed:
        found = find_comparison(cell, gate.metric)
        name = f"{fmt.code(gate.metric)}: " if len(failed) > 1 else ""
        said.append(f"{name}{words(gate, found)}")
    return "; ".join(said)


def _worsening_interval(found: Comparison | None) -> tuple[float, float] | None:
    """95 % interval of how much worse tuned is than base; None without a difference."""
    if found is None or found.refused or found.low is None or found.high is None:
        return None
    return (-found.high, -found.low) if found.higher_is_better else (found.low, found.high)


def _apart(observed: float, limit: float) -> tuple[str, str]:
    """Both numbers, with digits enough to see which is the larger."""
    for digits in range(3, 7):
        one, two = f"{observed:.{digits}f}", f"{limit:.{digits}f}"
        if (one != two and float(one)) or observed == limit:
            break
    return one, two


def _losses(study: Study) -> str:
    lost = [
        fmt.code(cell.label)
        for cell in study.cells
        if any(study.verdict(cell, found) == "worse" for found in cell.comparisons)
    ]
    failed = [fmt.code(c.label) for c in study.cells if not all(g.passed for g in c.gates)]
    if lost:
        said = [
            f"Significantly worse than base on at least one metric: {fmt.enumerate_words(lost)}."
        ]
    elif not study.adjusted:
        said = ["No metric was tested against the base, so a loss would not have been seen."]
    else:
        said = [
            "No cell is significantly worse than base on any tested metric. This does not show "
            "that nothing was lost: see what each table can detect."
        ]
    if failed:
        said.append(f"A gate fails for {fmt.enumerate_words(failed)}.")
    elif any(cell.gates for cell in study.cells):
        said.append("Every gate passes.")
    else:
        said.append("No gates were configured (`gates.max_worse`).")
    return " ".join(said)


def _rows(study: Study, cell: RunRecord) -> list[list[str]]:
    gates = {gate.metric: gate for gate in cell.gates}
    lost = [found.name for found in cell.comparisons if study.verdict(cell, found) == "worse"]
    rows = []
    for name in sorted({*gates, *lost}):
        found, gate = find_comparison(cell, name), gates.get(name)
        status = fmt.NONE
        if gate:
            status = f"{'pass' if gate.passed else '**fails**'}: "
            status += words(gate, found)
        rows.append(
            [
                fmt.code(cell.label),
                fmt.code(name),
                difference_of(found) if found and not found.refused else fmt.NONE,
                fmt.p_value(study.adjusted_p(cell, name)),
                verdict_words(study, cell, found) if found else fmt.NONE,
                status,
            ]
        )
    return rows
