"""Byte strings that wait in a temporary file, so that a million rows do not fill the memory."""

from __future__ import annotations

import tempfile
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

IN_MEMORY_BYTES = 16_000_000
"""A smaller spool never reaches the disk."""


class Spool:
    """Byte strings, appended one by one and read by number; the file goes with the object."""

    def __init__(self, folder: Path | None = None) -> None:
        """Make an empty spool, whose file lies in `folder` or where temporary files do."""
        place = str(folder) if folder else None
        # Open for the object's whole life.
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=place)  # noqa: SIM115
        self._ends = array("q", [0])

    def append(self, record: bytes) -> None:
        """Add a byte string at the end."""
        # A read leaves the file's place behind it.
        self._file.seek(self._ends[-1])
        self._file.write(record)
        self._ends.append(self._ends[-1] + len(record))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> bytes:
        start, end = self._ends[number], self._ends[number + 1]
        self._file.seek(start)
        return self._file.read(end - start)
