"""Safetensors files read and written in pieces, for tensors that shall not be in memory whole.

The format: 8 bytes, little-endian, with the length of a JSON header; the header, which gives each
tensor's dtype, shape and place; then the data (https://github.com/huggingface/safetensors#format).
All of the header is known before the first number, so a file is written from front to back. What
`safetensors.torch.save_file` would write is the same, byte by byte.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor in a file."""

    path: Path
    start: int
    """Of its first byte."""
    dtype: str
    """As safetensors names it: BF16, F32, I64, …"""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return size(self.dtype, self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tensor that a file will hold."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[bytes | bytearray | memoryview]]
    """Gives its bytes when it is their turn, in blocks of any size."""


def width(dtype: str) -> int:
    """Bytes a value of a dtype as safetensors names it (BF16, F8_E4M3, I64, BOOL)."""
    bits = "".join(filter(str.isdigit, dtype.partition("_")[0]))
    return int(bits) // 8 if bits else 1


def size(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * width(dtype)


def tensors(path: Path) -> dict[str, Stored]:
    """Where each tensor of a file lies.

    Raises:
        StageError: there is no such file, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"), path.open("rb") as file:  # checks all that it says
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, SafetensorError) as error:
        raise StageError(f"merge: {path} is missing or damaged ({error})") from error
    header.pop("__metadata__", None)
    return {
        name: Stored(
            path=path,
            start=8 + length + entry["data_offsets"][0],
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
        )
        for name, entry in header.items()
    }


def blocks(stored: Stored, values: int) -> Iterator[bytearray]:
    """Read a tensor from front to back, so many values at a time.

    Reads, for the pages of a mapped file count as this process's memory.

    Raises:
        StageError: the file ends early.
    """
    left, step = stored.size, values * width(stored.dtype)
    with stored.path.open("rb") as file:
        file.seek(stored.start)
        while left:
            block = bytearray(min(step, left))
            if file.readinto(block) != len(block):
                raise StageError(f"merge: {stored.path} ends early")
            left -= len(block)
            yield block


def write(path: Path, entries: Iterable[Entry], advance: Callable[[int], None]) -> None:
    """Write a file.

    Args:
        path: of the file.
        entries: in any order; the widest dtypes go in front, so that each is aligned.
        advance: told the bytes written since the last call.
    """
    ordered = sorted(entries, key=lambda entry: (-width(entry.dtype), entry.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in ordered:
        start, end = end, end + size(entry.dtype, entry.shape)
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in ordered:
            for block in entry.blocks():
                file.write(block)
                advance(len(block))
        assert file.tell() == 8 + len(text) + end


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
