"""The report's section on documents: won and lost, by label, confused, by group, side by side."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ftsuite.errors import shorten
from ftsuite.reporting import formats as fmt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.docrecords import DocumentRow, DocumentTable, GroupTable, LabelRow
    from ftsuite.records import RunRecord
    from ftsuite.reporting.study import Study

LONGEST_NAME = 80
"""Characters of a label or group in a table."""
LONGEST_WORD = 40
"""Characters without a space after which a line may end."""
_BREAK = "\ue000"
"""Private use: stands for such an end while the text is escaped."""


def section(study: Study) -> str:
    """The documents of one cell, the recommended one or the first; empty if there are none."""
    cell = study.shown
    if cell is None or not (cell.documents or cell.groups):
        return ""
    parts = [_intro(study, cell)]
    for table in cell.documents:
        parts += _task(table)
    for groups in cell.groups:
        parts += _groups(groups)
    return "\n\n".join(part for part in parts if part)


def _intro(study: Study, cell: RunRecord) -> str:
    who = "the recommended cell"
    if study.pick is None:
        who = "the first of the ranking" if study.ranking else "the first cell"
    return (
        f"Base and {fmt.code(cell.label)}, {who}. Every document of every cell is in the store: "
        f"`ftsuite show {cell.run_id} --documents` lists those of this one."
    )


def _task(table: DocumentTable) -> list[str]:
    return [
        f"### Documents of {fmt.code(table.task)}",
        _counts(table),
        _lengths(table),
        _labels(table.labels, "right answer") + _left_out(table.labels_left_out, "rarer answer"),
        _no_labels(table),
        _fields(table),
        _confusions(table),
        _listed("Won", table.won_documents, table.won, table),
        _listed("Lost", table.lost_documents, table.lost, table),
        _listed("Answers", table.examples, table.n, table),
    ]


def _counts(table: DocumentTable) -> str:
    documents = fmt.plural(table.n, "document")
    if not table.metric:
        return f"{documents}. No metric of the task says of each whether it is won or lost."
    without = table.n - table.won - table.lost - table.same
    rest = f" Of {fmt.plural(without, 'document')} it has no value." if without else ""
    return (
        f"By {fmt.code(table.metric)} tuned is better than base on {table.won:,} of {documents}, "
        f"worse on {table.lost:,}, and the same on {table.same:,}.{rest}"
    )


def _lengths(table: DocumentTable) -> str:
    if table.lengths is None:
        return ""
    found = table.lengths
    return (
        f"Median length of an answer, in characters: {found.expected:g} expected, {found.base:g} "
        f"from base, {found.tuned:g} from tuned."
    )


def _labels(found: Sequence[LabelRow], what: str) -> str:
    if not found:
        return ""
    rows = [
        [
            _name(row.label),
            f"{row.n:,}",
            *(f"{count:,}" for count in (row.base_right, row.tuned_right, row.gained, row.lost)),
        ]
        for row in found
    ]
    headers = [what, ">documents", ">base right", ">tuned right", ">gained", ">lost"]
    return fmt.table(headers, rows)


def _no_labels(table: DocumentTable) -> str:
    """Why there is no table by label where a reader may expect one."""
    if table.contradicted:
        return (
            f"No table by label: of {fmt.plural(table.contradicted, 'document')} the choice with "
            f"the highest score and the value of {fmt.code(table.metric)} disagree on whether the "
            "answer is right."
        )
    if table.unlabelled:
        return (
            f"No table by label: {table.unlabelled:,} of {fmt.plural(table.n, 'document')} "
            f"{'has' if table.unlabelled == 1 else 'have'} not exactly one right answer among the "
            "labels that the task's YAML lists in `metadata.labels`."
        )
    return ""


def _fields(table: DocumentTable) -> str:
    if not table.fields:
        return ""
    return (
        f"{_labels(table.fields, 'field')}{_left_out(table.fields_left_out, 'rarer field')}\n\n"
        "<sub>A field is right where its whole value equals the expected one as JSON. Fields that "
        "an answer adds are not in this table.</sub>"
    )


def _confusions(table: DocumentTable) -> str:
    if not table.confusions and (table.another_base or table.another_tuned):
        return (
            f"Wrong answers: {table.another_base:,} by base and {table.another_tuned:,} by tuned, "
            "each a text that is none of the labels."
        )
    if not table.confusions:
        return ""
    rows = [
        [_name(row.expected), _name(row.answered), f"{row.base:,}", f"{row.tuned:,}"]
        for row in table.confusions
    ]
    headers = ["right answer", "answered instead", ">by base", ">by tuned"]
    left_out = _left_out(table.confusions_left_out, "rarer pair")
    return f"Wrong answers, the most frequent first:\n\n{fmt.table(headers, rows)}{left_out}"


def _listed(title: str, rows: Sequence[DocumentRow], total: int, table: DocumentTable) -> str:
    if not rows:
        return ""
    said = f"**{title}**, {fmt.plural(total, 'document')}"
    if total > len(rows):
        which = f"{len(rows):,} of them" if title == "Answers" else "those with the largest change"
        said += f"; {which} (of equal ones the document's hash decides)"
    values = {value for row in rows for value in (row.base_value, row.tuned_value)}
    # Right and wrong are seen in the answers, unless they contradict the metric.
    shows_values = bool(table.contradicted) or not values <= {None, 0.0, 1.0}
    # A member's name is its documents' group, and stands before their number.
    grouped = any(row.group and row.group != row.member for row in rows)
    headers = ["document", *(["group"] if grouped else []), "question", "expected", "base", "tuned"]
    headers += [f"{fmt.escape(table.metric)}, base → tuned"] if shows_values else []
    lines = []
    for row in rows:
        texts = [_text(text) for text in (row.question, row.expected, row.base, row.tuned)]
        group = [_name(row.group)] if grouped else []
        name = fmt.escape(f"{row.member} {row.number}".strip())
        change = f"{fmt.score(row.base_value)} → {fmt.score(row.tuned_value)}"
        lines.append([name, *group, *texts, *([fmt.unbroken(change)] if shows_values else [])])
    return f"{said}:\n\n{fmt.table(headers, lines)}"


def _groups(table: GroupTable) -> list[str]:
    rows = [
        [
            _name(row.group),
            f"{row.n:,}",
            fmt.score(row.base),
            fmt.score(row.tuned),
            fmt.change(row.tuned - row.base),
        ]
        for row in table.rows
    ]
    headers = ["group", ">documents", ">base", ">tuned", ">difference"]
    better = "higher" if table.higher_is_better else "lower"
    return [
        f"### {fmt.code(table.name)} by group",
        fmt.table(headers, rows) + _left_out(table.left_out, "smaller group"),
        f"<sub>{better.capitalize()} is better. No test is made of these differences; the fewer "
        "the documents, the more of them is chance.</sub>",
    ]


def _left_out(number: int, noun: str) -> str:
    return f"\n\n{fmt.plural(number, noun)} left out." if number else ""


def _name(text: str) -> str:
    return _breakable(text, LONGEST_NAME) or "*(none)*"


def _text(text: str) -> str:
    return _breakable(text) or "*(empty)*"


def _breakable(text: str, limit: int | None = None) -> str:
    """Escape a text, and let a line end inside of a word that no column has room for."""
    words = re.sub(rf"(\S{{{LONGEST_WORD}}})(?=\S)", rf"\1{_BREAK}", text.replace(_BREAK, " "))
    return fmt.escape(words if limit is None else shorten(words, limit)).replace(_BREAK, "<wbr>")
