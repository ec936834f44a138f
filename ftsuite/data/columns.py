"""Which columns of a data set hold what: found by their names, said, or refused with a remedy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftsuite.choices import Shape
from ftsuite.data import columnnames
from ftsuite.data.columnnames import (
    ANSWERS,
    PARTS_OF_QUESTIONS,
    QUESTIONS,
    SHAREGPT,
    SYSTEM,
    listed,
    names_like,
)
from ftsuite.errors import DataError, shorten

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ftsuite.config import ColumnsConfig

_SYSTEM_NOTE = "{!r} is the system message of its row"
USED_COLUMNS = {
    Shape.messages: ("messages",),
    Shape.prompt_completion: ("prompt", "completion"),
    Shape.question_answer: ("question", "answer"),
    Shape.dolly: ("instruction", "context", "response"),
    Shape.text: ("text",),
}
"""Which fields of `ColumnsConfig` a shape reads."""
EITHER = {"context": ("context", "input"), "response": ("response", "output")}
"""Fields of `ColumnsConfig` that are None by default, and the names that they stand for."""
PAIRS = {
    Shape.prompt_completion: ("prompt", "completion"),
    Shape.question_answer: ("question", "answer"),
    Shape.dolly: ("instruction", "response"),
}
"""The fields of a question and of its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How rows hold their conversations."""

    shape: Shape
    """Not auto."""
    columns: ColumnsConfig
    """With the names that the columns have in the file."""
    system: str | None = None
    """Column with the row's own system message."""
    notes: tuple[str, ...] = ()
    """What was taken for what, where the names had to be interpreted."""

    def used(self, there: Collection[str]) -> set[str]:
        """Return which columns of those that are there make the conversations."""
        named = {getattr(self.columns, field) for field in USED_COLUMNS[self.shape]}
        if self.shape is Shape.dolly:
            named.add(response_column(there, self.columns))
            if self.columns.context is None:
                named.add("context" if "context" in there else "input")
        return {name for name in [self.system, *named] if name is not None and name in there}


def find_layout(
    names: Collection[str],
    shape: Shape,
    columns: ColumnsConfig,
    where: str,
    *,
    group: str | None = None,
) -> Layout:
    """Return the shape of the rows and the columns to use.

    A shape's own names go first, in any case of letters; then one column that looks like a
    question beside one that looks like an answer.

    Args:
        names: column names of the data.
        shape: as configured; auto is found out.
        columns: configured column names.
        where: file or Hub id, for the error.
        group: column of the groups, which is no answer where another column is.

    Raises:
        DataError: no known shape fits, or the one that does would leave a part of the question,
            an answer or a column that was configured unused.
    """
    named = _as_written(names, columns)
    _require_configured(names, named, columns, where)
    found = shape
    if shape is Shape.auto:
        found, named = _find_shape(names, named, columns, where, group)
        _refuse_parts(names, found, named, where)
        if name := unused_column(found, columns):
            raise DataError(
                f"{where}: data.columns.{name} is set, but data.shape={found.value}, which these "
                "rows have, does not read it; set data.shape, or leave data.columns as it is"
            )
    elif shape in (Shape.prompt_completion, Shape.question_answer):
        named = _pair(names, shape, named, columns, group) or named
    _refuse_one_column_twice(found, named)
    system = None if found is Shape.text else _system_column(names, found, named)
    return Layout(
        shape=found,
        columns=named,
        system=system,
        notes=tuple(_taken(found, named, columns, system)),
    )


def _require_configured(
    names: Collection[str], named: ColumnsConfig, columns: ColumnsConfig, where: str
) -> None:
    """Refuse a column that was named in the settings and is not there.

    Raises:
        DataError: names the setting, and the columns that there are.
    """
    for field in dataclasses.fields(columns):
        wanted = getattr(columns, field.name)
        is_set = wanted != getattr(type(columns)(), field.name)
        if is_set and wanted is not None and getattr(named, field.name) not in names:
            raise DataError(
                f"{where}: data.columns.{field.name} = {shorten(wanted)!r}: no such column; there "
                f"are {listed(names)}"
            )


