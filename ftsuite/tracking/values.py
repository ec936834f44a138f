"""A run record as trackers show it: names with numbers or texts, a curve, and tables.

Names are paths: `tuned/<task>/<metric>`. Units: seconds, bytes, nats a token, or the metric's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftsuite.analysis.compare import corpus_value, find_comparison

if TYPE_CHECKING:
    from ftsuite.records import Comparison, ProbeAnswer, ProbeReport, ProbeResult, RunRecord

Cell = str | float | int | bool | None
_COMPARISON_COLUMNS = (
    "task",
    "metric",
    "higher_is_better",
    "n",
    "base",
    "tuned",
    "difference",
    "low",
    "high",
    "p_value",
    "minimum_detectable",
    "method",
    "refused",
)
_DOCUMENT_COLUMNS = ("member", "number", "group", "question", "expected", "base", "tuned")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under named columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def numbers(record: RunRecord) -> dict[str, float]:
    """Return every number of a cell by name; what a cell does not have is left out."""
    named: dict[str, float | None] = {}
    for side, scores in (("base", record.base), ("tuned", record.tuned)):
        for metric in scores.metrics if scores else ():
            if metric.doc_ids:
                named[f"{side}/{metric.name}"] = corpus_value(metric)
    for comparison in record.comparisons:
        named |= _delta(comparison)
    if headline := _headline(record):
        # One name for all studies, whatever their headline metric is.
        named |= {f"headline/{side}": getattr(headline, side) for side in ("base", "tuned")}
        named["headline/delta"] = headline.difference
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


def curve(record: RunRecord) -> list[tuple[int, dict[str, float]]]:
    """Return the training curve as (step, values), by rising step."""
    points = []
    for point in sorted(record.train.curve if record.train else (), key=lambda point: point.step):
        values = {
            "train/loss": point.loss,
            "train/eval_loss": point.eval_loss,
            "train/learning_rate": point.learning_rate,
            "train/grad_norm": point.grad_norm,
        }
        points.append(
            (point.step, {name: value for name, value in values.items() if value is not None})
        )
    return points


def last_step(record: RunRecord) -> int:
    """Return the step that scores belong to: the end of training, 0 without one."""
    return record.train.steps if record.train else 0


def model_name(record: RunRecord) -> str:
    """Return the short name of the base model."""
    name = record.config.get("model", {}).get("name")
    return str(name or (record.model.id if record.model else ""))


def probes_table(record: RunRecord) -> Table:
    """Return the answers of base and tuned side by side, a row a prompt and system prompt.

    `system` is as in records.ProbeAnswer: empty where the probe has one system prompt.
    """
    base, tuned = _answers(record.base_probes), _answers(record.tuned_probes)
    rows = []
    for key in dict.fromkeys([*base, *tuned]):
        before, after = base.get(key), tuned.get(key)
        rows.append(
            (
                *key[:3],
                before.answer if before else None,
                after.answer if after else None,
                before.passed if before else None,
                after.passed if after else None,
                key[3],
            )
        )
    columns = ("probe", "prompt", "with_system", "base", "tuned", "base_passed", "tuned_passed")
    return Table(columns=(*columns, "system"), rows=tuple(rows))


def comparisons_table(record: RunRecord) -> Table:
    """Return the comparisons, a row a metric."""
    return Table(
        columns=_COMPARISON_COLUMNS,
        rows=tuple(
            tuple(getattr(comparison, name) for name in _COMPARISON_COLUMNS)
            for comparison in record.comparisons
        ),
    )


def tables(record: RunRecord) -> dict[str, Table]:
    """Return the tables of a cell by name; those without rows are left out."""
    found = {
        "comparisons": comparisons_table(record),
        "probes": probes_table(record),
        "documents": documents_table(record),
        "labels": labels_table(record),
        "confusions": confusions_table(record),
        "groups": groups_table(record),
    }
    return {name: table for name, table in found.items() if table.rows}


def documents_table(record: RunRecord) -> Table:
    """Return the documents won and lost that the record lists, a row a document."""
    rows: list[tuple[Cell, ...]] = []
    for table in record.documents:
        listed = {
            "won": table.won_documents,
            "lost": table.lost_documents,
            "example": table.examples,
        }
        for result, documents in listed.items():
            rows += [
                (
                    table.task,
                    result,
                    *(getattr(one, name) for name in _DOCUMENT_COLUMNS),
                    table.metric,
                    one.base_value,
                    one.tuned_value,
                )
                for one in documents
            ]
    columns = ("task", "result", *_DOCUMENT_COLUMNS, "metric", "base_value", "tuned_value")
    return Table(columns=columns, rows=tuple(rows))


def labels_table(record: RunRecord) -> Table:
    """Return how often each right answer of a closed set was answered, a row a label."""
    columns = ("label", "n", "base_right", "tuned_right", "gained", "lost")
    return Table(
        columns=("task", *columns),
        rows=tuple(
            (table.task, *(getattr(row, name) for name in columns))
            for table in record.documents
            for row in (*table.labels, *table.fields)
        ),
    )


def confusions_table(record: RunRecord) -> Table:
    """Return the wrong answers of a closed set, a row a pair of labels."""
    columns = ("expected", "answered", "base", "tuned")
    return Table(
        columns=("task", *columns),
        rows=tuple(
            (table.task, *(getattr(row, name) for name in columns))
            for table in record.documents
            for row in table.confusions
        ),
    )


def groups_table(record: RunRecord) -> Table:
    """Return the metrics by group, a row a group."""
    return Table(
        columns=("metric", "group", "n", "base", "tuned", "difference"),
        rows=tuple(
            (table.name, row.group, row.n, row.base, row.tuned, row.tuned - row.base)
            for table in record.groups
            for row in table.rows
        ),
    )


def _headline(record: RunRecord) -> Comparison | None:
    return find_comparison(record, record.config.get("evals", {}).get("headline", ""))


def _delta(comparison: Comparison) -> dict[str, float | None]:
    name = f"delta/{comparison.name}"
    return {
        name: comparison.difference,
        f"{name}/low": comparison.low,
        f"{name}/high": comparison.high,
        f"{name}/p": comparison.p_value,
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
        "cost/all_stages_seconds": sum(stage.seconds for stage in record.stages),
        "cost/peak_memory_bytes": max(stage.peak_memory_bytes for stage in record.stages),
        "cost/peak_device_bytes": max(stage.peak_device_bytes for stage in record.stages),
    }


def _answers(report: ProbeReport | None) -> dict[tuple[str, str, bool, str, int], ProbeAnswer]:
    """Answers by probe, prompt and system prompt; the number tells repeated prompts apart."""
    found: dict[tuple[str, str, bool, str, int], ProbeAnswer] = {}
    for probe in report.probes if report else ():
        for answer in probe.answers:
            number = 0
            place = (probe.name, answer.prompt, answer.with_system, answer.system)
            while (key := (*place, number)) in found:
                number += 1
            found[key] = answer
    return found
