"""Rows from JSON, JSONL, CSV and Parquet files and from the Hub.

Errors say what is wrong, where, and what to do, and never show a row's text.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite import filekind
from ftsuite.errors import DataError, one_line, shorten
from ftsuite.filekind import Kind
from ftsuite.resources import find_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Reader = Callable[[Path, str], Iterable[dict[str, Any]]]

Row = dict[str, Any]

HUB_ID = re.compile(
    r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.-]+))?", re.ASCII
)
PARQUET_ROWS = 1_000
"""Rows that are in memory at once."""
LONGEST_CELL = 2**31 - 1
"""Characters of one CSV cell; Python's own limit of 131,072 is too short for documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A data set on the Hub: `org/name`, `org/name:config`, `org/name:config@split`."""

    id: str
    config: str | None
    split: str


def find_source(source: str, *, split: str) -> Path | HubSource:
    """Return the file, or the Hub data set, that `source` names.

    Args:
        source: a path, or a Hub id.
        split: Hub split to take where `source` names none.

    Raises:
        DataError: neither a file that exists nor the form of a Hub id.
    """
    try:
        return find_file(source)
    except OSError as error:
        raise DataError(f"{shorten(source)}: {error.strerror}; check the path") from error
    except DataError:
        match = HUB_ID.fullmatch(source)
        if match is None or Path(source).suffix.lower() in READERS or Path(source).exists():
            raise
    return HubSource(id=match["id"], config=match["config"], split=match["split"] or split)


def read_rows(source: str, *, split: str = "train") -> list[Row]:
    """Return the rows of a file or Hub data set: `iter_rows`, all in memory."""
    return list(iter_rows(source, split=split))


def iter_rows(source: str, *, split: str = "train") -> Iterator[Row]:
    """Give the rows of a file or Hub data set one by one; a JSON array is read whole.

    Args:
        source: path (JSON array, or object with one under `data`; JSONL; CSV; Parquet) or Hub id.
        split: Hub split to take where `source` names none.

    Raises:
        DataError: missing, empty, malformed or unreachable; also after some rows.
    """
    found = find_source(source, split=split)
    if isinstance(found, HubSource):
        rows = _read_hub(found)
    else:
        reader = READERS.get(found.suffix.lower())
        if reader is None:
            known = ", ".join(READERS)
            raise DataError(f"{source}: unknown kind of file; use one of {known}")
        rows = _read_file(found, source, reader)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError(f"{source}: no rows in it; check how the file was written")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_identity(source: str, *, split: str) -> str:
    """Return what identifies a source's content: a file's sha256, or a Hub data set's commit.

    Raises:
        DataError: missing, or the commit cannot be found out.
    """
    found = find_source(source, split=split)
    if isinstance(found, Path):
        return file_sha256(found)
    return f"{found.id}:{found.config}@{found.split} {_commit(found)}"


def _read_file(path: Path, name: str, reader: Reader) -> Iterator[Row]:
    if path.stat().st_size == 0:
        raise DataError(f"{name}: the file is empty; check how it was written")
    if (kind := filekind.of(path)) in filekind.NOT_TEXT and reader is not _read_parquet:
        raise DataError(f"{name}: {filekind.NOT_TEXT[kind]}")
    try:
        yield from reader(path, name)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text (byte {error.start}); convert the file") from error
    except RecursionError as error:
        raise DataError(f"{name}: JSON nested too deeply; mend the file") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}); check the file") from error


def _read_json(path: Path, name: str) -> list[Row]:
    # utf-8-sig: files saved on Windows may begin with a byte order mark.
    text = path.read_text(encoding="utf-8-sig")
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        remedy = "mend the file, or name it .jsonl if it has one object a line"
        if (kind := filekind.of(path)) in (Kind.csv, Kind.tsv):
            remedy = f"it looks like {kind.value}: {filekind.REMEDIES[kind]}"
        raise DataError(
            f"{name}, line {error.lineno}: malformed JSON ({error.msg}, column {error.colno}); "
            f"{remedy}"
        ) from error
    except ValueError as error:
        raise DataError(f"{name}: {error}; mend the file") from error
    if isinstance(value, dict):
        value = value.get("data")
    if not isinstance(value, list):
        raise DataError(f"{name}: no JSON array of rows, at the top or under 'data'; convert it")
    return [_row(row, f"{name}, row {number}") for number, row in enumerate(value, start=1)]