def with_row(layout: Layout, names: Collection[str], shape: Shape, where: str) -> Layout:
    """Return the layout for rows among which one has `names`, some of them new.

    Rows of JSON need not have the same keys, so a system message may come late.

    Args:
        layout: of the rows before.
        names: of the row.
        shape: as configured.
        where: file and row, for the error.

    Raises:
        DataError: a needed column is missing, or a part of the question would be left out.
    """
    named = layout.columns
    needed = [getattr(named, field) for field in USED_COLUMNS[layout.shape] if field != "context"]
    if layout.shape is Shape.dolly:
        needed[-1] = response_column(names, named)
    if missing := [name for name in needed if name not in names]:
        raise DataError(
            f"{where}: no column {missing[0]!r}, only {listed(names)}; give every row and every "
            "file of data the same columns, or set data.columns or data.shape"
        )
    if shape is Shape.auto:
        _refuse_parts(names, layout.shape, named, where)
    if layout.system or layout.shape is Shape.text:
        return layout
    if system := _system_column(names, layout.shape, named):
        notes = (*layout.notes, _SYSTEM_NOTE.format(system))
        return dataclasses.replace(layout, system=system, notes=notes)
    return layout


def unused_column(shape: Shape, columns: ColumnsConfig) -> str:
    """Return a field of `columns` that was set and that `shape` does not read, or nothing."""
    if shape is Shape.auto:
        return ""
    used = USED_COLUMNS[shape]
    return next((name for name in _set_fields(columns) if name not in used), "")


def shared_column(shape: Shape, columns: ColumnsConfig) -> str:
    """Return the column that `shape` would read as two things, or nothing."""
    shapes = USED_COLUMNS if shape is Shape.auto else [shape]
    for one in shapes:
        names = [name for field in USED_COLUMNS[one] if (name := getattr(columns, field))]
        if len(set(names)) < len(names):
            return str(max(names, key=names.count))
    return ""


def response_column(names: Collection[str], columns: ColumnsConfig) -> str:
    """Return the column of a dolly row's answer: as configured, else `response` or `output`."""
    if columns.response is not None:
        return columns.response
    return "output" if "output" in names and "response" not in names else "response"


def _set_fields(columns: ColumnsConfig) -> list[str]:
    default = type(columns)()
    return [
        field.name
        for field in dataclasses.fields(columns)
        if getattr(columns, field.name) != getattr(default, field.name)
    ]


def _as_written(names: Collection[str], columns: ColumnsConfig) -> ColumnsConfig:
    """The default names as the file writes them, such as `Question` for `question`."""
    found = {}
    for field, value in dataclasses.asdict(columns).items():
        if field in _set_fields(columns):
            continue
        usual = EITHER.get(field, (value,))
        alike = [name for name in names if str(name).lower() in usual]
        # Where a usual name is there, None stays: each row may have another of the two.
        if len(alike) == 1 and alike[0] not in usual:
            found[field] = alike[0]
        elif field == "messages" and not alike and SHAREGPT in names:
            found[field] = SHAREGPT
    return dataclasses.replace(columns, **found)


