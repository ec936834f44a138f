"""What a data file is by its first bytes, to say so where its name promises something else."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

HEAD = 65_536
"""Bytes that are looked at."""


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
    csv = "CSV"
    other = "other text"


NOT_TEXT = {
    Kind.parquet: "a Parquet file; name it .parquet",
    Kind.archive: "a ZIP archive or an Excel workbook; save it as CSV, UTF-8",
    Kind.gzip: "a gzip archive; unpack it",
    Kind.pointer: "a Git LFS pointer in place of the data; run git lfs pull",
    Kind.utf16: "UTF-16 or UTF-32 text; save it as UTF-8",
    Kind.binary: "NUL bytes, so it is not text; save it as UTF-8 text",
}
"""What is no text, and the remedy."""

REMEDIES = {
    Kind.json: "name it .json, or .jsonl if it has one object a line",
    Kind.tsv: "save it with commas, as CSV",
    Kind.semicolons: "save it with commas, as CSV",
    Kind.csv: "name it .csv",
    Kind.other: "convert it",
} | {kind: text.partition("; ")[2] for kind, text in NOT_TEXT.items()}


def of(path: Path) -> Kind:
    """Return the kind that the first bytes of a file tell."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    signatures = {b"PAR1": Kind.parquet, b"PK\x03\x04": Kind.archive, b"\x1f\x8b": Kind.gzip}
    signatures[b"version https://git-lfs"] = Kind.pointer
    for signature, kind in signatures.items():
        if head.startswith(signature):
            return kind
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")) or _is_wide(head):
        return Kind.utf16
    if b"\x00" in head:
        return Kind.binary
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith((b"{", b"[")):
        return Kind.json
    header = text.splitlines()[0] if text else b""
    separators = {b",": Kind.csv, b"\t": Kind.tsv, b";": Kind.semicolons}
    most = max(separators, key=header.count)
    return separators[most] if most in header else Kind.other


def _is_wide(head: bytes) -> bool:
    """UTF-16 of mostly Latin letters without a mark: every other byte is NUL."""
    return len(head) >= 4 and (not any(head[0:64:2]) or not any(head[1:64:2]))
