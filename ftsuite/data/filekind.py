"""What a data file is by its first bytes, to say so where its name promises something else."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING

from ftsuite.data import textfile

if TYPE_CHECKING:
    from pathlib import Path

HEAD = 65_536
"""Bytes that are looked at."""
QUOTED = re.compile(rb'"[^"]*"')


class Kind(StrEnum):
    """A kind of file, in words."""

    parquet = "Parquet"
    archive = "a ZIP archive or an Excel workbook"
    gzip = "a gzip archive"
    pointer = "a Git LFS pointer"
    utf16 = "UTF-16 or UTF-32 text"
    binary = "binary"
    json = "JSON"
    tsv = "columns separated by tabs"
    semicolons = "columns separated by semicolons"
    bars = "columns separated by |"
    csv = "CSV"
    other = "other text"


SEPARATED = {b",": Kind.csv, b"\t": Kind.tsv, b";": Kind.semicolons, b"|": Kind.bars}
"""Kinds by what stands between their cells."""
NOT_TEXT = {
    Kind.parquet: "a Parquet file; name it .parquet",
    Kind.archive: "a ZIP archive or an Excel workbook; save it as CSV, UTF-8",
    Kind.gzip: "a gzip archive; unpack it, or let its name end in .gz",
    Kind.pointer: "a Git LFS pointer in place of the data; run git lfs pull",
    Kind.utf16: "UTF-16 or UTF-32 text; save it as UTF-8, or set data.encoding=utf-16",
    Kind.binary: "NUL bytes, so it is not text; save it as UTF-8 text",
}
"""What is no text, and the remedy."""

REMEDIES = {
    Kind.json: "name it .json, or .jsonl if it has one object a line",
    Kind.tsv: "name it .tsv",
    Kind.semicolons: "name it .csv",
    Kind.bars: "save it with commas, as CSV",
    Kind.csv: "name it .csv",
    Kind.other: "convert it",
} | {kind: text.partition("; ")[2] for kind, text in NOT_TEXT.items()}


def of(path: Path, encoding: str = "utf-8") -> Kind:
    """Return the kind that the first bytes of a file tell; of a .gz file, the unpacked ones.

    Args:
        path: the file.
        encoding: that a text is expected in.
    """
    with textfile.open_bytes(path) as file:
        head = file.read(HEAD)
    signatures = {b"PAR1": Kind.parquet, b"PK\x03\x04": Kind.archive, b"\x1f\x8b": Kind.gzip}
    signatures[b"version https://git-lfs"] = Kind.pointer
    for signature, kind in signatures.items():
        if head.startswith(signature):
            return kind
    if textfile.is_wide(encoding):
        # Half a character may stand at the end of the head.
        head = head.decode(encoding, "ignore").encode("utf-8", "ignore")
    elif head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")) or _is_wide(head):
        return Kind.utf16
    if b"\x00" in head:
        return Kind.binary
    # Not tabs: an index of pandas leaves the first cell of a header empty.
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \r\n")
    if text.startswith((b"{", b"[")):
        return Kind.json
    counts = separators(text)
    most = max(counts, key=lambda sign: counts[sign])
    return SEPARATED[most] if counts[most] else Kind.other


def separators(text: bytes) -> dict[bytes, int]:
    """Return how often each separator stands in the first line, outside of quotation marks."""
    first = text.splitlines()[0] if text else b""
    bare = QUOTED.sub(b"", first)
    return {sign: bare.count(sign) for sign in SEPARATED}


def _is_wide(head: bytes) -> bool:
    """UTF-16 of mostly Latin letters without a mark: every other byte is NUL."""
    return len(head) >= 4 and (not any(head[0:64:2]) or not any(head[1:64:2]))
