"""Rows from JSON, JSONL, CSV, TSV and Parquet files and from the Hub.

Errors say what is wrong, where, and what to do, and never show a row's text.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite.data import delimited, filekind, hubdata, textfile
from ftsuite.data.filekind import Kind
from ftsuite.data.hubdata import HUB_ID, HubSource
from ftsuite.errors import DataError, one_line, shorten
from ftsuite.resources import find_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ftsuite.data.textfile import TextFormat

    Reader = Callable[[Path, str, TextFormat, list[str]], Iterable[dict[str, Any]]]

Row = dict[str, Any]

PARQUET_ROWS = 1_000
"""Rows that are in memory at once."""


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
        if match is None or suffix_of(Path(source)) in READERS or Path(source).exists():
            raise
    return HubSource(id=match["id"], config=match["config"], split=match["split"] or split)


def read_rows(source: str, *, split: str = "train", form: TextFormat | None = None) -> list[Row]:
    """Return the rows of a file or Hub data set: `iter_rows`, all in memory."""
    return list(iter_rows(source, split=split, form=form))


def iter_rows(
    source: str,
    *,
    split: str = "train",
    form: TextFormat | None = None,
    notes: list[str] | None = None,
) -> Iterator[Row]:
    """Give the rows of a file or Hub data set one by one; a JSON array is read whole.

    Args:
        source: path (JSON array, or object with one under `data`; JSONL; CSV; TSV; Parquet) or Hub
            id.
        split: Hub split to take where `source` names none.
        form: encoding and header of text files (`textfile.format_of`); None: the defaults.
        notes: is added what a reader must know, such as that there is no header.

    Raises:
        DataError: missing, empty, malformed or unreachable; also after some rows.
    """
    found = find_source(source, split=split)
    if isinstance(found, HubSource):
        rows = hubdata.read(found)
    else:
        if remedy := unknown_kind(found):
            raise DataError(f"{source}: {remedy}")
        form = textfile.format_of() if form is None else form
        rows = _read_file(found, source, form, [] if notes is None else notes)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError(f"{source}: no rows in it; check how the file was written")


def suffix_of(path: Path) -> str:
    """Return the end of a file's name that tells its kind, in small letters and without `.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes[1:] == [textfile.GZIP] and suffixes[0] in TEXT_SUFFIXES:
        return suffixes[0]
    return suffixes[-1] if suffixes else ""


def unknown_kind(path: Path) -> str:
    """Return why a file's name tells no kind that is read, and the remedy; or nothing."""
    if suffix_of(path) in READERS:
        return ""
    return f"unknown kind of file{_hint(path)}; use one of {KNOWN_KINDS}"


def _hint(path: Path) -> str:
    try:
        kind = filekind.of(path)
    except (OSError, EOFError, zlib.error):
        return ""
    if kind not in filekind.NOT_TEXT and path.suffix.lower() != ".txt":
        return ""
    if kind is Kind.other:
        return ', and plain text has no rows: write a .jsonl with {"text": "…"} a row'
    unpack = "unpack it and " if path.suffix.lower() == textfile.GZIP else ""
    return f" ({kind.value}: {unpack}{filekind.REMEDIES[kind]})"


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, hexadecimal; a version of a file is read once."""
    facts = path.stat()
    return _version_sha256(path.resolve(), facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=256)
def _version_sha256(path: Path, changed_ns: int, size: int) -> str:
    """Hash one version of a file: every cell of a sweep asks for the same ones."""
    del changed_ns, size
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
    return f"{found.id}:{found.config}@{found.split} {hubdata.commit_of(found)}"


def _read_file(path: Path, name: str, form: TextFormat, notes: list[str]) -> Iterator[Row]:
    reader = READERS[suffix_of(path)]
    if path.stat().st_size == 0:
        raise DataError(f"{name}: the file is empty; check how it was written")
    try:
        kind = filekind.of(path, form.encoding)
        if kind in filekind.NOT_TEXT and reader is not _read_parquet:
            raise DataError(f"{name}: {filekind.NOT_TEXT[kind]}")
        if reader is not _read_parquet:
            textfile.refuse_utf8(path, name, form.encoding)
        yield from reader(path, name, form, notes)
    except UnicodeError as error:
        # UTF-16 without its byte order mark raises no UnicodeDecodeError.
        raise textfile.not_decoded(path, name, form.encoding) from error
    except RecursionError as error:
        raise DataError(f"{name}: JSON nested too deeply; mend the file") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{name}: not a gzip archive, or a damaged one; take .gz out of its name if it is not "
            "packed, else pack it again"
        ) from error
    except EOFError as error:
        raise DataError(f"{name}: the gzip archive is cut short; copy it again") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}); check the file") from error


def _read_json(path: Path, name: str, form: TextFormat, _: list[str]) -> list[Row]:
    with textfile.open_text(path, form.encoding) as file:
        text = file.read()
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        remedy = "mend the file, or name it .jsonl if it has one object a line"
        kind = filekind.of(path, form.encoding)
        if kind in (Kind.csv, Kind.tsv, Kind.semicolons):
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


def _read_jsonl(path: Path, name: str, form: TextFormat, _: list[str]) -> Iterator[Row]:
    with textfile.open_text(path, form.encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = _row(parse_json(line), f"{name}, line {number}")
            except json.JSONDecodeError as error:
                remedy = "mend or remove the line"
                if (kind := filekind.of(path, form.encoding)) is Kind.json:
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


def parse_json(text: str, *, strict: bool = False) -> Any:
    """JSON without a key twice: Python would keep the last one.

    Args:
        text: of one value.
        strict: refuse NaN and Infinity, which Python writes and JSON does not know.

    Raises:
        ValueError: a key twice, or a number of thousands of digits.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_refuse if strict else None
        )
    except ValueError as error:
        if "int_max_str_digits" in str(error):
            raise ValueError("a number of thousands of digits") from error
        raise


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return found


def _read_parquet(path: Path, name: str, _: TextFormat, __: list[str]) -> Iterator[Row]:
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
    ".csv": delimited.read_csv,
    ".tsv": delimited.read_tsv,
    ".tab": delimited.read_tsv,
    ".parquet": _read_parquet,
}
DELIMITED_SUFFIXES = (".csv", ".tsv", ".tab")
TEXT_SUFFIXES = (".json", ".jsonl", *DELIMITED_SUFFIXES)
KNOWN_KINDS = f"{', '.join(READERS)}; text files packed with gzip as .csv.gz and so on"
"""Kinds of files, for errors."""
