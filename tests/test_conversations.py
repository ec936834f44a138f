"""Files as conversations, what is said of them, and what is refused before that."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pandas
import pytest
from tiny import conversation, write_jsonl

from ftsuite.choices import Shape
from ftsuite.config import ColumnsConfig, DataConfig
from ftsuite.data import conversations, datafiles
from ftsuite.errors import ConfigError, DataError

SHARED = Path(__file__).parents[1] / "../shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="real rows: ../shared is not here")


def read(train, dropped=None, **data):
    counts = Counter() if dropped is None else dropped
    return conversations.read(DataConfig(train=str(train), **data), counts, None, None)


def texts(found, split="train"):
    """Texts of each conversation, in the order of the file."""
    pool = found.pools[split]
    rows = [json.loads(pool.spool[number]) for number in range(len(pool))]
    return [[message["content"] for message in messages] for messages, _ in rows]


def groups(found, split="train"):
    pool = found.pools[split]
    return [json.loads(pool.spool[number])[1] for number in range(len(pool))]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_of_labels_is_read_and_said(tmp_path):
    path = write(tmp_path / "a.csv", "id,text,label,date\n1,Hi,greet,May\n2,Bye,leave,June\n")
    found = read(path)
    assert found.layout.shape == Shape.prompt_completion
    assert texts(found) == [["Hi", "greet"], ["Bye", "leave"]]
    assert found.notes == (
        "'text' is the question, 'label' the answer",
        "columns not used: 'id', 'date'",
    )


def test_a_table_without_a_header_is_read_and_said(tmp_path):
    path = write(tmp_path / "a.csv", "Hi,greet\nHello,greet\n")
    found = read(path, validation=str(path), header=False)
    assert texts(found) == [["Hi", "greet"], ["Hello", "greet"]]
    assert found.notes == (
        "the first line names no columns, so it is a row, and they are called '1', '2'",
        "'1' is the question, '2' the answer",
    )
    columns = ColumnsConfig(prompt="2", completion="1")
    assert texts(read(path, header=False, columns=columns))[0] == ["greet", "Hi"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("answers", "expected", "said"),
    [
        ([0, 1, -12], ["0", "1", "-12"], "whole numbers in 'label' are read as text (3 values)"),
        ([0.1, 2.0, 1e16], ["0.1", "2.0", "1e+16"], "numbers with a point in 'label' are read as"),
        ([True, False], ["true", "false"], "true and false in 'label' are read as text (2 values)"),
        ([{"é": [1, None]}], ['{"é": [1, null]}'], "JSON objects in 'label' are read as text (1 v"),
        ([["a", "ö"], []], ['["a", "ö"]', "[]"], "JSON arrays in 'label' are read as text (2 val"),
    ],
)
def test_answers_that_are_no_text_become_text_and_are_counted(
    tmp_path, suffix, answers, expected, said
):
    rows = [{"text": f"{number}", "label": answer} for number, answer in enumerate(answers)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, rows)
    else:
        pandas.DataFrame(rows).to_parquet(path)
    found = read(path)
    assert [answer for _, answer in texts(found)] == expected
    assert any(note.startswith(said) for note in found.notes)


def test_questions_may_be_numbers(tmp_path):
    found = read(write_jsonl(tmp_path / "a.jsonl", [{"question": 5, "answer": "five"}]))
    assert texts(found) == [["5", "five"]]
    assert found.notes == ("whole numbers in 'question' are read as text (1 value)",)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a", "label": None}, "row 2: column 'label' holds null"),
        (
            {"text": "a", "label": math.nan},
            "row 2: column 'label' holds a value of type float that",
        ),
        (
            {"text": "a", "label": {"b": math.inf}},
            "row 2: column 'label' holds a value of type dict",
        ),
        ({"text": True, "label": "b"}, "row 2: column 'text' holds a value of type bool"),
        ({"text": {"SECRET": 1}, "label": "b"}, "row 2: column 'text' holds a value of type dict"),
        ({"text": "a", "label": ["\ud83d"]}, "row 2: column 'label' holds half a surrogate pair"),
    ],
)
def test_values_that_cannot_be_text_name_the_row(tmp_path, row, said):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [{"text": "a", "label": 1}, row]))
    with pytest.raises(DataError) as caught:
        read(path)
    assert said in str(caught.value) and "SECRET" not in str(caught.value)


def test_dates_are_no_json(tmp_path):
    frame = pandas.DataFrame({"text": ["a"], "label": pandas.to_datetime(["2020-01-01"])})
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1: column 'label' holds a value of type datetime"):
        read(tmp_path / "a.parquet")


def test_sharegpt_is_read_and_said(tmp_path):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    bot = [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Yes"}]
    rows = [{"id": 1, "conversations": turns}, {"id": 2, "conversations": bot}]
    rows.append({"conversations": [{"from": "system", "value": "Sing."}, *turns]})
    found = read(write_jsonl(tmp_path / "a.jsonl", rows))
    assert texts(found) == [["Hi", "Hello"], ["Hi", "Yes"], ["Sing.", "Hi", "Hello"]]
    assert found.notes == (
        "'conversations' holds the messages",
        "columns not used: 'id'",
        "the keys 'from' and 'value' of messages are read as role and content (5 values)",
        "messages of the role 'human' are read as user (2 values)",
        "messages of the role 'gpt' are read as assistant (2 values)",
        "messages of the role 'bot' are read as assistant (1 value)",
    )
    rows = [{"conversations": [{"from": "tool", "value": "x"}, *turns]}]
    with pytest.raises(DataError, match="message 1: the role 'tool' is none of system, user, ass"):
        read(write_jsonl(tmp_path / "a.jsonl", rows))


def test_each_row_has_its_own_system_message(tmp_path):
    pair = {"prompt": "a", "completion": "b"}
    rows = [pair, pair | {"system": "Sing."}, pair | {"system": None}, pair | {"system": " "}]
    found = read(write_jsonl(tmp_path / "a.jsonl", rows))
    assert texts(found) == [["a", "b"], ["Sing.", "a", "b"], ["a", "b"], ["a", "b"]]
    assert found.notes == ("'system' is the system message of its row",)
    rows = [conversation("a", "b", system="Hum.") | {"system": "Sing."}]
    with pytest.raises(DataError, match="row 1: a system message in column 'system' and another"):
        read(write_jsonl(tmp_path / "a.jsonl", rows))


def test_groups_travel_as_text_and_rows_without_one_are_counted(tmp_path):
    pair = {"prompt": "a", "completion": "b"}
    values = [" north ", 3, 2.5, True, None, ""]
    rows = [*[pair | {"region": value} for value in values], pair]
    found = read(write_jsonl(tmp_path / "a.jsonl", rows), group="region")
    assert groups(found) == ["north", "3", "2.5", "true", "", "", ""]
    assert found.notes == ("no value in 'region', so in no group: 3 rows",)
    assert groups(read(tmp_path / "a.jsonl")) == [""] * 7
    for value in (["a"], {"a": 1}, math.nan):
        path = write_jsonl(tmp_path / "a.jsonl", [pair | {"region": value}])
        with pytest.raises(DataError, match=r"row 1: data\.group = 'region' holds a value of type"):
            read(path, group="region")


def test_a_group_with_a_long_name_is_refused(tmp_path):
    rows = [conversation(f"Q{n}", "A") | {"region": "x" * n} for n in (200, 201)]
    assert len(groups(read(write_jsonl(tmp_path / "a.jsonl", rows[:1]), group="region"))[0]) == 200
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as caught:
        read(path, group="region")
    assert str(caught.value) == (
        f"{path}, row 2: data.group = 'region' holds a value of 201 characters, more than 200; "
        "name another column, or give shorter values"
    )


def test_a_dropped_row_has_no_group_to_give(tmp_path):
    text = "prompt,completion,g\na,,x\nb,c,y\n"
    dropped = Counter()
    found = read(write(tmp_path / "a.csv", text), dropped, group="g")
    assert (groups(found), sum(dropped.values())) == (["y"], 1)


def test_a_group_that_is_no_column_is_refused(tmp_path):
    train = write(tmp_path / "train.csv", "prompt,completion\na,b\n")
    test = write(tmp_path / "test.csv", "prompt,completion,region\nc,d,north\n")
    match = r"data\.group = 'Region': .*train\.csv has no such column, only 'prompt', 'completion'"
    for action in (read, lambda file, **data: datafiles.check(DataConfig(train=str(file), **data))):
        with pytest.raises(ConfigError, match=match):
            action(train, group="Region")
        with pytest.raises(ConfigError, match=r"test\.csv has no such column, only .*'region'"):
            action(train, test=str(test), group="Region", validation_fraction=0)
        # Rows that are only trained on need none.
        action(train, test=str(test), group="region", validation_fraction=0)
        with pytest.raises(ConfigError, match=r"train\.csv has no such column"):
            action(train, test=str(test), group="region", validation_fraction=0.1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text,category\na,b\n", "no column 'label', only 'text', 'category'; give every row and"),
        ("Text,Label\na,b\n", "no column 'text', only 'Text', 'Label'"),
        ("a sentence,b\nanother,b\n", "no column 'text', only '1', '2'"),
        ("text,label,context\na,b,c\n", "the column 'context' looks like a part of the question"),
    ],
)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_file_must_have_the_same_columns(tmp_path, split, text, said):
    train = write(tmp_path / "train.csv", "text,label\na,b\n")
    other = write(tmp_path / "other.csv", text)
    with pytest.raises(DataError) as caught:
        read(train, **{split: str(other)})
    assert str(caught.value).startswith(f"{other}: ") and said in str(caught.value)


def test_other_files_in_another_format_and_order(tmp_path):
    train = write(tmp_path / "train.csv", "text,label\na,b\n")
    test = write_jsonl(tmp_path / "test.jsonl", [{"label": 1, "text": "c", "note": "x"}])
    found = read(train, test=str(test))
    assert texts(found, "test") == [["c", "1"]]
    assert found.notes[1:] == (
        "columns not used: 'note'",
        "whole numbers in 'label' are read as text (1 value)",
    )


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("header", True, "no file of data is CSV or TSV"),
        ("encoding", "utf8x", "no text encoding"),
        ("train", "", "name a file or a Hub id"),
    ],
)
def test_settings_that_do_nothing_are_refused(tmp_path, field, value, said):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(ConfigError, match=said) as caught:
        datafiles.check(DataConfig(**({"train": str(path)} | {field: value})))
    assert caught.value.field == f"data.{field}"


def test_an_encoding_of_parquet_files_is_refused(tmp_path):
    pandas.DataFrame({"text": ["a"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"data\.encoding = 'cp1252': no file of data is a text"):
        datafiles.check(DataConfig(train=str(tmp_path / "a.parquet"), encoding="cp1252"))
    csv = write(tmp_path / "a.csv", "text\na\n")
    datafiles.check(DataConfig(train=str(csv), encoding="cp1252", header=True))


@needs_shared
def test_real_files():
    found = read(SHARED / "gsm8k/test.jsonl")
    assert (found.layout.shape, len(found.pools["train"])) == (Shape.question_answer, 1319)
    assert found.notes == ()
    truthful = SHARED / "truthfulqa/TruthfulQA.csv"
    with pytest.raises(DataError, match=r"'Best Answer', .* all look like the answer"):
        read(truthful)
    found = read(truthful, columns=ColumnsConfig(answer="Best Answer"), group="Category")
    assert len(found.pools["train"]) == 817
    assert groups(found)[0] == "Misconceptions"
    assert found.notes == (
        "'Question' is the question, 'Best Answer' the answer",
        "columns not used: 'Type', 'Correct Answers', 'Incorrect Answers', 'Source'",
    )
    found = read(SHARED / "dolly_3k/dolly_3k.json")
    assert found.layout.shape == Shape.dolly
    assert found.notes == ("columns not used: 'category'",)


def test_rows_without_a_question_are_dropped_and_counted(tmp_path):
    rows = [{"text": f"question {n}" if n % 4 else " ", "label": "ab"[n % 2]} for n in range(40)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    dropped = Counter()
    found = conversations.read(DataConfig(train=str(path), validation=None), dropped, None, None)
    assert len(found.pools["train"]) == 30
    assert dropped == {conversations.NO_QUESTION: 10}
