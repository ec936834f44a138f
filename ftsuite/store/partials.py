"""The folder in which a result grows, `<key>.partial-<token>`: begun, taken over, made visible.

Each lease has its own, so two processes never share one, not even where a lease was taken over from
a process that was alive after all. Such a process must not publish what another has taken from it:
whoever takes a folder renames it first, in one step, and `publish` sees that.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ftsuite.errors import FtsuiteError, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FULL_DISK_BYTES = 100_000
"""Free space below which a failed stage is blamed on the disk."""


def prepare(folder: Path, token: str, *, resumable: bool) -> Path:
    """Make the partial folder of the result `folder`; call it with the result's lease held.

    Args:
        folder: where the result will lie.
        token: of the lease.
        resumable: whether to go on in the newest folder that was left behind. Every other one is
            removed.
    """
    partial = folder.with_name(f"{folder.name}.partial-{token[:8]}")
    # Earlier versions had no token in the name.
    abandoned = sorted(folder.parent.glob(f"{folder.name}.partial*"), key=_newest_change_ns)
    while resumable and abandoned and not partial.exists():
        # Gone: a process that had lost the lease has removed its own.
        with suppress(FileNotFoundError):
            os.rename(abandoned.pop(), partial)
    for other in abandoned:
        discard(other)
    partial.mkdir(exist_ok=True)
    # A kill just before the rename leaves one behind; it must not be listed among the files.
    (partial / "result.json").unlink(missing_ok=True)
    return partial


def publish(partial: Path, folder: Path) -> bool:
    """Make the whole result in `partial` visible as `folder`, in one step.

    Returns:
        False if another process was faster: then its result stays, and `partial` is removed.

    Raises:
        FileNotFoundError: another process has taken `partial` away.
    """
    try:
        # The first file: missing where the folder was taken, and the next files made it anew.
        os.stat(partial / "inputs.json")
        os.rename(partial, folder)
    except FileNotFoundError:
        discard(partial)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        discard(partial)
        return False
    _sync_folder(folder.parent)
    return True


def discard(partial: Path) -> None:
    """Remove a partial folder, so that nobody goes on in the half of one or publishes it."""
    stem = partial.name.partition(".partial")[0]
    removed = partial.with_name(f"{stem}.removed-{uuid.uuid4().hex[:8]}")
    try:
        os.rename(partial, removed)
    except FileNotFoundError:
        return  # taken by another process
    shutil.rmtree(removed, ignore_errors=True)


def write_json(path: Path, plain: Any) -> None:
    """Write `plain` as JSON, and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(plain, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def full_disk_is_an_error(root: Path) -> Iterator[None]:
    """Turn whatever a full disk makes a library raise into one line.

    Raises:
        StageError: the disk of `root` is full.
    """
    try:
        yield
    except FtsuiteError:
        raise
    except Exception as error:
        # safetensors and torch wrap the errno in their own exceptions and keep only its text.
        texts = os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT)
        told = any(text in str(error) for text in texts)
        # torch says only "iostream error".
        if not told and shutil.disk_usage(root).free > FULL_DISK_BYTES:
            raise
        raise StageError(
            f"no space left on the disk of {root}; free some, or set store.root or FTSUITE_STORE"
        ) from error


def _newest_change_ns(folder: Path) -> int:
    """When the newest thing in `folder` was written, so that the one with most work is found."""
    try:
        return max(path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return 0  # on its way out


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
