from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny import write_jsonl

from ftsuite import resources
from ftsuite.data import readers
from ftsuite.errors import DataError, one_line

ROWS = [{"question": "Why?", "answer": "Because."}, {"question": "Où?", "answer": 'Là, "ici".'}]


def fails(source: object, match: str) -> str:
    """The one-line message of the DataError that reading `source` raises."""
    with pytest.raises(DataError, match=match) as caught:
        readers.read_rows(str(source))
    assert "\n" not in str(caught.value)
    return one_line(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    import csv

    import pyarrow
    import pyarrow.parquet

    write(tmp_path / "a.json", json.dumps(ROWS))
    write(tmp_path / "data.json", json.dumps({"data": ROWS}))
    write(tmp_path / "bom.json", "\ufeff" + json.dumps(ROWS))
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a=1.parquet")
    for name in ("a.json", "data.json", "bom.json", "a.jsonl", "a.csv", "a=1.parquet"):
        assert readers.read_rows(str(tmp_path / name)) == ROWS, name


def test_long_cells_and_blank_lines_are_fine(tmp_path):
    long = "x" * 200_000
    write(tmp_path / "a.csv", f"text\n{long}\n")
    assert readers.read_rows(str(tmp_path / "a.csv")) == [{"text": long}]
    write(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n')
    assert len(readers.read_rows(str(tmp_path / "a.jsonl"))) == 2


def test_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "check the path" in fails("nowhere/train.jsonl", "nowhere/train.jsonl: no such file")
    fails(tmp_path / "gone.json", "no such file")
    fails(tmp_path, "is a folder, not a file")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_empty_file(tmp_path, suffix):
    fails(write(tmp_path / f"a.{suffix}", ""), "the file is empty")


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", "[]"), ("a.jsonl", "\n\n"), ("a.csv", "question,answer\n")]
)
def test_file_without_rows(tmp_path, name, text):
    fails(write(tmp_path / name, text), "no rows in it")


def test_malformed_json_names_the_line_and_shows_no_text(tmp_path):
    secret = '{"question": "SECRET", "answer": }'
    path = write(tmp_path / "a.jsonl", f'{{"question": "a"}}\n\n{secret}\n')
    assert "SECRET" not in fails(path, "a.jsonl, line 3: malformed JSON")
    fails(write(tmp_path / "a.json", '[\n{"a": 1},\n{"a" 2}]'), "a.json, line 3: malformed JSON")
    # JSON lines in a .json file: the message says how to name it.
    fails(write(tmp_path / "b.json", '{"a": 1}\n{"a": 2}\n'), r"name it \.jsonl")


def test_rows_that_are_not_objects(tmp_path):
    fails(write(tmp_path / "a.json", '[{"a": 1}, 3]'), "row 2: a JSON int, not an object")
    fails(write(tmp_path / "a.jsonl", '["a"]\n'), "line 1: a JSON list, not an object")
    fails(write(tmp_path / "b.json", '{"rows": []}'), "no JSON array of rows")


def test_json_nested_too_deeply(tmp_path):
    for name in ("a.json", "a.jsonl"):
        fails(write(tmp_path / name, "[" * 200_000), "nested too deeply")


def test_a_folder_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "my" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    fails("my/data", "my/data: is a folder, not a file")


def test_malformed_csv_parquet_and_encoding(tmp_path):
    fails(write(tmp_path / "a.csv", "a,b\n1,2\n1\n"), "row 2: not as many cells")
    fails(write(tmp_path / "b.csv", "a,b\n1,2,3\n"), "row 1: not as many cells")
    fails(write(tmp_path / "c.csv", 'a,b\n"1"x,2\n'), "line 2: malformed CSV")
    fails(write(tmp_path / "a.parquet", "PAR1 nonsense"), "not a Parquet file")
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": "caf\xe9"}\n')
    fails(tmp_path / "latin.jsonl", "not UTF-8")
    fails(write(tmp_path / "a.txt", "hello"), "unknown kind of file")


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    path = write(tmp_path / "a.json", "[]")
    path.chmod(0)
    fails(path, "cannot be read")


def test_files_are_found_beside_conf(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "evals").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "ftsuite")
    monkeypatch.chdir(tmp_path / "work")
    beside = write(tmp_path / "evals" / "a.json", json.dumps(ROWS))
    assert resources.conf_dir() == tmp_path / "conf"
    assert resources.evals_dir() == tmp_path / "evals"
    assert resources.find_file("evals/a.json") == beside
    (tmp_path / "work" / "evals").mkdir()
    write(tmp_path / "work" / "evals" / "a.json", "[]")
    assert resources.find_file("evals/a.json") == Path("evals/a.json")


