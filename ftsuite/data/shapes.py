"""Rows of any known shape as conversations."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from ftsuite.choices import Shape
from ftsuite.data.columnnames import listed
from ftsuite.data.columns import response_column
from ftsuite.errors import DataError, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ftsuite.config import ColumnsConfig
    from ftsuite.data.columns import Layout

Message = dict[str, Any]
Conversation = list[Message]
TEXT_ROLE = "text"
"""Role of the one pseudo-message of a plain text row: no template, every token trained."""
ROLES = ("system", "user", "assistant")
SPEAKING = ("weight", "tool_calls", "function_call", "reasoning_content")
"""Keys of a message that this suite does not read, and that change what is learned."""
SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant"}
"""Other names of roles, as ShareGPT's files have them."""
NUMBERS = (int, float)
JSON_VALUES = (*NUMBERS, bool, dict, list)
"""Types of values that become text: of questions, and of answers."""
KINDS = {
    int: "whole numbers",
    float: "numbers with a point",
    bool: "true and false",
    dict: "JSON objects",
    list: "JSON arrays",
}
"""Words for them."""


def to_messages(
    row: Mapping[str, Any], layout: Layout, where: str, said: Counter[str] | None = None
) -> Conversation:
    """Return a row as a conversation.

    A dolly row's context is joined to its instruction in `content`, and both are kept apart in the
    message's `instruction` and `context` for templates that have a place for them.

    Args:
        row: column names and values.
        layout: how the row holds its conversation.
        where: file and row, for errors.
        said: counts what was read otherwise than it is written, in words without any text.

    Raises:
        DataError: a column is missing, or its value is null or cannot be text.
    """
    said, columns = Counter() if said is None else said, layout.columns
    match layout.shape:
        case Shape.messages:
            messages = _from_messages(row, columns.messages, where, said)
        case Shape.prompt_completion:
            messages = _pair(row, columns.prompt, columns.completion, where, said)
        case Shape.question_answer:
            messages = _pair(row, columns.question, columns.answer, where, said)
        case Shape.dolly:
            messages = _from_dolly(row, columns, where, said)
        case Shape.text:
            messages = [{"role": TEXT_ROLE, "content": _text(row, columns.text, where)}]
        case _:
            raise AssertionError(f"shape {layout.shape} has to be detected first")
    for message in messages:
        if message["role"] == "assistant":
            _take_off_ends(message, said)
    return messages if layout.system is None else _own_system(row, layout.system, messages, where)


def _take_off_ends(message: Message, said: Counter[str]) -> None:
    """Take white space off the end of an answer, and off the beginning where it is one line.

    Some templates drop it and others train it, while a label with a space in front, as older
    formats write it, is the same label. Code of several lines keeps its first indentation.
    """
    text = message["content"]
    bare = text.rstrip() if "\n" in text.strip() else text.strip()
    if bare and bare != text:
        said["white space at the ends of answers was taken off"] += 1
        message["content"] = bare


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


def _pair(
    row: Mapping[str, Any], question: str, answer: str, where: str, said: Counter[str]
) -> Conversation:
    asked = _as_text(row, question, where, said, NUMBERS)
    answered = _as_text(row, answer, where, said, JSON_VALUES)
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _own_system(
    row: Mapping[str, Any], name: str, messages: Conversation, where: str
) -> Conversation:
    """The conversation with the system message of the row's own column, where it has one."""
    # Rows without one have null or nothing.
    text = "" if row.get(name) is None else _text(row, name, where)
    if not text.strip():
        return messages
    if messages[0]["role"] == "system":
        raise DataError(
            f"{where}: a system message in column {name!r} and another in the messages; take one "
            "out"
        )
    return [{"role": "system", "content": text}, *messages]


def _from_messages(
    row: Mapping[str, Any], name: str, where: str, said: Counter[str]
) -> Conversation:
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
        role, content = _role_and_content(message, place, said)
        for key in SPEAKING:
            # An empty one says nothing; a weight of 1 is what every answer has.
            if message.get(key) not in (None, [], "", 1):
                raise DataError(
                    f"{place}: the key {key!r} would be left out, though it says what is trained; "
                    "take it out, or convert the row"
                )
        messages.append({"role": role, "content": content})
    return messages


def _role_and_content(message: Message, place: str, said: Counter[str]) -> tuple[str, str]:
    """A message's role and text, with the keys and roles of ShareGPT's files read as the usual."""
    keys = ("role", "content")
    if "from" in message and not any(key in message for key in keys):
        keys = ("from", "value")
        said["the keys 'from' and 'value' of messages are read as role and content"] += 1
    written = _text(message, keys[0], place)
    role = SPEAKERS.get(written, written)
    if role not in ROLES:
        raise DataError(
            f"{place}: the role {shorten(written)!r} is none of {', '.join(ROLES)}; rename it, or "
            "convert the row"
        )
    if role != written:
        said[f"messages of the role {written!r} are read as {role}"] += 1
    return role, _text(message, keys[1], place)


def _from_dolly(
    row: Mapping[str, Any], columns: ColumnsConfig, where: str, said: Counter[str]
) -> Conversation:
    messages = _pair(row, columns.instruction, response_column(row, columns), where, said)
    instruction = messages[0]["content"]
    if columns.context is not None:
        name = columns.context
        context = _value(row, name, where)
    else:
        name = "context" if "context" in row else "input"
        context = row.get(name)
    # Most rows have no context: null and blank both say so.
    context = "" if context is None else _as_text(row, name, where, said, NUMBERS)
    if context.strip():
        content = f"{instruction}\n\n{context}"
        messages[0] |= {"content": content, "instruction": instruction, "context": context}
    return messages


def _value(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise DataError(
            f"{where}: no column {name!r}, only {listed(row)}; set data.columns or data.shape"
        )
    return row[name]


def _as_text(
    row: Mapping[str, Any],
    name: str,
    where: str,
    said: Counter[str],
    types: tuple[type, ...],
) -> str:
    """A value as text: of a text itself, of other `types` as JSON writes them."""
    value = _value(row, name, where)
    kind = type(value)
    if kind not in types:
        return _text(row, name, where)
    text = plain_text(value)
    if text is None:
        raise DataError(
            f"{where}: column {name!r} holds {_kind(value)} that JSON cannot write, such as nan "
            "or a date; mend or remove the row"
        )
    said[f"{KINDS[kind]} in {name!r} are read as text"] += 1
    return _text({name: text}, name, where)


def plain_text(value: object) -> str | None:
    """Return a JSON value as text; None of one that JSON cannot write, such as nan.

    Whole numbers as they are, others by Python's shortest form (0.1), true and false, objects and
    arrays as JSON.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        return None


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