def _find_shape(
    names: Collection[str],
    named: ColumnsConfig,
    columns: ColumnsConfig,
    where: str,
    group: str | None,
) -> tuple[Shape, ColumnsConfig]:
    wanted = {
        Shape.messages: [named.messages],
        Shape.prompt_completion: [named.prompt, named.completion],
        Shape.question_answer: [named.question, named.answer],
        Shape.dolly: [named.instruction, response_column(names, named)],
    }
    for shape, needed in wanted.items():
        if all(name in names for name in needed):
            return shape, named
    set_fields = _set_fields(columns)
    if "text" not in set_fields:
        asks = "question" in set_fields or "answer" in set_fields
        shape = Shape.question_answer if asks else Shape.prompt_completion
        if pair := _pair(names, shape, named, columns, group):
            return shape, pair
    answers = names_like(ANSWERS, names, group)
    if named.text in names or list(names) == ["1"]:
        if answers:
            raise DataError(f"{where}: {columnnames.untrained(names, answers, named.text)}")
        return Shape.text, named if named.text in names else dataclasses.replace(named, text="1")
    questions = names_like(QUESTIONS, names, group)
    if questions and answers:
        raise DataError(f"{where}: {columnnames.ambiguous(questions, answers)}")
    known = ", ".join("+".join(needed) for needed in [*wanted.values(), [named.text]])
    two = list(names) if len(names) == 2 else ["…", "…"]
    remedy = columnnames.remedy([*questions, two[0]][0], [*answers, two[1]][0])
    raise DataError(
        f"{where}: the columns {listed(names)} fit no known shape ({known}); set data.shape and "
        f"data.columns, such as {remedy}"
    )


def _pair(
    names: Collection[str],
    shape: Shape,
    named: ColumnsConfig,
    columns: ColumnsConfig,
    group: str | None,
) -> ColumnsConfig | None:
    """The columns of the one question and the one answer, where there is one of each."""
    set_fields, found = _set_fields(columns), {}
    is_numbered = list(names) == ["1", "2"]
    for number, (field, words) in enumerate(zip(PAIRS[shape], (QUESTIONS, ANSWERS), strict=True)):
        if field in set_fields or getattr(named, field) in names:
            alike = [getattr(named, field)]
        elif is_numbered:
            alike = [["1", "2"][number]]
        else:
            alike = names_like(words, names, group)
        if len(alike) != 1 or alike[0] not in names:
            return None
        found[field] = alike[0]
    return dataclasses.replace(named, **found) if len(set(found.values())) == 2 else None


def _refuse_parts(names: Collection[str], shape: Shape, named: ColumnsConfig, where: str) -> None:
    if shape not in (Shape.question_answer, Shape.prompt_completion):
        return
    used = {named.question, named.answer, named.prompt, named.completion}
    for name in names:
        if str(name).lower() in PARTS_OF_QUESTIONS and name not in used:
            raise DataError(
                f"{where}: the column {name!r} looks like a part of the question, but would be "
                f"left out; join it to the question, or set data.shape={shape.value} to leave it "
                "out"
            )


def _refuse_one_column_twice(shape: Shape, named: ColumnsConfig) -> None:
    """Refuse a prompt and a completion from one column: the answer would be in its own prompt."""
    for one, other in [PAIRS[shape]] if shape in PAIRS else []:
        if getattr(named, one) == getattr(named, other):
            raise DataError(
                f"data.columns.{one} and data.columns.{other} are both {getattr(named, one)!r}: "
                "the answer would stand in its own prompt; name two columns"
            )


def _system_column(names: Collection[str], shape: Shape, named: ColumnsConfig) -> str | None:
    used = [getattr(named, field) for field in USED_COLUMNS[shape]]
    return next((n for n in names if str(n).lower() in SYSTEM and n not in used), None)


def _taken(
    shape: Shape, named: ColumnsConfig, columns: ColumnsConfig, system: str | None
) -> Iterable[str]:
    """What the columns were taken for, if they are not the ones that were asked for."""
    changed = [
        field
        for field in USED_COLUMNS[shape]
        if getattr(named, field) not in (None, getattr(columns, field))
    ]
    said = []
    if changed and shape in PAIRS:
        one, other = (getattr(named, field) for field in PAIRS[shape])
        said.append(f"{one!r} is the question")
        if shape is Shape.dolly and named.context:
            said.append(f"{named.context!r} its context")
        if other:
            said.append(f"{other!r} the answer")
    elif changed:
        what = "the messages" if shape is Shape.messages else "the text"
        said.append(f"{getattr(named, changed[0])!r} holds {what}")
    if system:
        said.append(_SYSTEM_NOTE.format(system))
    return [", ".join(said)] if said else []
