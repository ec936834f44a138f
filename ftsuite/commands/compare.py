"""`ftsuite compare`: two models of the store, paired by document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftsuite.analysis import statistics
from ftsuite.analysis.compare import compare_scores, verdict
from ftsuite.commands.display import metric_name, one_line, table, write, write_json
from ftsuite.commands.selection import find_run, store_root
from ftsuite.errors import ComparisonError
from ftsuite.reporting import formats as fmt

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from ftsuite.records import Comparison, RunRecord, Scores

BASE = "base:"


def compare(options: Namespace) -> int:
    """Compare A with B; exit with 1 if every metric is refused."""
    root = store_root()
    (first, before), (second, after) = _side(root, options.a), _side(root, options.b)
    alpha: float = second.config.get("gates", {}).get("alpha", 0.05)
    metrics = _metrics(compare_scores(before, after), alpha)
    sides = {"a": _named(first, options.a), "b": _named(second, options.b)}
    if options.json:
        write_json({**sides, "alpha": alpha, "metrics": metrics})
    else:
        _write(sides, metrics, alpha)
    return 1 if all(metric["refused"] for metric in metrics) else 0


def _side(root: Path, reference: str) -> tuple[RunRecord, Scores]:
    """The run that A or B names, and the scores that are meant."""
    _, record = find_run(root, reference.removeprefix(BASE))
    is_base = reference.startswith(BASE)
    scores = record.base if is_base else record.tuned
    if scores is None:
        which = "base" if is_base else "tuned"
        raise ComparisonError(
            f"{record.study}/{record.label}: no {which} scores; the run is {record.status} and "
            f"evals.tasks = {record.config.get('evals', {}).get('tasks', [])}"
        )
    return record, scores


def _named(record: RunRecord, reference: str) -> dict[str, str]:
    return {
        "run_id": record.run_id,
        "study": record.study,
        "label": record.label,
        "model": "base" if reference.startswith(BASE) else "tuned",
    }


def _metrics(found: tuple[Comparison, ...], alpha: float) -> list[dict[str, Any]]:
    """One object a metric; p-values adjusted over all that are not refused."""
    raw = [c.p_value for c in found if c.p_value is not None]
    adjusted = iter(statistics.holm(raw) if raw else [])
    metrics = []
    for comparison in found:
        holm_p = None if comparison.p_value is None else next(adjusted)
        metrics.append(
            {
                "metric": comparison.name,
                "higher_is_better": comparison.higher_is_better,
                "n": comparison.n,
                "a": comparison.base,
                "b": comparison.tuned,
                "difference": comparison.difference,
                "low": comparison.low,
                "high": comparison.high,
                "p_value": comparison.p_value,
                "holm_p": holm_p,
                "verdict": None if holm_p is None else str(verdict(comparison, holm_p, alpha)),
                "minimum_detectable": comparison.minimum_detectable,
                "method": comparison.method,
                "refused": comparison.refused,
            }
        )
    return metrics


def _write(sides: dict[str, dict[str, str]], metrics: list[dict[str, Any]], alpha: float) -> None:
    lines = [
        one_line(
            f"{name.upper()}: {side['study']}/{side['label']} ({side['run_id']}), {side['model']}"
        )
        for name, side in sides.items()
    ]
    rows = [
        (
            metric_name(metric["metric"]),
            str(metric["n"]),
            fmt.score(metric["a"]),
            fmt.score(metric["b"]),
            fmt.change(metric["difference"]),
            fmt.interval(metric["low"], metric["high"]),
            fmt.p_value(metric["holm_p"]),
            metric["verdict"],
        )
        for metric in metrics
        if not metric["refused"]
    ]
    headers = ("=metric", ">n", ">A", ">B", ">B − A", ">95 % CI", ">Holm p", "B is")
    refused = [
        one_line(f"refused {m['metric']}: {m['refused']} (base is A, tuned is B)")
        for m in metrics
        if m["refused"]
    ]
    drawn = [table("paired by document", headers, rows)] if rows else []
    note = [f"Verdicts at {alpha:g} after Holm's correction over these metrics."] if rows else []
    write(*lines, *drawn, *note, *refused)
