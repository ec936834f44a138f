"""CSV and TSV as people's programs write them, with and without a header."""

from __future__ import annotations

import csv

import pandas
import pytest

from ftsuite.config import ColumnsConfig, DataConfig
from ftsuite.data import readers, textfile
from ftsuite.errors import DataError

ROWS = [
    {"text": 'He said "hi", twice', "label": "0"},
    {"text": "Où; là\nnext | line", "label": "1"},
    {"text": "tab\there", "label": "0"},
    {"text": " plain ", "label": "1"},
]
FRAME = pandas.DataFrame(ROWS)


def read(path, **data):
    """Rows of a file, and the notes."""
    notes = []
    form = textfile.format_of(DataConfig(**data))
    return list(readers.iter_rows(str(path), form=form, notes=notes)), notes


def fails(path, **data):
    with pytest.raises(DataError) as caught:
        read(path, **data)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def write(path, text):
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.csv", {}),
        ("a.csv", {"quoting": csv.QUOTE_ALL}),
        ("a.csv", {"quoting": csv.QUOTE_NONNUMERIC}),
        ("a.csv", {"sep": ";"}),
        ("a.csv", {"sep": ";", "quoting": csv.QUOTE_ALL}),
        ("a.csv", {"encoding": "utf-8-sig"}),
        ("a.csv", {"lineterminator": "\r\n"}),
        ("a.csv.gz", {}),
        ("a.CSV.GZ", {"sep": ";", "compression": "gzip"}),
        ("a.tsv", {"sep": "\t"}),
        ("a.tab", {"sep": "\t", "quoting": csv.QUOTE_ALL}),
        ("a.tsv.gz", {"sep": "\t", "encoding": "utf-8-sig"}),
    ],
)
def test_what_pandas_writes_is_read(tmp_path, name, options):
    FRAME.to_csv(tmp_path / name, index=False, **options)
    assert read(tmp_path / name) == (ROWS, [])


