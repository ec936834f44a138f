from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import conversation

from ftsuite.choices import Shape
from ftsuite.config import ColumnsConfig
from ftsuite.data import columns as columns_module
from ftsuite.data import shapes
from ftsuite.data.columns import Layout, find_layout
from ftsuite.errors import DataError

DOLLY = Path(__file__).parents[1] / "../shared/data/dolly_3k/dolly_3k.json"
needs_dolly = pytest.mark.skipif(
    not DOLLY.is_file(), reason="real rows: ../shared/data/dolly_3k is not here"
)
COLUMNS = ColumnsConfig()
PAIR = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def to_messages(row, shape, columns=COLUMNS, said=None):
    layout = Layout(shape=shape, columns=columns)
    return shapes.to_messages(row, layout, "a.json, row 7", said)


def layout_of(names, shape=Shape.auto, columns=COLUMNS, group=None):
    return find_layout(names, shape, columns, "a.csv", group=group)


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        (conversation("Q", "A"), Shape.messages),
        ({"prompt": "Q", "completion": "A"}, Shape.prompt_completion),
        ({"question": "Q", "answer": "A", "id": 3}, Shape.question_answer),
        ({"instruction": "Q", "context": "", "response": "A"}, Shape.dolly),
        ({"instruction": "Q", "input": "", "output": "A", "category": "c"}, Shape.dolly),
        ({"instruction": "Q", "response": "A"}, Shape.dolly),
        ({"instruction": "Q", "context": None, "response": "A"}, Shape.dolly),
    ],
)
def test_every_shape_is_detected_and_becomes_the_same_messages(row, shape):
    assert layout_of(row) == Layout(shape=shape, columns=COLUMNS)
    assert to_messages(row, shape) == PAIR


def test_text_rows():
    assert layout_of(["text", "id"]).shape == Shape.text
    messages = to_messages({"text": "Once"}, Shape.text)
    assert messages == [{"role": "text", "content": "Once"}]
    assert shapes.alternates(messages)
    assert shapes.inject_system(messages, "S") == messages


def test_context_is_joined_and_kept_apart():
    row = {"instruction": "Why?", "input": "It rains.", "output": "Clouds."}
    assert to_messages(row, Shape.dolly)[0] == {
        "role": "user",
        "content": "Why?\n\nIt rains.",
        "instruction": "Why?",
        "context": "It rains.",
    }


def test_columns_have_other_names():
    columns = ColumnsConfig(
        question="q", answer="a", instruction="i", context="c", response="r", messages="chat"
    )
    assert to_messages({"q": "Q", "a": "A"}, Shape.question_answer, columns) == PAIR
    row = {"i": "Q", "c": "C", "r": "A"}
    assert to_messages(row, Shape.dolly, columns)[0]["context"] == "C"
    dolly = ColumnsConfig(instruction="i", context="c", response="r")
    assert layout_of(row, columns=dolly).shape == Shape.dolly
    assert to_messages({"chat": PAIR}, Shape.messages, columns) == PAIR


def test_no_shape_fits():
    with pytest.raises(
        DataError, match=r"a\.csv: the columns 'foo', 'bar' fit no known shape.*set"
    ):
        layout_of(["foo", "bar"])


@pytest.mark.parametrize(
    ("row", "shape", "missing"),
    [
        ({"question": "Q", "reply": "A"}, Shape.question_answer, "answer"),
        ({"prompt": "Q"}, Shape.prompt_completion, "completion"),
        ({"instruction": "Q", "input": "c"}, Shape.dolly, "response"),
        ({"conversation": []}, Shape.messages, "messages"),
        ({"body": "x"}, Shape.text, "text"),
    ],
)
def test_a_missing_column_names_those_that_are_there(row, shape, missing):
    there = ", ".join(map(repr, row))
    with pytest.raises(DataError, match=f"row 7: no column '{missing}', only {there}; set data"):
        to_messages(row, shape)


