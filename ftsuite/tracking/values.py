"""A run record as trackers show it: names with numbers or texts (tables.py has its tables).

Names are paths: `tuned/<task>/<metric>`. Units: seconds, bytes, nats a token, or the metric's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftsuite.analysis.compare import corpus_value, find_comparison

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ftsuite.records import Comparison, ProbeReport, ProbeResult, RunRecord


def numbers(record: RunRecord, adjusted: Mapping[str, float]) -> dict[str, float]:
    """Return every number of a cell by name; what a cell does not have is left out.

    Args:
        record: the cell.
        adjusted: metric → p-value after the correction for all comparisons of the study.
    """
    named: dict[str, float | None] = {}
    for side, scores in (("base", record.base), ("tuned", record.tuned)):
        for metric in scores.metrics if scores else ():
            if metric.doc_ids:
                named[f"{side}/{metric.name}"] = corpus_value(metric)
    for comparison in record.comparisons:
        named |= _delta(comparison, adjusted.get(comparison.name))
    if headline := _headline(record):
        # One name for all studies, whatever their headline metric is.
        named |= {f"headline/{side}": getattr(headline, side) for side in ("base", "tuned")}
        named |= {"headline/delta": headline.difference}
        named |= {f"headline/delta/{end}": getattr(headline, end) for end in ("low", "high")}
    for side, report in (("base", record.base_probes), ("tuned", record.tuned_probes)):
        named |= _pass_rates(side, report)
    for gate in record.gates:
        named[f"gate/{gate.metric}/passed"] = float(gate.passed)
        named[f"gate/{gate.metric}/worse_by"] = gate.observed
        named[f"gate/{gate.metric}/limit"] = gate.limit
    if record.gates:
        named["gates_passed"] = float(all(gate.passed for gate in record.gates))
    return {
        name: float(value)
        for name, value in (named | _training(record) | _costs(record)).items()
        if value is not None
    }


def texts(record: RunRecord) -> dict[str, str]:
    """Return what a cell says in words: status, failure, refused deltas, provenance."""
    named = {
        "status": record.status,
        "label": record.label,
        "provenance/ftsuite": record.provenance.ftsuite,
        "provenance/git_commit": record.provenance.git_commit,
        "provenance/device": record.provenance.device,
        "provenance/dtype": record.provenance.dtype,
        "provenance/started_at": record.provenance.started_at,
        "provenance/finished_at": record.provenance.finished_at,
    }
    if headline := _headline(record):
        named["headline/metric"] = headline.name
    for comparison in record.comparisons:
        named[f"delta/{comparison.name}/refused"] = comparison.refused
    for gate in record.gates:
        named[f"gate/{gate.metric}/reason"] = gate.reason
    if failure := record.failure:
        named |= {
            "failure/stage": failure.stage,
            "failure/kind": failure.kind,
            "failure/message": failure.message,
        }
    return {name: text for name, text in named.items() if text}


def last_step(record: RunRecord) -> int:
    """Return the step that scores belong to: the end of training, 0 without one."""
    return record.train.steps if record.train else 0


def _headline(record: RunRecord) -> Comparison | None:
    return find_comparison(record, record.config.get("evals", {}).get("headline", ""))


def _delta(comparison: Comparison, adjusted: float | None) -> dict[str, float | None]:
    name = f"delta/{comparison.name}"
    return {
        name: comparison.difference,
        f"{name}/low": comparison.low,
        f"{name}/high": comparison.high,
        f"{name}/p": comparison.p_value,
        f"{name}/p_adjusted": adjusted,
    }


def _pass_rates(side: str, report: ProbeReport | None) -> dict[str, float | None]:
    """Pass rates with their number of answers: of a probe, and of each of several prompts."""
    named: dict[str, float | None] = {}
    for probe in report.probes if report else ():
        for system in (None, *_systems(probe)):
            place = f"probe/{probe.name}/{system}" if system else f"probe/{probe.name}"
            for with_system in (True, False):
                picked = probe.picked(with_system=with_system, system=system)
                if picked:
                    name = f"{place}/{side}/{_system(with_system)}"
                    rate = probe.pass_rate(with_system=with_system, system=system)
                    named |= {name: rate, f"{name}/answers": len(picked)}
    return named


def _systems(probe: ProbeResult) -> list[str]:
    return [system.name for system in probe.systems]


def _system(with_system: bool) -> str:
    return "with_system" if with_system else "without_system"


def _training(record: RunRecord) -> dict[str, float | None]:
    if record.train is None:
        return {}
    return {
        "train/final_loss": record.train.final_loss,
        "train/final_eval_loss": record.train.eval_loss,
        "train/steps": record.train.steps,
        "train/tokens": record.train.tokens,
        "train/trainable_parameters": record.train.trainable_parameters,
    }


def _costs(record: RunRecord) -> dict[str, float | None]:
    if not record.stages:
        return {}
    trained = [stage.seconds for stage in record.stages if stage.stage == "train"]
    return {
        "cost/train_seconds": sum(trained) if trained else None,
        # What the cell took, whenever and by whom its stages were computed.
        "runtime_seconds": sum(stage.seconds for stage in record.stages),
        "cost/peak_memory_bytes": max(stage.peak_memory_bytes for stage in record.stages),
        "cost/peak_device_bytes": max(stage.peak_device_bytes for stage in record.stages),
    }
