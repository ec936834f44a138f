"""The content-addressed store: a stage's result is computed once, whatever asks for it.

Layout, below the store's root:

```
<stage>/<key>/inputs.json     what the key was made from
<stage>/<key>/result.json     the record, the files with size and sha256, seconds, memory, checksum
<stage>/<key>/…               files
<stage>/<key>/pruned.json     which of the files were freed to save space (pruning.py)
<stage>/<key>.partial/        work in progress, never read as a result
<stage>/<key>.lock            held while somebody computes; released by the kernel at death
```

Only the final rename makes a result visible. The key is sha256 over the canonical JSON of the
stage's name, its VERSION and its inputs, and the layout's own version; upstream results enter by
their keys, never by a path.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from filelock import FileLock, Timeout

from ftsuite import jsonfile
from ftsuite.errors import FtsuiteError, StageError, StoreError, redacted, secret_in
from ftsuite.jsonfile import canonical as canonical
from ftsuite.jsonfile import digest as digest
from ftsuite.measure import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")

LAYOUT = 2
"""Version of what an entry's files hold; entries of another layout are not found.

2: the checksum covers the whole of result.json.
"""
PRUNED = "pruned.json"
"""Lists the files of an entry that were freed."""
FULL_DISK_BYTES = 100_000
"""Free space below which a failed stage is blamed on the disk."""
SMALLEST_FILE_BYTES = 4096
"""What a disk must take for a run to begin: a block of an ordinary file system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec(Generic[T]):
    """A stage to run: its identity, and how to compute it.

    `compute` gets the folder to write files into and returns the record.
    """

    name: str
    version: int
    """Raised when the same inputs would now give another result."""
    inputs: dict[str, Any]
    record: type[T]
    compute: Callable[[Path], T]
    resumable: bool = False
    """Whether `compute` can go on in a folder that a killed run left behind."""

    @property
    def key(self) -> str:
        """64 hex digits that identify the result."""
        made = {"stage": self.name, "version": self.version, "inputs": self.inputs}
        return digest({"layout": LAYOUT, **made})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Generic[T]):
    """A stored result."""

    stage: str
    key: str
    folder: Path
    record: T
    seconds: float
    reused: bool
    peak_memory_bytes: int
    peak_device_bytes: int
    pruned: bool = False
    """Whether files of it were freed: its record is whole, but nothing can be built on it."""


def file_digest(path: Path) -> str:
    """Sha256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_of(root: Path, stage: str, key: str) -> Path:
    """Where the result of `stage` under `key` lies; 24 digits are enough for a name."""
    return root / stage / key[:24]


def lookup(root: Path, spec: StageSpec[T]) -> Entry[T] | None:
    """Return the stored result of `spec`, or None where there is none.

    Raises:
        StoreError: the entry is corrupted, or was made from other inputs.
    """
    folder = folder_of(root, spec.name, spec.key)
    if not folder.exists():
        return None
    _check_inputs(folder, spec)
    result = _read_result(folder)
    pruned = pruned_files(folder)
    for name, facts in result["files"].items():
        if name in pruned:
            continue
        path = folder / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            raise _corrupted(folder, f"{name} is missing or not {facts['bytes']} bytes long")
    return Entry(
        stage=spec.name,
        key=spec.key,
        folder=folder,
        record=jsonfile.from_json(spec.record, result["record"], where=str(folder)),
        seconds=result["seconds"],
        reused=True,
        peak_memory_bytes=result["peak_memory_bytes"],
        peak_device_bytes=result["peak_device_bytes"],
        pruned=bool(pruned),
    )


def run_stage(
    root: Path,
    spec: StageSpec[T],
    *,
    on_miss: Callable[[], None] = lambda: None,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Entry[T]:
    """Return the result of `spec`, from the store or by computing it once.

    Args:
        root: the store.
        spec: what to compute.
        on_miss: called when the result is not in the store, before anything else is done.
        on_wait: called with the stage's name when another process computes the same result.

    Raises:
        StoreError: a stored entry is corrupted or contradicts its inputs, or the inputs hold a
            secret.
        StageError: the disk is full.
    """
    found = lookup(root, spec)
    if found is not None:
        return found
    on_miss()
    with _locked(root, spec, on_wait):
        # Another process may have finished while this one waited.
        found = lookup(root, spec)
        if found is not None:
            return found
        with _disk_full_is_an_error(root):
            _compute(root, spec)
    made = lookup(root, spec)
    if made is None:
        raise StoreError(f"{folder_of(root, spec.name, spec.key)}: vanished while it was written")
    return Entry(**{**{f: getattr(made, f) for f in made.__dataclass_fields__}, "reused": False})


def verify(entry: Entry[Any]) -> None:
    """Check the files of `entry` against their sha256, before somebody builds on them.

    Raises:
        StoreError: a file's bytes are not those that were stored.
    """
    for name in _read_result(entry.folder)["files"]:
        checked_file(entry.folder, name)


def checked_file(folder: Path, name: str) -> Path:
    """Return the path of a file of the entry in `folder`, once its sha256 was checked.

    Raises:
        StoreError: there is no such entry or file, it was pruned, or its bytes are not those that
            were stored.
    """
    if not folder.exists():
        raise StoreError(f"{folder}: no such entry in the store; run the study again to make it")
    facts = _read_result(folder)["files"].get(name)
    if facts is None:
        raise StoreError(
            f"{folder}: holds no {name}, as an earlier version made it; run the study again"
        )
    if name in pruned_files(folder):
        raise StoreError(
            f"{folder}: {name} was pruned to save space; to make it again, delete this folder and "
            "run its study again with store.keep=all"
        )
    path = folder / name
    if not path.is_file() or file_digest(path) != facts["sha256"]:
        raise _corrupted(folder, f"{name} does not have the sha256 it was stored with")
    return path


def stored_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Names of the files that an entry was stored with → their `bytes` and `sha256`.

    Raises:
        StoreError: the entry is corrupted.
    """
    files: dict[str, dict[str, Any]] = _read_result(folder)["files"]
    return files


