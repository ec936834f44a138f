"""Cell against cell: the order by validation score, and which cell to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftsuite.analysis import statistics
from ftsuite.analysis.compare import (
    CONDITIONS,
    corpus_value,
    find_comparison,
    find_metric,
    metric_reasons,
    paired,
    show,
    verdict,
)
from ftsuite.errors import ComparisonError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ftsuite.records import MetricScores, RunRecord

COST_STAGES = ("train", "merge", "check", "loss-tuned", "eval-tuned")
"""Stages that a cell pays for itself; the rest is shared by the sweep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Cells by their validation score, and which one to take. Cells are named by `run_id`."""

    rank_by: str
    higher_is_better: bool
    order: tuple[str, ...]
    """Best first; equal scores keep the order of the study."""
    best: str
    within_noise: frozenset[str]
    """The best and all that are not significantly worse."""
    recommended: str | None
    reason: str
    """One sentence: why this cell, or why none."""
    excluded: dict[str, str]
    """Cells that may not be recommended, and why: `fails the gate on …`."""
    caveats: tuple[str, ...]
    """Conditions in which the ranked cells differ."""


def is_scored(record: RunRecord) -> bool:
    """Say whether the cell finished and has scores to rank."""
    return record.status == "complete" and record.tuned is not None


def adjusted_p_values(records: Sequence[RunRecord], rank_by: str) -> dict[tuple[str, str], float]:
    """Adjust the p-values of all test-side comparisons together (Holm).

    The family: every metric except `rank_by`, over all complete cells.

    Returns:
        (run_id, metric name) → adjusted p-value; refused comparisons are left out.
    """
    family = [
        ((record.run_id, comparison.name), comparison.p_value)
        for record in records
        if is_scored(record)
        for comparison in record.comparisons
        if comparison.name != rank_by and comparison.p_value is not None
    ]
    if not family:
        return {}
    adjusted = statistics.holm([p_value for _, p_value in family])
    return {key: p_value for (key, _), p_value in zip(family, adjusted, strict=True)}


def cost(record: RunRecord) -> tuple[int, float]:
    """Return (trainable parameters, seconds to train, merge and evaluate) of a cell."""
    # The tuned model's scores are a stage a task: 'eval-tuned TASK'.
    seconds = sum(
        stage.seconds for stage in record.stages if stage.stage.partition(" ")[0] in COST_STAGES
    )
    return (record.train.trainable_parameters if record.train else 0), seconds


def ranking(records: Sequence[RunRecord], rank_by: str, alpha: float) -> Ranking:
    """Order the complete cells by their validation score and pick one.

    A cell qualifies if it passes all gates and is not significantly worse than base. Recommended
    is the cheapest (parameters, then seconds, then order) of the qualifying cells within noise of
    the best; if there is none, of those within noise of the best that qualifies.

    Args:
        records: The cells of a study, in order; cells that did not finish are passed over.
        rank_by: `task/metric` of the validation split.
        alpha: Level of significance.

    Raises:
        ComparisonError: No complete cell, or cells that were not scored on the same documents.
    """
    cells = [record for record in records if is_scored(record)]
    if not cells:
        raise ComparisonError("no cell finished, so there is nothing to rank")
    metrics = _same_documents(cells, rank_by)
    higher = next(iter(metrics.values())).higher_is_better
    best, near = _near(metrics, alpha)
    sign = -1 if higher else 1
    values = {run_id: sign * corpus_value(metric) for run_id, metric in metrics.items()}
    # The best comes first even if rounding makes its equals look better.
    order = sorted(values, key=lambda run_id: (run_id != best, values[run_id]))
    adjusted = adjusted_p_values(cells, rank_by)
    excluded = {
        record.run_id: why
        for record in cells
        if (why := _why_not(record, rank_by, adjusted, alpha))
    }
    allowed = {run_id: metrics[run_id] for run_id in order if run_id not in excluded}
    among = near & allowed.keys()
    if allowed and not among:
        among = _near(allowed, alpha)[1]
    recommended = min((cell for cell in cells if cell.run_id in among), key=cost, default=None)
    return Ranking(
        rank_by=rank_by,
        higher_is_better=higher,
        order=tuple(order),
        best=best,
        within_noise=frozenset(near),
        recommended=recommended.run_id if recommended else None,
        reason=_reason(cells, recommended, best, near, excluded),
        excluded=excluded,
        caveats=_caveats(cells),
    )


def _near(metrics: Mapping[str, MetricScores], alpha: float) -> tuple[str, set[str]]:
    values = {run_id: corpus_value(metric) for run_id, metric in metrics.items()}
    first = next(iter(metrics.values()))

    def p_value(best: str, other: str) -> float:
        if len(first.doc_ids) == 1:
            # One document has no spread to judge by: only exact ties are alike.
            return float(values[best] == values[other])
        try:
            return paired(metrics[best], metrics[other]).p_value
        except ValueError as error:
            raise ComparisonError(f"the cells have no order by {first.name}: {error}") from error

    return statistics.not_worse_than_best(
        values, p_value, higher_is_better=first.higher_is_better, alpha=alpha
    )


def _same_documents(cells: Sequence[RunRecord], rank_by: str) -> dict[str, MetricScores]:
    metrics: dict[str, MetricScores] = {}
    for record in cells:
        metric = find_metric(record.tuned, rank_by)
        if metric is None:
            raise ComparisonError(f"{record.label}: was not scored on evals.rank_by = {rank_by!r}")
        metrics[record.run_id] = metric
        first = metrics[cells[0].run_id]
        if metric_reasons(first, metric):
            raise ComparisonError(
                f"{record.label} and {cells[0].label} were not scored on the same documents of "
                f"{rank_by} (or not with the same weights or task version), so they have no order"
            )
    return metrics


def _why_not(
    record: RunRecord, rank_by: str, adjusted: Mapping[tuple[str, str], float], alpha: float
) -> str:
    said = [f"fails the gate on {gate.metric}" for gate in record.gates if not gate.passed]
    headline = record.config["evals"]["headline"]
    found, p_value = find_comparison(record, headline), adjusted.get((record.run_id, headline))
    if headline and (found is None or found.refused):
        said.append(f"has no delta on the headline {headline}")
    elif found and p_value is not None and verdict(found, p_value, alpha) == "worse":
        said.append(f"is worse than base on the headline {headline}")
    ranked = find_comparison(record, rank_by)
    if ranked and ranked.p_value is not None and verdict(ranked, ranked.p_value, alpha) == "worse":
        said.append(f"is worse than base on validation ({rank_by})")
    return " and ".join(said)


def _reason(
    cells: Sequence[RunRecord],
    recommended: RunRecord | None,
    best: str,
    near: set[str],
    excluded: Mapping[str, str],
) -> str:
    if recommended is None:
        said = [f"{cell.label} {excluded[cell.run_id]}" for cell in cells[:3]]
        more = f"; and {len(cells) - 3:,} more" if len(cells) > 3 else ""
        return f"No cell qualifies: {'; '.join(said)}{more}."
    qualified = len(near - excluded.keys())
    is_best = "the best and " if recommended.run_id == best else ""
    if qualified == 0:
        return (
            "No cell within noise of the best qualifies; it is the cheapest of those within noise "
            "of the best that does."
        )
    if len(near) == 1:
        return "It has the best score, and no other cell is within noise of it."
    if qualified == 1:
        return f"Of the {len(near)} cells within noise of the best, only it qualifies."
    if qualified < len(near):
        return (
            f"Of the {len(near)} cells within noise of the best, {qualified} qualify, and of "
            f"these it is {is_best}the cheapest."
        )
    return f"It is {is_best}the cheapest of the {len(near)} cells within noise of the best."


def _caveats(cells: Sequence[RunRecord]) -> tuple[str, ...]:
    caveats = []
    for name, words in CONDITIONS.items():
        seen = {show(getattr(cell.tuned.conditions, name)) for cell in cells if cell.tuned}
        if len(seen) > 1:
            caveats.append(f"{words} ({len(seen)} different)")
    return tuple(caveats)
