"""Rows of text files whose cells are separated: CSV, with commas or semicolons, and TSV."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

from ftsuite.data import columnnames, filekind, textfile
from ftsuite.data.filekind import Kind
from ftsuite.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ftsuite.data.textfile import TextFormat

LONGEST_CELL = 2**31 - 1
"""Characters of one cell; Python's own limit of 131,072 is too short for documents."""
TRIED_ROWS = 100
"""Rows whose cells are counted to find out what separates them."""
SENTENCE_WORDS = 3
"""Words that a cell with a full stop or question mark has at least, to be a sentence."""
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)]*$")
NUMBER = re.compile(r"[-+]?(\d+([.,]\d+)*|\.\d+)([eE][-+]?\d+)?%?")
NAMES_HINT = (
    "set data.header=true, with data.columns.prompt=… data.columns.completion=…, if it names "
    "columns, or data.header=false if it is a row"
)


def read_csv(path: Path, name: str, form: TextFormat, notes: list[str]) -> Iterator[dict[str, str]]:
    """Give the rows of a CSV file: commas, or the semicolons of European spreadsheets.

    Args:
        path: the file.
        name: of the file, for errors.
        form: encoding, and whether there is a header.
        notes: is added what a reader must know.

    Raises:
        DataError: not CSV, not in the encoding, or rows of other lengths than the first line.
    """
    _refuse_json(path, name, form)
    separator = _separator(path, name, form)
    if separator not in ",;":
        kind = filekind.SEPARATED[separator.encode()]
        raise DataError(f"{name}: not CSV but {kind.value}; {filekind.REMEDIES[kind]}")
    return _rows(path, name, form, separator, notes)


def read_tsv(path: Path, name: str, form: TextFormat, notes: list[str]) -> Iterator[dict[str, str]]:
    """Give the rows of a file with tabs between its cells; else as `read_csv`."""
    _refuse_json(path, name, form)
    counts = _counts(path, form)
    if not counts["\t"] and any(counts.values()):
        kind = filekind.SEPARATED[max(counts, key=lambda sign: counts[sign]).encode()]
        raise DataError(
            f"{name}: not columns separated by tabs but {kind.value}; {filekind.REMEDIES[kind]}"
        )
    return _rows(path, name, form, "\t", notes)


def _refuse_json(path: Path, name: str, form: TextFormat) -> None:
    if (kind := filekind.of(path, form.encoding)) is Kind.json:
        raise DataError(f"{name}: not CSV but {kind.value}; {filekind.REMEDIES[kind]}")


def _rows(
    path: Path, name: str, form: TextFormat, separator: str, notes: list[str]
) -> Iterator[dict[str, str]]:
    first, has_header = _first_line(path, name, form, separator)
    names = [cell.strip() for cell in first]
    if not has_header:
        names = [str(number) for number in range(1, len(first) + 1)]
        notes.append(
            "the first line names no columns, so it is a row, and they are called "
            f"{columnnames.listed(names)}"
        )
    if twice := [column for column in names if names.count(column) > 1]:
        which = (
            f"the column {twice[0]!r} is there twice" if twice[0] else "two columns have no name"
        )
        raise DataError(f"{name}: {which}; rename or remove one")
    lines = _cells(path, name, form.encoding, separator)
    if has_header:
        next(lines, None)
    for number, cells in enumerate(lines, start=1):
        if len(cells) != len(names):
            there = "the header has columns" if has_header else "the first line"
            raise DataError(f"{name}, row {number}: not as many cells as {there}; mend the row")
        yield dict(zip(names, cells, strict=True))


def _cells(path: Path, name: str, encoding: str, separator: str) -> Iterator[list[str]]:
    """The cells of each line that has any."""
    csv.field_size_limit(LONGEST_CELL)
    with textfile.open_text(path, encoding) as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        whole = 0
        try:
            for cells in reader:
                whole = reader.line_num
                if cells:
                    yield cells
        except csv.Error as error:
            # Where the row begins: a quotation mark that is never closed is noticed at the end.
            raise DataError(
                f"{name}, line {whole + 1}: malformed CSV ({_plain_words(error)}); mend the line"
            ) from error


def _plain_words(error: csv.Error) -> str:
    words = {
        "expected after": "text behind a closing quotation mark",
        "unexpected end of data": "a quotation mark that is never closed",
    }
    return next((plain for said, plain in words.items() if said in str(error)), str(error))


def _counts(path: Path, form: TextFormat) -> dict[str, int]:
    """How often each separator stands in the first line that is not blank."""
    with textfile.open_text(path, form.encoding) as file:
        first = next(filter(str.strip, file), "")
    found = filekind.separators(first.encode("utf-8", "replace"))
    return {sign.decode(): count for sign, count in found.items()}


def _separator(path: Path, name: str, form: TextFormat) -> str:
    """What separates the cells; a comma where there is one column."""
    there = [sign for sign, count in _counts(path, form).items() if count]
    if len(there) > 1:
        # A header has known names, and rows are of one length.
        there = [sign for sign in there if _is_regular(path, name, form, sign)]
        if len(there) != 1:
            raise DataError(
                f"{name}: several of comma, semicolon, tab and | stand in its first line, and it "
                "cannot be told which separates its cells; put quotation marks around cells that "
                "have one, or save it with tabs, as .tsv"
            )
    return there[0] if there else ","


def _is_regular(path: Path, name: str, form: TextFormat, separator: str) -> bool:
    """Whether lines have equally many cells, of which the first line's may be known names."""
    lengths = set()
    try:
        for number, cells in enumerate(_cells(path, name, form.encoding, separator)):
            if number == 0 and columnnames.are_names(cells):
                return True
            lengths.add(len(cells))
            if number == TRIED_ROWS:
                break
    except DataError:
        return False
    return len(lengths) == 1


def _first_line(path: Path, name: str, form: TextFormat, separator: str) -> tuple[list[str], bool]:
    """The first line's cells, and whether they are the columns' names.

    Raises:
        DataError: the settings do not say, and neither does the file.
    """
    lines = _cells(path, name, form.encoding, separator)
    first = next(lines, [])
    cells = [cell.strip() for cell in first]
    if form.header is not None or not first:
        return first, form.header is not False
    if form.columns.intersection(cells) or all(map(columnnames.is_known, cells)):
        return first, True
    is_row, over_numbers = _evidence(first, lines)
    is_header = over_numbers or columnnames.are_names(cells)
    if is_row == is_header:
        raise DataError(
            f"{name}: cannot tell whether its first line names the columns or is a row; "
            f"{NAMES_HINT}"
        )
    return first, is_header


def _evidence(first: list[str], rows: Iterable[list[str]]) -> tuple[bool, bool]:
    """What the rows below tell of the first line: that it is one of them, or that it is none.

    One of them, in a file of two columns: its second cell comes again, as a label does, or its
    first cell is a sentence. None: words stand over a column of numbers.
    """
    repeated = False
    numbers = [not _is_number(cell) and bool(cell.strip()) for cell in first]
    some = False
    for row in rows:
        some = True
        repeated = repeated or (len(row) == 2 and bool(row[1].strip()) and row[1] == first[-1])
        numbers = [
            was and _is_number(cell) for was, cell in zip(numbers, row, strict=False)
        ] + numbers[len(row) :]
    is_pair = len(first) == 2
    return is_pair and (repeated or _is_sentence(first[0])), some and any(numbers)


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell.strip()) is not None


def _is_sentence(cell: str) -> bool:
    return len(cell.split()) >= SENTENCE_WORDS and SENTENCE_END.search(cell.strip()) is not None
