from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny import write_jsonl

from ftsuite import readers, resources
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
