"""Text files in other encodings and packed with gzip."""

from __future__ import annotations

import gzip
import json
import subprocess

import pytest

from ftsuite.config import DataConfig
from ftsuite.data import readers, textfile
from ftsuite.errors import ConfigError, DataError

WESTERN = "text;label\nOù est le café à côté ?;lieu\nÇa coûte 5 € – très cher;prix\n"
POLISH = "text,label\nZażółć gęślą jaźń,a\n"
RUSSIAN = "text,label\nЭто русский текст. Как ваши дела?,a\n"
JAPANESE = "text,label\nこれは日本語のテキストです。お元気ですか,a\n"
CHINESE = "text,label\n这是中文文本，你好吗？今天天气很好,a\n"
ROWS = [{"text": "Où ?", "label": "lieu"}, {"text": "café", "label": "prix"}]


def read(path, encoding="utf-8"):
    return readers.read_rows(str(path), form=textfile.format_of(DataConfig(encoding=encoding)))


def fails(path, encoding="utf-8"):
    with pytest.raises(DataError) as caught:
        read(path, encoding)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (WESTERN, "cp1252"),
        (POLISH, "cp1250"),
        (RUSSIAN, "cp1251"),
        (JAPANESE, "cp932"),
        (CHINESE, "gb18030"),
    ],
)
def test_the_encoding_is_guessed_for_the_remedy_and_never_used(tmp_path, text, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode(encoding))
    at = next(number for number, sign in enumerate(text) if ord(sign) > 127)
    message = fails(path)
    assert f" at offset {at}, line 2); it looks like {encoding}" in message
    assert message.endswith(f"set data.encoding={encoding}, or save it as UTF-8")
    assert not any(line in message for line in text.splitlines()[1:])
    separator = ";" if text is WESTERN else ","
    expected = [line.rsplit(separator, 1)[0] for line in text.splitlines()[1:]]
    assert [row["text"] for row in read(path, encoding)] == expected


def test_the_byte_is_named_far_into_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    good = (json.dumps({"text": "ä" * 400}, ensure_ascii=False) + "\n").encode()
    path.write_bytes(good * 2000 + b'{"text": "caf\xe9"}\n')
    message = fails(path)
    offset = 2000 * len(good) + len('{"text": "caf')
    assert message == (
        f"not UTF-8 text throughout (byte 0xE9 at offset {offset:,}, line 2,001); mend that line"
    )


def test_no_encoding_is_suggested_that_does_not_fit(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n\x81\x8d\x8f\xff\xfe,a\n")
    assert fails(path).endswith("set data.encoding to the one it was saved in, or save it as UTF-8")


def test_utf8_under_another_name_is_refused(tmp_path):
    """It would be read without any error, as other characters."""
    path = tmp_path / "a.csv"
    path.write_text("text,label\nOù ?,a\n", encoding="utf-8")
    assert fails(path, "cp1252").startswith("UTF-8 text, which data.encoding=cp1252 would turn")
    path.write_text("text,label\nplain,a\n", encoding="utf-8-sig")
    assert "set data.encoding=utf-8" in fails(path, "latin-1")
    path.write_text("text,label\nplain,a\n", encoding="utf-8")
    assert read(path, "cp1252") == [{"text": "plain", "label": "a"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("packed", [False, True])
def test_wide_encodings_are_read_when_named(tmp_path, encoding, mark, packed):
    texts = {
        "a.csv": "text,label\nOù ?,lieu\ncafé,prix\n",
        "b.csv": "text;label\r\nOù ?;lieu\r\ncafé;prix\r\n",
        "a.tsv": "text\tlabel\nOù ?\tlieu\ncafé\tprix\n",
        "a.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
        "a.json": json.dumps(ROWS, ensure_ascii=False),
    }
    # These write a mark themselves.
    mark = "" if encoding in ("utf-16", "utf-32", "utf-8-sig") else mark
    for name, text in texts.items():
        content = (mark + text).encode(encoding)
        path = tmp_path / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)
        assert read(path, encoding) == ROWS, name
        if encoding != "utf-8-sig":
            assert fails(path).endswith("or set data.encoding=utf-16")


def test_text_that_is_not_utf16(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(WESTERN.encode("cp1252"))
    message = fails(path, "utf-16")
    assert message.startswith(
        "not utf-16 text (byte 0x74 at offset 0, line 1); it looks like cp1252"
    )


@pytest.mark.parametrize("name", ["utf8x", "", "hex", "rot13", "undefined"])
def test_an_unknown_encoding(name):
    with pytest.raises(ConfigError, match="no text encoding") as caught:
        textfile.format_of(DataConfig(encoding=name))
    assert caught.value.field == "data.encoding"


def test_what_gzip_writes_is_read(tmp_path):
    text = "text,label\nOù ?,lieu\ncafé,prix\n"
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    subprocess.run(["gzip", str(tmp_path / "a.csv")], check=True)
    assert read(tmp_path / "a.csv.gz") == ROWS
    assert readers.find_source(str(tmp_path / "a.csv.gz"), split="train").name == "a.csv.gz"
    # Two archives one behind the other are one file, as gzip itself reads them.
    packed = (tmp_path / "a.csv.gz").read_bytes() + gzip.compress(b"x,y\n")
    (tmp_path / "a.csv.gz").write_bytes(packed)
    assert len(read(tmp_path / "a.csv.gz")) == 3


def test_damaged_archives(tmp_path):
    packed = gzip.compress(b"text,label\n" + b"a,b\n" * 5000)
    path = tmp_path / "a.csv.gz"
    for content, said in [
        (packed[:-12], "the gzip archive is cut short; copy it again"),
        (packed[:30] + b"xxxx" + packed[34:], "not a gzip archive, or a damaged one"),
        (b"text,label\na,b\n", "take .gz out of its name"),
        (gzip.compress(b"PAR1abc"), "a Parquet file; name it .parquet"),
        (gzip.compress(packed), "a gzip archive; unpack it"),
        (b"", "the file is empty"),
        (gzip.compress(b""), "no rows in it"),
    ]:
        path.write_bytes(content)
        assert said in fails(path)


def test_a_missing_packed_file_is_no_data_set_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        readers.find_source("data/train.csv.gz", split="train")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"text\tlabel\na\tb\n", "(columns separated by tabs: name it .tsv); use one of"),
        ("a.txt", b"Once upon a time\n", "plain text has no rows: write a .jsonl with"),
        ("a.xlsx", b"PK\x03\x04abc", "an Excel workbook: save it as CSV, UTF-8)"),
        ("a.parquet.gz", gzip.compress(b"PAR1"), "(Parquet: unpack it and name it .parquet)"),
        ("a.txt.gz", b"no archive", "unknown kind of file; use one of .json"),
    ],
)
def test_other_kinds_are_refused_with_what_to_do(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    assert said in fails(path)
