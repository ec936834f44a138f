"""Computing a result into the store: one holder at a time, made visible by one rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ftsuite import jsonfile
from ftsuite.errors import FtsuiteError, StageError, StoreError, redacted, secret_in
from ftsuite.jsonfile import canonical, digest
from ftsuite.measure import measure
from ftsuite.store import leases, pruning
from ftsuite.store.entries import Entry, StageSpec, file_digest, folder_of, lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ftsuite.measure import Usage
    from ftsuite.store.leases import Lease

T = TypeVar("T")

FULL_DISK_BYTES = 100_000
"""Free space below which a failed stage is blamed on the disk."""
SMALLEST_FILE_BYTES = 4096
"""What a disk must take for a run to begin: a block of an ordinary file system."""


def run_stage(
    root: Path,
    spec: StageSpec[T],
    *,
    on_miss: Callable[[], None] = lambda: None,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Entry[T]:
    """Return the result of `spec`, from the store or by computing it once.

    A pruned result is computed again: its files are put back, if they are the same.

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
    while found is None or found.pruned:
        on_miss()
        with leased(root, spec, on_wait) as lease:
            # Another process may have finished while this one waited.
            found = lookup(root, spec)
            if found is None or found.pruned:
                with full_disk_is_an_error(root), work(spec, root, lease) as partial:
                    started = time.monotonic()
                    with measure() as usage:
                        record = spec.compute(partial)
                    commit(spec, root, partial, record, time.monotonic() - started, usage)
                made = lookup(root, spec)
                if made is not None:
                    return replace(made, reused=False)
    return found


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


def leased_if_free(root: Path, spec: StageSpec[Any]) -> Lease | None:
    """Take the lease of a result if nobody has it; it must be released.

    Raises:
        StoreError: the store cannot be written.
    """
    folder = folder_of(root, spec.name, spec.key)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return leases.acquire(folder)
    except OSError as error:
        raise _unwritable(folder.parent, "store.root", error) from error


@contextmanager
def work(spec: StageSpec[Any], root: Path, lease: Lease) -> Iterator[Path]:
    """Give a folder to compute `spec` in, and clear up where that fails.

    Where the lease was lost meanwhile, whoever took it over has moved the folder away: an error
    that follows from it is dropped with the work, which is no longer wanted.

    Raises:
        StoreError: the inputs hold a secret.
    """
    # Redacting them would make them differ from the key's.
    if secret := secret_in(canonical(spec.inputs)):
        raise StoreError(
            f"{spec.name}: its inputs hold the value of {secret}, which would be stored; take it "
            "out of the settings, the task and the probe files"
        )
    partial = _own_partial(folder_of(root, spec.name, spec.key), spec, lease)
    # A kill just before the rename leaves one behind; it must not be listed among the files.
    (partial / "result.json").unlink(missing_ok=True)
    _write_durably(partial / "inputs.json", spec.inputs)
    try:
        yield partial
    except BaseException as error:
        if not spec.resumable:
            shutil.rmtree(partial, ignore_errors=True)
        if lease.check() or not isinstance(error, Exception):
            raise


def commit(
    spec: StageSpec[Any], root: Path, partial: Path, record: Any, seconds: float, usage: Usage
) -> None:
    """Make a result visible; where somebody else was first, theirs stays.

    Args:
        spec: what was computed.
        root: the store.
        partial: the folder of `work`.
        record: the result.
        seconds: that computing it took.
        usage: highest memory meanwhile.
    """
    folder = folder_of(root, spec.name, spec.key)
    if pruning.is_pruned(folder):
        pruning.restore(folder, partial)
        return
    files = {
        str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(partial.rglob("*"))
        if path.is_file() and path != partial / "inputs.json"
    }
    result = {
        "record": redacted(jsonfile.to_json(record)),
        "files": files,
        "seconds": round(seconds, 3),
        "peak_memory_bytes": usage.memory_bytes,
        "peak_device_bytes": usage.device_bytes,
    }
    _write_durably(partial / "result.json", {**result, jsonfile.CHECKSUM: digest(result)})
    try:
        os.rename(partial, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Equal inputs give one result.
        shutil.rmtree(partial)
    _sync_folder(folder.parent)


def _own_partial(folder: Path, spec: StageSpec[Any], lease: Lease) -> Path:
    """A folder that no other holder writes into, with what an ended one has left where it helps."""
    own = folder.with_name(f"{folder.name}.partial-{lease.token[:8]}")
    left = sorted(folder.parent.glob(f"{folder.name}.partial*"), key=lambda p: p.stat().st_mtime)
    if left and spec.resumable:
        os.rename(left.pop(), own)
    for path in left:
        shutil.rmtree(path)
    own.mkdir(parents=True, exist_ok=True)
    return own


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


@contextmanager
def leased(
    root: Path, spec: StageSpec[Any], on_wait: Callable[[str], None] = lambda _: None
) -> Iterator[Lease]:
    """Hold the lease of a result, waiting for who computes it.

    Raises:
        StoreError: the store cannot be written.
    """
    folder = folder_of(root, spec.name, spec.key)
    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lease = stack.enter_context(leases.held(folder, lambda _: on_wait(spec.name)))
        except OSError as error:
            raise _unwritable(folder.parent, "store.root", error) from error
        yield lease


@contextmanager
def full_disk_is_an_error(root: Path) -> Iterator[None]:
    """Say in words that the disk is full, whoever found out.

    Raises:
        StageError: it is.
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