def test_an_index_of_pandas_is_a_column_without_a_name(tmp_path):
    for name, separator in (("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")):
        FRAME.to_csv(tmp_path / name, sep=separator)
        expected = [{"": str(number)} | row for number, row in enumerate(ROWS)]
        assert read(tmp_path / name)[0] == expected


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("a.csv", {"quoting": csv.QUOTE_NONE, "escapechar": "\\"}, "row 1: not as many cells"),
        ("a.csv", {"doublequote": False, "escapechar": "\\"}, "line 2: malformed CSV"),
        ("a.csv", {"quotechar": "'"}, "row 1: not as many cells"),
        ("a.csv", {"sep": "|"}, "not CSV but columns separated by |; save it with commas"),
        ("a.csv", {"sep": "\t"}, "not CSV but columns separated by tabs; name it .tsv"),
        ("a.tsv", {"sep": ","}, "not columns separated by tabs but CSV; name it .csv"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(tmp_path, name, options, said):
    FRAME.to_csv(tmp_path / name, index=False, **options)
    assert said in fails(tmp_path / name)


def test_names_are_stripped_and_cells_are_not(tmp_path):
    path = write(tmp_path / "a.csv", "question, answer\nWhy?, because\n")
    assert read(path)[0] == [{"question": "Why?", "answer": " because"}]


def test_a_quoted_separator_in_the_header_separates_nothing(tmp_path):
    expected = [{"text, long": "Hello, you", "label": "greet"}]
    for name, separator in (("a.csv", ";"), ("a.tsv", "\t")):
        text = f'"text, long"{separator}label\nHello, you{separator}greet\n'
        assert read(write(tmp_path / name, text), header=True)[0] == expected
    one = write(tmp_path / "b.tsv", '"text, long"\nHello, you\n')
    assert read(one, header=True)[0] == [{"text, long": "Hello, you"}]


def test_several_separators_in_the_first_line(tmp_path):
    """The one that gives equally long rows separates; where two do, nobody can tell."""
    rows = "Hello, you;greet\nBye;leave\nHi;greet\n"
    assert read(write(tmp_path / "a.csv", rows))[0][0] == {"1": "Hello, you", "2": "greet"}
    rows = 'a;b|c|d,greet\nBye,leave\n"x",greet\n'
    assert read(write(tmp_path / "b.csv", rows))[0][0] == {"1": "a;b|c|d", "2": "greet"}
    named = read(write(tmp_path / "c.csv", "question,answer;short\na,b\n"), header=True)[0]
    assert named == [{"question": "a", "answer;short": "b"}]
    rows = "Hello, you, there\tgreet\nBye\tleave\nHi\tgreet\n"
    assert "separated by tabs; name it .tsv" in fails(write(tmp_path / "d.csv", rows))
    expected = {"1": "Hello, you, there", "2": "greet"}
    assert read(write(tmp_path / "d.tsv", rows))[0][0] == expected
    for rows in ("Hello, you;greet\nHi, you;greet\n", "a, b\tc\nd, e\tc\n"):
        message = fails(write(tmp_path / "e.csv", rows))
        assert "it cannot be told which separates its cells" in message
        assert "Hello" not in message


INTENTS = "Where is my parcel,delivery\nI paid twice,payment\nStill no parcel,delivery\n"


def test_a_label_that_comes_again_shows_that_there_is_no_header(tmp_path):
    rows, notes = read(write(tmp_path / "a.csv", INTENTS))
    assert [row["2"] for row in rows] == ["delivery", "payment", "delivery"]
    assert rows[0]["1"] == "Where is my parcel"
    assert notes == [
        "the first line names no columns, so it is a row, and they are called '1', '2'"
    ]
    rows, notes = read(write(tmp_path / "b.tsv", "Who wrote it?\tA pupil.\nWhen?\tLate.\n"))
    assert rows[0] == {"1": "Who wrote it?", "2": "A pupil."} and len(notes) == 1


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("text,label\na,b\n", {}),
        ("Frage,LABEL\na,b\n", {}),
        # A configured column.
        ("frage,antwort\na,b\nc,b\n", {"columns": ColumnsConfig(completion="antwort")}),
        ("frage,thema,antwort\na,b,c\n", {"group": "thema"}),
        # Words over numbers.
        ("How was it?,stars\nGood,5\nBad,1\n", {"header": True}),
        ("kommentar,punkte\nGood,5\nBad,1.5\n", {}),
        ("user_message,routing_label\na,b\n", {}),
        # All names are known: whether one is a value as well does not matter.
        ("text,label\na,label\n", {}),
        # Even where the first line would pass for a row.
        (INTENTS, {"header": True}),
    ],
)
def test_a_header(tmp_path, text, data):
    rows, notes = read(write(tmp_path / "a.csv", text), **data)
    assert list(rows[0]) == text.splitlines()[0].split(",")
    assert len(rows) == text.count("\n") - 1
    assert notes == []


@pytest.mark.parametrize(
    "text",
    [
        "frage,antwort\nWas,Das\nWo,Da\n",
        "SECRET word,greet\nbye,leave\n",
        "frage,thema,antwort\na,b,c\n",
        "Once upon a time.\nTwice.\n",
        # A known name that comes again as a label, and a sentence over numbers.
        "I want it back,request\nHello,greet\nSend it,request\n",
        "How was your stay?,stars\nGood,5\nBad,1\n",
        "frage,antwort\n",
    ],
)
def test_where_it_cannot_be_told_the_settings_are_named(tmp_path, text):
    path = write(tmp_path / "a.csv", text)
    message = fails(path)
    assert (
        "cannot tell whether its first line names the columns or is a row; set data.he" in message
    )
    assert "data.header=false" in message and "SECRET" not in message
    rows, notes = read(path, header=False)
    assert len(rows) == text.count("\n") and len(notes) == 1
    assert list(rows[0].values()) == text.splitlines()[0].split(",")


def test_rows_without_a_header_have_the_length_of_the_first(tmp_path):
    path = write(tmp_path / "a.csv", "a,b\nc\n")
    assert "row 2: not as many cells as the first line" in fails(path, header=False)


def test_columns_without_a_name(tmp_path):
    message = fails(write(tmp_path / "a.csv", "text;label;;\na;b;;\n"))
    assert message.endswith("two columns have no name; rename or remove one")


def test_an_open_quotation_mark_is_named_where_its_row_begins(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\na,b\n"c,d\ne,f\n')
    assert "line 3: malformed CSV (a quotation mark that is never closed)" in fails(path)