def pruned_files(folder: Path) -> frozenset[str]:
    """Names of the files that were freed; one may still lie there if a kill came in between.

    Raises:
        StoreError: the entry's pruned.json cannot be read.
    """
    try:
        return frozenset(json.loads((folder / PRUNED).read_text(encoding="utf-8"))["files"])
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _corrupted(folder, f"{PRUNED} cannot be read: {error}") from error


def require_writable(folder: Path, setting: str) -> None:
    """Make `folder` and check that files can be written there.

    Args:
        folder: of the store or of the reports.
        setting: which one names it.

    Raises:
        StoreError: it cannot be made, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions do not tell: root may write anywhere but on a read-only file system.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(SMALLEST_FILE_BYTES))
    except OSError as error:
        raise _unwritable(folder, setting, error) from error


def _unwritable(folder: Path, setting: str, error: OSError) -> StoreError:
    also = " or FTSUITE_STORE" if setting == "store.root" else ""
    return jsonfile.unwritable(f"{setting}: {folder}", error, f"{setting}{also}")


@contextmanager
def holding(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` if it is free; the value says whether it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _compute(root: Path, spec: StageSpec[T]) -> None:
    # Redacting them would make them differ from the key's.
    if secret := secret_in(canonical(spec.inputs)):
        raise StoreError(
            f"{spec.name}: its inputs hold the value of {secret}, which would be stored; take it "
            "out of the settings, the task and the probe files"
        )
    folder = folder_of(root, spec.name, spec.key)
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists() and not spec.resumable:
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    # A kill just before the rename leaves one behind; it must not be listed among the files.
    (partial / "result.json").unlink(missing_ok=True)
    _write_durably(partial / "inputs.json", spec.inputs)
    started = time.monotonic()
    try:
        with measure() as usage:
            record = spec.compute(partial)
    except BaseException:
        if not spec.resumable:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    files = {
        str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(partial.rglob("*"))
        if path.is_file() and path != partial / "inputs.json"
    }
    result = {
        "record": redacted(jsonfile.to_json(record)),
        "files": files,
        "seconds": round(time.monotonic() - started, 3),
        "peak_memory_bytes": usage.memory_bytes,
        "peak_device_bytes": usage.device_bytes,
    }
    _write_durably(partial / "result.json", {**result, jsonfile.CHECKSUM: digest(result)})
    os.rename(partial, folder)
    _sync_folder(folder.parent)


def _write_durably(path: Path, plain: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(plain, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_result(folder: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        intact = result.pop(jsonfile.CHECKSUM) == digest(result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _corrupted(folder, f"result.json cannot be read: {error}") from error
    if not intact:
        raise _corrupted(folder, "result.json does not have the checksum it was stored with")
    return result


def _check_inputs(folder: Path, spec: StageSpec[Any]) -> None:
    try:
        stored = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _corrupted(folder, f"inputs.json cannot be read: {error}") from error
    if not isinstance(stored, dict):
        raise _corrupted(folder, "inputs.json holds no object")
    if canonical(stored) != canonical(spec.inputs):
        names = sorted(
            name
            for name in set(stored) | set(spec.inputs)
            if stored.get(name) != spec.inputs.get(name)
        )
        raise _corrupted(folder, f"inputs.json differs from the key's in {', '.join(names)}")


def _corrupted(folder: Path, what: str) -> StoreError:
    return StoreError(f"store entry {folder} is corrupted: {what}; delete the folder and run again")


@contextmanager
def _locked(root: Path, spec: StageSpec[Any], on_wait: Callable[[str], None]) -> Iterator[None]:
    folder = folder_of(root, spec.name, spec.key)
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        on_wait(spec.name)
        lock.acquire()
    except OSError as error:
        raise _unwritable(folder.parent, "store.root", error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_full_is_an_error(root: Path) -> Iterator[None]:
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
