"""Freeing the disk: an entry's files go, what it says stays.

A pruned entry keeps `inputs.json` and `result.json`, so its record can be read and nothing that was
made from it is computed again. `pruned.json` lists the files that no longer count. It is written
first: a kill before the files are deleted leaves a pruned entry with files left over, which the
next pruning deletes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftsuite import jsonfile
from ftsuite.errors import StoreError
from ftsuite.provenance import now
from ftsuite.store import leases
from ftsuite.store.entries import PRUNED, file_digest, pruned_files, stored_files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

OWN = ("inputs.json", "result.json", PRUNED)
"""What an entry says of itself, which stays."""
PARTIAL, REMOVED = ".partial", ".partial-removed"
"""In the name of a folder that is no result (yet), and of one that is about to be deleted."""
KEY = re.compile(r"[0-9a-f]{24}")
"""Name of an entry's folder."""
BESIDES = ("studies", "tracking")
"""Folders of the store that hold no entries."""
RESUMED = ("train",)
"""Stages whose broken-off work holds checkpoints from which a run goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """`pruned.json`."""

    at: str
    """UTC, ISO 8601."""
    bytes: int
    """Of all files that were freed."""
    files: tuple[str, ...]


def pruned(folder: Path) -> Pruned | None:
    """What was freed of the entry in `folder`; None if nothing was.

    Raises:
        StoreError: the marker cannot be read.
    """
    if not pruned_files(folder):
        return None
    path = folder / PRUNED
    return jsonfile.from_json(Pruned, json.loads(path.read_text("utf-8")), where=str(path))


def is_pruned(folder: Path) -> bool:
    """Whether files of the entry in `folder` were freed."""
    return (folder / PRUNED).is_file()


def bytes_of(folder: Path) -> int:
    """Bytes of the files below `folder`, without what an entry says of itself; 0 if it is gone."""
    return _bytes(str(folder), own=OWN)


def _bytes(folder: str, own: Collection[str] = ()) -> int:
    total = 0
    # Somebody else may delete what is being counted.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                total += _bytes(item.path)
            elif item.name not in own:
                with contextlib.suppress(FileNotFoundError):
                    total += item.stat(follow_symlinks=False).st_size
    return total


def bytes_of_files(folder: Path, names: Collection[str]) -> int:
    """Bytes that the files `names` take on the disk now; one that is gone takes none."""
    total = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            total += (folder / name).stat().st_size
    return total


def prune(folder: Path, names: Collection[str]) -> int:
    """Free files of a finished entry, and those that an earlier, killed pruning left over.

    Args:
        folder: the entry.
        names: files as the entry lists them (`stored_files`); may be empty.

    Returns:
        Bytes freed now.

    Raises:
        StoreError: the entry is corrupted, or another process has it in hand; nothing was freed.
    """
    stored = stored_files(folder)
    assert set(names) <= stored.keys(), f"{folder} was not stored with all of {sorted(names)}"
    with _alone(folder):
        before = pruned(folder)
        gone = tuple(sorted({*names, *(before.files if before else ())}))
        if gone != (before.files if before else ()):
            total = sum(stored[name]["bytes"] for name in gone)
            marker = Pruned(at=now(), bytes=total, files=gone)
            jsonfile.write_text(folder / PRUNED, jsonfile.dumps(jsonfile.to_json(marker)))
            _sync(folder)
        freed = bytes_of_files(folder, gone)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        _remove_empty_folders(folder)
    return freed


def restore(folder: Path, made: Path) -> None:
    """Put the files of a pruned entry back; it is then as it was before, record and key included.

    For who has computed the stage again because something is to be built on its files. The caller
    holds the entry's lease.

    Args:
        folder: the pruned entry.
        made: a folder on the same disk into which the stage has computed again; is deleted.

    Raises:
        StoreError: a file has other bytes than the one that was freed; the entry stays pruned.
    """
    names = sorted(pruned_files(folder))
    stored = stored_files(folder)
    for name in names:
        path = made / name
        if not path.is_file() or file_digest(path) != stored[name]["sha256"]:
            raise StoreError(
                f"{folder}: {name}, computed again, is not what it was, so it does not fit what "
                "was made from it; to take the new one, delete this folder and run the study again"
            )
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made / name, folder / name)
    # Last: until then the entry counts as pruned.
    (folder / PRUNED).unlink(missing_ok=True)
    _sync(folder)
    shutil.rmtree(made)


def remove(folder: Path) -> int:
    """Delete a whole entry or broken-off work, and return the bytes freed.

    Raises:
        StoreError: another process has it in hand; nothing was freed.
    """
    with _alone(folder):
        freed = bytes_of(folder)
        doomed = folder
        if PARTIAL not in folder.name:
            # An entry is whole or not there: a kill must not leave half of one.
            doomed = folder.with_name(folder.name + REMOVED)
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(folder, doomed)
            _sync(folder.parent)
        shutil.rmtree(doomed)
    return freed


def entries(root: Path) -> list[Path]:
    """Folders of all finished entries, pruned ones included, by stage and key."""
    return [p for p in _folders(root) if KEY.fullmatch(p.name) and (p / "result.json").is_file()]


def broken_off(root: Path) -> list[Path]:
    """Folders of work that was killed or failed: no process holds the lease of their key."""
    found = []
    for folder in _folders(root):
        is_work = PARTIAL in folder.name and KEY.fullmatch(folder.name.partition(PARTIAL)[0])
        if is_work and leases.holder(_entry(folder)) is None:
            found.append(folder)
    return found


def _folders(root: Path) -> list[Path]:
    return sorted(
        path for path in root.glob("*/*") if path.parent.name not in BESIDES and path.is_dir()
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with leases.held_if_free(_entry(folder)) as lease:
        if lease is None:
            raise StoreError(f"{folder}: another process is computing it; left alone, try later")
        yield


def _entry(folder: Path) -> Path:
    """The entry that a folder is, or is work for."""
    return folder.with_name(folder.name.partition(".")[0])


def _remove_empty_folders(folder: Path) -> None:
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