def test_a_wheel_has_conf_inside_the_package(tmp_path, monkeypatch):
    (tmp_path / "ftsuite" / "conf").mkdir(parents=True)
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "ftsuite")
    assert resources.conf_dir() == tmp_path / "ftsuite" / "conf"


def test_a_checkout_has_conf_and_evals():
    assert (resources.conf_dir() / "template").is_dir()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", ("org/name", None, "validation")),
        ("org/name:main.config", ("org/name", "main.config", "validation")),
        ("org/name@test", ("org/name", None, "test")),
        ("org/name:c@train_sft", ("org/name", "c", "train_sft")),
    ],
)
def test_hub_ids(source, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = readers.find_source(source, split="validation")
    assert (found.id, found.config, found.split) == expected


class Answer:
    sha = "abc123"


def test_hub_rows_are_pinned_to_the_commit(monkeypatch, tmp_path):
    import datasets
    import huggingface_hub

    calls = []

    def load(*args, **options):
        calls.append((args, options))
        return ROWS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *a, **k: Answer())
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert readers.read_rows("org/name:main") == ROWS
    assert calls == [(("org/name", "main"), {"split": "train", "revision": "abc123"})]
    assert readers.source_identity("org/name", split="test") == "org/name:None@test abc123"


def test_offline_hub_is_one_line(monkeypatch, tmp_path):
    import huggingface_hub

    def offline(*args, **options):
        raise ConnectionError("Cannot reach https://huggingface.co:\noffline mode is enabled")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = fails("org/name", "org/name: no such file here, and it cannot be loaded from the Hub")
    assert "local file" in message
    # A commit in the cache identifies the data without the network.
    refs = tmp_path / "datasets--org--name" / "refs"
    refs.mkdir(parents=True)
    write(refs / "main", "c0ffee")
    assert readers.source_identity("org/name", split="train").endswith("c0ffee")


def test_a_refusal_of_the_hub_is_not_hidden_by_the_cache(monkeypatch, tmp_path):
    import huggingface_hub

    class GatedError(Exception):
        response = object()

    def gated(*args, **options):
        raise GatedError("Access to data set org/name is restricted")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", gated)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "datasets--org--name" / "refs"
    refs.mkdir(parents=True)
    write(refs / "main", "c0ffee")
    with pytest.raises(DataError, match="restricted"):
        readers.source_identity("org/name", split="train")


def test_file_sha256(tmp_path):
    path = write(tmp_path / "a", "abc")
    assert readers.file_sha256(path).startswith("ba7816bf8f01cfea")


