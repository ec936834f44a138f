"""A run record as tables, as trackers show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftsuite.analysis.compare import verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ftsuite.records import ProbeAnswer, ProbeReport, RunRecord

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
    "p_adjusted",
    "verdict",
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


def comparisons_table(record: RunRecord, adjusted: Mapping[str, float]) -> Table:
    """Return the comparisons, a row a metric; the ranking metric's has no verdict.

    Args:
        record: the cell.
        adjusted: metric → p-value after the correction for all comparisons of the study.
    """
    rows = []
    for comparison in record.comparisons:
        p_value = adjusted.get(comparison.name)
        judged = {
            "p_adjusted": p_value,
            "verdict": ""
            if p_value is None
            else str(verdict(comparison, p_value, record.config["gates"]["alpha"])),
        }
        rows.append(
            tuple(
                judged[name] if name in judged else getattr(comparison, name)
                for name in _COMPARISON_COLUMNS
            )
        )
    return Table(columns=_COMPARISON_COLUMNS, rows=tuple(rows))


def tables(record: RunRecord, adjusted: Mapping[str, float]) -> dict[str, Table]:
    """Return the tables of a cell by name; those without rows are left out.

    Their first column is the cell, so that W&B, which joins the tables of one name over runs,
    shows one table of the whole study.
    """
    found = {
        "comparisons": comparisons_table(record, adjusted),
        "probes": probes_table(record),
        "documents": documents_table(record),
        "labels": labels_table(record),
        "confusions": confusions_table(record),
        "groups": groups_table(record),
    }
    cell = record.label or record.run_id
    return {
        name: Table(
            columns=("cell", *table.columns), rows=tuple((cell, *row) for row in table.rows)
        )
        for name, table in found.items()
        if table.rows
    }


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
