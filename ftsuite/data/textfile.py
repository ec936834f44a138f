"""Text files in any encoding, packed with gzip or not, and what to say of one that cannot be read.

A file is read in the encoding that `data.encoding` names and in no other: a guess may only go into
an error, since most encodings of one byte a character accept any bytes.
"""

from __future__ import annotations

import codecs
import gzip
import io
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

from ftsuite.config import DataConfig
from ftsuite.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GZIP = ".gz"
BLOCK = 1 << 20
"""Bytes that are decoded at once."""
SAMPLE = 65_536
"""Bytes of lines that are not ASCII from which an encoding is guessed."""
WESTERN = "cp1252"
"""What Windows and Excel write in Western Europe and America, and many call Latin-1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFormat:
    """How text files are to be read."""

    encoding: str
    header: bool | None
    """Whether the first line of a CSV or TSV names its columns; None: to be found out."""
    columns: frozenset[str]
    """Names of columns that the user set: a line that has one is a header."""


def format_of(data: DataConfig | None = None) -> TextFormat:
    """Return how the text files of a data set are to be read; None takes the defaults.

    Raises:
        ConfigError: `data.encoding` is none that Python knows.
    """
    data = data or DataConfig()
    _check_encoding(data.encoding)
    default = type(data.columns)()
    named = {getattr(data.columns, name) for name in type(default).__slots__}
    named -= {getattr(default, name) for name in type(default).__slots__}
    named |= {data.group}
    return TextFormat(
        encoding=data.encoding,
        header=data.header,
        columns=frozenset(name for name in named if name),
    )


def is_wide(encoding: str) -> bool:
    """Say whether an encoding has NUL bytes in ordinary text: UTF-16 and UTF-32."""
    return codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading; one whose name ends in .gz is unpacked."""
    if path.suffix.lower() == GZIP:
        return cast("IO[bytes]", gzip.open(path))
    return path.open("rb")


def open_text(path: Path, encoding: str) -> IO[str]:
    """Open a text file behind its byte order mark; line ends stay as they are."""
    file = io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="")
    try:
        # Files saved on Windows may begin with a mark, which is no part of the text.
        if file.read(1) != "\ufeff":
            file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def not_decoded(path: Path, name: str, encoding: str) -> DataError:
    """Return the error for a file that is not in `encoding`: where, and what it may be in."""
    where = _place(path, _first_undecodable(path, encoding))
    said = "UTF-8" if _is_utf8(encoding) else encoding
    if _is_utf8(encoding) and _is_mostly_utf8(path):
        return DataError(f"{name}: not {said} text throughout ({where}); mend that line")
    guess = likely_encoding(path)
    if guess is None or guess == codecs.lookup(encoding).name:
        remedy = "set data.encoding to the one it was saved in, or save it as UTF-8"
    else:
        remedy = f"it looks like {guess}: set data.encoding={guess}, or save it as UTF-8"
    return DataError(f"{name}: not {said} text ({where}); {remedy}")


def refuse_utf8(path: Path, name: str, encoding: str) -> None:
    """Refuse a UTF-8 file that would be read in another encoding, as other characters.

    Text of other encodings is hardly ever valid UTF-8 by chance, unless it is ASCII.

    Raises:
        DataError: names the setting.
    """
    if _is_utf8(encoding) or is_wide(encoding):
        return
    ascii_only = True
    try:
        for text, _ in _decoded(path, "utf-8"):
            ascii_only = ascii_only and text.isascii()
    except UnicodeDecodeError:
        return
    if not ascii_only:
        raise DataError(
            f"{name}: UTF-8 text, which data.encoding={encoding} would turn into other characters; "
            "set data.encoding=utf-8 (all files of data have one encoding)"
        )


def likely_encoding(path: Path) -> str | None:
    """Return the most likely encoding of a file, by charset-normalizer; None if none fits."""
    import charset_normalizer

    with open_bytes(path) as file:
        head = file.read(BLOCK)
    lines = [line for line in head.splitlines(keepends=True) if not line.isascii()]
    found = charset_normalizer.from_bytes(b"".join(lines)[:SAMPLE])
    if not found:
        return None
    # Names and single accents do not tell the code pages of Europe apart: take the commonest.
    fitting = [match for match in found if match.chaos <= found[0].chaos]
    known = {name for match in fitting for name in match.could_be_from_charset}
    guess = WESTERN if WESTERN in known else found[0].encoding
    try:
        for _ in _decoded(path, guess):
            pass
    except UnicodeDecodeError:
        return None
    return guess


def _check_encoding(name: str) -> None:
    """Refuse an encoding that Python does not know, or that is none of text."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=name).read()
    except (LookupError, ValueError) as error:
        raise ConfigError(
            "data.encoding", name, "no text encoding of Python's; use utf-8, cp1252 or the like"
        ) from error


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def _decoded(path: Path, encoding: str) -> Iterator[tuple[str, int]]:
    """Decode a file block by block, each with the offset in bytes that its text begins at.

    Raises:
        UnicodeDecodeError: its `start` counts from the beginning of the file.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    offset = 0
    with open_bytes(path) as file:
        while True:
            block = file.read(BLOCK)
            begin = offset - len(decoder.getstate()[0])
            try:
                yield decoder.decode(block, final=not block), begin
            except UnicodeDecodeError as error:
                error.start += begin
                raise
            if not block:
                return
            offset += len(block)


def _first_undecodable(path: Path, encoding: str) -> int:
    """Offset of the first byte that is not in `encoding`."""
    try:
        for _ in _decoded(path, encoding):
            pass
    except UnicodeDecodeError as error:
        return error.start
    except UnicodeError:
        # UTF-16 that does not begin with its byte order mark.
        pass
    return 0


def _place(path: Path, offset: int) -> str:
    with open_bytes(path) as file:
        before, byte = file.read(offset), file.read(1)
    line = (before.count(b"\n") or before.count(b"\r")) + 1
    return f"byte 0x{byte.hex().upper()} at offset {offset:,}, line {line:,}"


def _is_mostly_utf8(path: Path) -> bool:
    """Whether a file has more characters of UTF-8 beyond ASCII than bytes that are not UTF-8."""
    good = bad = 0
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with open_bytes(path) as file:
        while block := file.read(BLOCK):
            text = decoder.decode(block)
            replaced = text.count("\ufffd")
            bad += replaced
            good += len(text) - replaced - sum(map(str.isascii, text))
    return good > bad