ROW = '{"prompt": "a", "completion": "b"}\n'
TABLE = "prompt,completion\na,b\nc,d\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        # Another kind of file than its name says.
        ("a.csv", TABLE.replace(",", "\t"), "not CSV but columns separated by tabs; name it .tsv"),
        (
            "b.csv",
            'prompt\tcompletion\n"a"\t"b"\n',
            "columns separated by tabs; name it .tsv",
        ),
        ("c.csv", TABLE.replace(",", "|"), "columns separated by |; save it with commas"),
        ("a.tsv", TABLE, "not columns separated by tabs but CSV; name it .csv"),
        ("b.tsv", TABLE.replace(",", ";"), "but columns separated by semicolons; name it .csv"),
        ("d.csv", ROW, "not CSV but JSON; name it .json, or .jsonl"),
        (
            "a.json",
            TABLE,
            "line 1: malformed JSON (Expecting value, column 1); it looks like CSV: na",
        ),
        ("a.jsonl", TABLE, "the file looks like CSV: name it .csv"),
        ("b.jsonl", "[\n" + ROW + "]", "or name the file .json if it is one array over several"),
        ("a.parquet", TABLE, "not a Parquet file but CSV; name it .csv"),
        ("e.csv", b"PAR1abc", "a Parquet file; name it .parquet"),
        ("b.json", b"PK\x03\x04abc", "a ZIP archive or an Excel workbook; save it as CSV"),
        ("c.jsonl", b"\x1f\x8b\x08abc", "a gzip archive; unpack it"),
        ("d.jsonl", "version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("b.parquet", "version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        # Encodings.
        ("f.csv", TABLE.encode("utf-16"), "UTF-16 or UTF-32 text; save it as UTF-8"),
        ("e.jsonl", ROW.encode("utf-16"), "UTF-16 or UTF-32 text; save it as UTF-8"),
        ("f.jsonl", ROW.encode("utf-16-le"), "UTF-16 or UTF-32 text; save it as UTF-8"),
        ("g.csv", TABLE.encode("utf-16-be"), "UTF-16 or UTF-32 text; save it as UTF-8"),
        ("c.json", f"[{ROW}]".encode("utf-32"), "UTF-16 or UTF-32 text; save it as UTF-8"),
        ("h.csv", b"prompt,completion\na\x00,b\n", "NUL bytes, so it is not text"),
        ("g.jsonl", ROW.replace("a", "\x00").encode(), "NUL bytes, so it is not text"),
        # Twice.
        ("i.csv", "prompt,prompt,completion\na,b,c\n", "the column 'prompt' is there twice"),
        ("h.jsonl", '{"a": 1, "a": 2}\n', "line 1: the key 'a' is there twice; mend the line"),
        ("i.jsonl", '{"a": [{"b": 1, "b": 2}]}\n', "line 1: the key 'b' is there twice"),
        ("d.json", '[{"a": 1, "a": 2}]', "the key 'a' is there twice; mend the file"),
        # Values.
        ("j.jsonl", '{"a": ' + "1" * 5000 + "}\n", "line 1: a number of thousands of digits; mend"),
        ("e.json", "3", "no JSON array of rows"),
        ("f.json", "null", "no JSON array of rows"),
        ("g.json", '{"data": {}}', "no JSON array of rows"),
        ("k.jsonl", '{"a": "x\x85\x0by"}\n', "Invalid control character"),
        ("j.csv", 'a,b\n"1"x,2\n', "line 2: malformed CSV (text behind a closing quotation mark)"),
        ("k.csv", 'a,b\n"1,2\n', "malformed CSV (a quotation mark that is never closed)"),
    ],
)
def test_a_file_is_named_for_what_it_is(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = fails(path, "")
    assert message.startswith(str(path))
    assert said in message


def test_line_ends_and_marks_of_every_system_are_read(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for end in ("\n", "\r\n", "\r"):
        for mark in ("", "\ufeff"):
            for name, text in (("a.jsonl", lines), ("a.csv", TABLE)):
                (tmp_path / name).write_bytes((mark + text.replace("\n", end)).encode())
                assert readers.read_rows(str(tmp_path / name)) == rows, (name, end, mark)


def test_separators_that_only_unicode_knows_end_no_line(tmp_path):
    row = {"prompt": "a\u2028b\u2029c", "completion": "d\x85e"}
    write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    assert readers.read_rows(str(tmp_path / "a.jsonl")) == [row]


def test_a_path_that_is_too_long_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(fails("x" * 5000, "check the path")) < 200