@pytest.mark.parametrize(
    ("row", "shape", "what"),
    [
        ({"question": None, "answer": "A"}, Shape.question_answer, "'question' holds null"),
        (
            {"question": ["SECRET"], "answer": "A"},
            Shape.question_answer,
            "'question' holds a value of type list",
        ),
        ({"text": ["SECRET"]}, Shape.text, "'text' holds a value of type list"),
        ({"instruction": "Q", "context": [1], "response": "A"}, Shape.dolly, "'context' holds"),
        ({"messages": "SECRET"}, Shape.messages, "type str, not a list of messages"),
        ({"messages": []}, Shape.messages, "no messages in it"),
        ({"text": "a\x00b"}, Shape.text, "a NUL character"),
        ({"messages": ["SECRET"]}, Shape.messages, "message 1: a value of type str"),
        ({"messages": [{"role": "user", "content": None}]}, Shape.messages, "message 1: .*null"),
        ({"messages": [{"role": "user"}]}, Shape.messages, "message 1: no column 'content'"),
        ({"text": "half \ud83d"}, Shape.text, "half a surrogate pair"),
    ],
)
def test_null_or_non_text_content_names_the_row(row, shape, what):
    with pytest.raises(DataError, match=rf"a\.json, row 7.*{what}|{what}") as caught:
        to_messages(row, shape)
    assert "a.json, row 7" in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("roles", "fine"),
    [
        ("ua", True),
        ("sua", True),
        ("uaua", True),
        ("suaua", True),
        ("", False),
        ("s", False),
        ("u", False),
        ("su", False),
        ("uau", False),
        ("au", False),
        ("uu", False),
        ("usa", False),
        ("uuaa", False),
        ("ssua", False),
        ("uata", False),
    ],
)
def test_turns_must_alternate_and_end_with_an_answer(roles, fine):
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    messages = [{"role": names[role], "content": "x"} for role in roles]
    assert shapes.alternates(messages) is fine


def test_a_system_message_is_injected_only_where_there_is_none():
    own = [{"role": "system", "content": "own"}, *PAIR]
    assert shapes.inject_system(own, "new") == own
    assert shapes.inject_system(PAIR, None) == PAIR
    injected = shapes.inject_system(PAIR, "new")
    assert injected == [{"role": "system", "content": "new"}, *PAIR]
    assert len(PAIR) == 2


@needs_dolly
def test_real_dolly_rows():
    rows = json.loads(DOLLY.read_text())
    assert layout_of(rows[0]).shape == Shape.dolly
    conversations = [to_messages(row, Shape.dolly) for row in rows]
    assert all(shapes.alternates(messages) for messages in conversations)
    assert sum("context" in messages[0] for messages in conversations) == 434


@pytest.mark.parametrize("answer", ["label", "category", "Intent", "summary"])
def test_an_answer_beside_a_text_is_not_dropped_without_a_word(answer):
    """It is trained where it is plain what is asked, and refused where it is not."""
    layout = layout_of(["text", answer, "id"])
    assert (layout.shape, layout.columns.prompt) == (Shape.prompt_completion, "text")
    assert layout.columns.completion == answer
    assert layout.notes == (f"'text' is the question, {answer!r} the answer",)
    with pytest.raises(DataError) as caught:
        layout_of(["text", answer, "title"])
    remedy = f"data.columns.prompt=text data.columns.completion={answer}"
    assert str(caught.value).startswith(f"a.csv: the column {answer!r} looks like an answer")
    assert remedy in str(caught.value)
    assert layout_of(["text", answer], Shape.text).shape == Shape.text
    assert layout_of(["text", "id"]).shape == Shape.text


def test_a_column_that_is_set_and_not_read_is_refused():
    columns = ColumnsConfig(text="body")
    with pytest.raises(
        DataError, match=r"data\.columns\.text = 'body': no such column; there are 'prompt'"
    ):
        layout_of(["prompt", "completion"], columns=columns)
    assert columns_module.unused_column(Shape.text, columns) == ""
    assert columns_module.unused_column(Shape.messages, columns) == "text"
    assert columns_module.unused_column(Shape.auto, columns) == ""


def test_one_column_for_two_things_is_found():
    columns = ColumnsConfig(prompt="completion")
    assert columns_module.shared_column(Shape.prompt_completion, columns) == "completion"
    assert columns_module.shared_column(Shape.auto, columns) == "completion"
    assert columns_module.shared_column(Shape.question_answer, columns) == ""