def _read_jsonl(path: Path, name: str) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = _row(parse_json(line), f"{name}, line {number}")
            except json.JSONDecodeError as error:
                remedy = "mend or remove the line"
                if (kind := filekind.of(path)) is Kind.json:
                    remedy += ", or name the file .json if it is one array over several lines"
                elif number == 1:
                    remedy = f"the file looks like {kind.value}: {filekind.REMEDIES[kind]}"
                raise DataError(
                    f"{name}, line {number}: malformed JSON ({error.msg}, column {error.colno}); "
                    f"{remedy}"
                ) from error
            except ValueError as error:
                raise DataError(f"{name}, line {number}: {error}; mend the line") from error
            yield row


def parse_json(text: str) -> Any:
    """JSON without a key twice: Python would keep the last one.

    Raises:
        ValueError: a key twice, or a number of thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except ValueError as error:
        if "int_max_str_digits" in str(error):
            raise ValueError("a number of thousands of digits") from error
        raise


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return found


def _read_csv(path: Path, name: str) -> Iterator[Row]:
    kind = filekind.of(path)
    if kind in (Kind.tsv, Kind.semicolons, Kind.json):
        raise DataError(f"{name}: not CSV but {kind.value}; {filekind.REMEDIES[kind]}")
    csv.field_size_limit(LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            columns = reader.fieldnames or []
            if twice := [column for column in columns if columns.count(column) > 1]:
                raise DataError(
                    f"{name}: the column {twice[0]!r} is there twice; rename or remove one"
                )
            for number, row in enumerate(reader, start=1):
                # DictReader collects surplus cells under None and fills missing ones with None.
                if None in row or None in row.values():
                    raise DataError(
                        f"{name}, row {number}: not as many cells as the header has columns; mend "
                        "the row"
                    )
                yield row
        except csv.Error as error:
            # line_num counts the lines that were read whole, not the one that failed.
            raise DataError(
                f"{name}, line {reader.line_num + 1}: malformed CSV ({_plain_words(error)}); mend "
                "the line"
            ) from error


def _plain_words(error: csv.Error) -> str:
    words = {
        "expected after": "text behind a closing quotation mark",
        "unexpected end of data": "a quotation mark that is never closed",
    }
    return next((plain for said, plain in words.items() if said in str(error)), str(error))


def _read_parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    if (kind := filekind.of(path)) is not Kind.parquet:
        raise DataError(f"{name}: not a Parquet file but {kind.value}; {filekind.REMEDIES[kind]}")
    try:
        # Opened here: pyarrow would read a path with "=" in it as a partitioned data set.
        with path.open("rb") as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(PARQUET_ROWS):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{name}: not a Parquet file ({one_line(error)}); convert it") from error


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}, not an object; mend the row")
    return value


READERS: dict[str, Reader] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _read_hub(source: HubSource) -> Iterator[Row]:
    import datasets

    commit = _commit(source)
    try:
        loaded = datasets.load_dataset(
            source.id, source.config, split=source.split, revision=commit
        )
        yield from (dict(row) for row in loaded)
    except Exception as error:  # the Hub client raises a dozen unrelated kinds
        raise _unreachable(source, error) from error


def _commit(source: HubSource) -> str:
    """The commit that the data set's main branch points to; offline, as it is in the cache."""
    from huggingface_hub import HfApi, constants

    try:
        return str(HfApi().dataset_info(source.id, timeout=30).sha)
    except Exception as error:  # offline, unknown, gated: as many kinds of exception
        folder = f"datasets--{source.id.replace('/', '--')}"
        cached = Path(constants.HF_HUB_CACHE, folder, "refs", "main")
        if cached.is_file() and not _is_answer(error):
            return cached.read_text(encoding="ascii").strip()
        raise _unreachable(source, error) from error


def _is_answer(error: Exception) -> bool:
    # The Hub was there and said no: an old cache must not hide that.
    return getattr(error, "response", None) is not None


def _unreachable(source: HubSource, error: Exception) -> DataError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(
        f"{source.id}: no such file here, and it cannot be loaded from the Hub "
        f"({type(error).__name__}: {first}); check the name and split, the network and HF_TOKEN, "
        "or give a local file"
    )
