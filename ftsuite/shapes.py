"""Rows of any known shape as conversations."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ftsuite.choices import Shape
from ftsuite.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ftsuite.config import ColumnsConfig

Message = dict[str, Any]
Conversation = list[Message]
TEXT_ROLE = "text"
"""Role of the one pseudo-message of a plain text row: no template, every token trained."""


ROLES = ("system", "user", "assistant")
SPEAKING = ("weight", "tool_calls", "function_call", "reasoning_content")
"""Keys of a message that this suite does not read, and that change what is learned."""
LIKE_QUESTIONS = ("context", "input", "instruction", "system", "passage")
"""Names of columns that belong to a question."""
LIKE_ANSWERS = (
    *("answer", "category", "class", "completion", "intent", "label", "labels", "output"),
    *("response", "sentiment", "summary", "target", "translation"),
)
"""Names of columns that hold what a model should learn to say."""


def detect_shape(names: Collection[str], columns: ColumnsConfig, where: str) -> Shape:
    """Return the first shape whose columns are all there.

    Args:
        names: column names of the data.
        columns: configured column names.
        where: file or Hub id, for the error.

    Raises:
        DataError: no known shape fits, or the one that does would leave an answer or a column
            that was configured unused.
    """
    wanted = {
        Shape.messages: [columns.messages],
        Shape.prompt_completion: [columns.prompt, columns.completion],
        Shape.question_answer: [columns.question, columns.answer],
        Shape.dolly: [columns.instruction, _response(names, columns)],
        Shape.text: [columns.text],
    }
    found = next(
        (shape for shape, needed in wanted.items() if all(name in names for name in needed)), None
    )
    if found is None:
        known = ", ".join("+".join(needed) for needed in wanted.values())
        raise DataError(
            f"{where}: the columns {_listed(names)} fit no known shape ({known}); "
            "set data.shape and data.columns"
        )
    answers = [name for name in names if name.lower() in LIKE_ANSWERS]
    if found is Shape.text and answers:
        raise DataError(
            f"{where}: the column {answers[0]!r} looks like an answer, but would not be trained "
            f"beside {columns.text!r}; set data.shape=prompt_completion "
            f"data.columns.prompt={columns.text} data.columns.completion={answers[0]}, or "
            "data.shape=text to leave it out"
        )
    used = {columns.question, columns.answer, columns.prompt, columns.completion}
    asked = [name for name in names if name.lower() in LIKE_QUESTIONS and name not in used]
    if found in (Shape.question_answer, Shape.prompt_completion) and asked:
        raise DataError(
            f"{where}: the column {asked[0]!r} looks like a part of the question, but would be "
            f"left out; join it to the question, or set data.shape={found.value} to leave it out"
        )
    if name := unused_column(found, columns):
        raise DataError(
            f"{where}: data.columns.{name} is set, but data.shape={found.value}, which these "
            "rows have, does not read it; set data.shape, or leave data.columns as it is"
        )
    return found


USED_COLUMNS = {
    Shape.messages: ("messages",),
    Shape.prompt_completion: ("prompt", "completion"),
    Shape.question_answer: ("question", "answer"),
    Shape.dolly: ("instruction", "context", "response"),
    Shape.text: ("text",),
}
"""Which fields of `ColumnsConfig` a shape reads."""


def unused_column(shape: Shape, columns: ColumnsConfig) -> str:
    """Return a field of `columns` that was set and that `shape` does not read, or nothing."""
    if shape is Shape.auto:
        return ""
    default = type(columns)()
    for field in dataclasses.fields(columns):
        is_set = getattr(columns, field.name) != getattr(default, field.name)
        if is_set and field.name not in USED_COLUMNS[shape]:
            return field.name
    return ""


def shared_column(shape: Shape, columns: ColumnsConfig) -> str:
    """Return the column that `shape` would read as two things, or nothing."""
    shapes = USED_COLUMNS if shape is Shape.auto else [shape]
    for one in shapes:
        names = [name for field in USED_COLUMNS[one] if (name := getattr(columns, field))]
        if len(set(names)) < len(names):
            return str(max(names, key=names.count))
    return ""


def to_messages(
    row: Mapping[str, Any], shape: Shape, columns: ColumnsConfig, where: str
) -> Conversation:
    """Return a row as a conversation.

    A dolly row's context is joined to its instruction in `content`, and both are kept apart in the
    message's `instruction` and `context` for templates that have a place for them.

    Args:
        row: column names and values.
        shape: how the row holds its conversation; not auto.
        columns: configured column names.
        where: file and row, for errors.

    Raises:
        DataError: a column is missing, or its value is null or not text.
    """
    match shape:
        case Shape.messages:
            return _from_messages(row, columns.messages, where)
        case Shape.prompt_completion:
            return _pair(_text(row, columns.prompt, where), _text(row, columns.completion, where))
        case Shape.question_answer:
            return _pair(_text(row, columns.question, where), _text(row, columns.answer, where))
        case Shape.dolly:
            return _from_dolly(row, columns, where)
        case Shape.text:
            return [{"role": TEXT_ROLE, "content": _text(row, columns.text, where)}]
        case _:
            raise AssertionError(f"shape {shape} has to be detected first")


def inject_system(messages: Conversation, system: str | None) -> Conversation:
    """Return the conversation with the system message in front, unless it has one."""
    if system is None or messages[0]["role"] in ("system", TEXT_ROLE):
        return messages
    return [{"role": "system", "content": system}, *messages]


def alternates(messages: Sequence[Message]) -> bool:
    """Say whether turns alternate user, assistant and end with assistant.

    A leading system message does not count. Plain text always passes.
    """
    roles = [message["role"] for message in messages]
    if roles == [TEXT_ROLE]:
        return True
    turns = roles[1:] if roles[:1] == ["system"] else roles
    return len(turns) >= 2 and turns == ["user", "assistant"] * (len(turns) // 2)


def _pair(user: str, assistant: str) -> Conversation:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _from_messages(row: Mapping[str, Any], name: str, where: str) -> Conversation:
    value = _value(row, name, where)
    if value == []:
        raise DataError(f"{where}: column {name!r} has no messages in it; mend or remove the row")
    if not isinstance(value, list):
        raise DataError(
            f"{where}: column {name!r} holds {_kind(value)}, not a list of messages; "
            "set data.shape or mend the row"
        )
    messages = []
    for number, message in enumerate(value, start=1):
        place = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise DataError(
                f"{place}: {_kind(message)}, not an object with role and content; mend the row"
            )
        role = _text(message, "role", place)
        if role not in ROLES:
            raise DataError(
                f"{place}: the role {role!r} is none of {', '.join(ROLES)}; rename it, or convert "
                "the row"
            )
        for key in SPEAKING:
            # An empty one says nothing; a weight of 1 is what every answer has.
            if message.get(key) not in (None, [], "", 1):
                raise DataError(
                    f"{place}: the key {key!r} would be left out, though it says what is trained; "
                    "take it out, or convert the row"
                )
        messages.append({"role": role, "content": _text(message, "content", place)})
    return messages


def _from_dolly(row: Mapping[str, Any], columns: ColumnsConfig, where: str) -> Conversation:
    instruction = _text(row, columns.instruction, where)
    response = _text(row, _response(row, columns), where)
    if columns.context is not None:
        name = columns.context
        context = _value(row, name, where)
    else:
        name = "context" if "context" in row else "input"
        context = row.get(name)
    # Most rows have no context: null and blank both say so.
    context = "" if context is None else _text(row, name, where)
    messages = _pair(instruction, response)
    if context.strip():
        content = f"{instruction}\n\n{context}"
        messages[0] |= {"content": content, "instruction": instruction, "context": context}
    return messages


def _response(names: Collection[str], columns: ColumnsConfig) -> str:
    if columns.response is not None:
        return columns.response
    return "output" if "output" in names and "response" not in names else "response"


def _value(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise DataError(
            f"{where}: no column {name!r}, only {_listed(row)}; set data.columns or data.shape"
        )
    return row[name]


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = _value(row, name, where)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: column {name!r} holds {_kind(value)}, not text; mend or remove the row"
        )
    if "\x00" in value:
        raise DataError(f"{where}: column {name!r} holds a NUL character; mend or remove the row")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: column {name!r} holds half a surrogate pair (character {error.start}), "
                "which is not text; mend or remove the row"
            ) from error
    return value


def _kind(value: Any) -> str:
    # Never the value itself: rows must not reach the log.
    return "null" if value is None else f"a value of type {type(value).__name__}"


def _listed(names: Collection[str]) -> str:
    return ", ".join(repr(str(name)) for name in names) or "none"
