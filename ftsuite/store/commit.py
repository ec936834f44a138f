"""Computing a result into the store: one holder at a time, made visible by one rename."""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ftsuite import jsonfile
from ftsuite.errors import StoreError, redacted, secret_in
from ftsuite.jsonfile import canonical, digest
from ftsuite.measure import measure
from ftsuite.store import leases, partials, pruning
from ftsuite.store.entries import Entry, StageSpec, file_digest, folder_of, lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ftsuite.measure import Usage
    from ftsuite.store.leases import Lease

T = TypeVar("T")

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
    folder, found = folder_of(root, spec.name, spec.key), lookup(root, spec)
    while found is None or found.pruned:
        on_miss()
        with leases.held(folder, on_wait=lambda _: on_wait(spec.name)) as lease:
            # Another process may have finished while this one waited.
            found = lookup(root, spec)
            if found is None or found.pruned:
                is_mine = False
                with partials.full_disk_is_an_error(root), work(spec, root, lease) as partial:
                    started = time.monotonic()
                    with measure() as usage:
                        record = spec.compute(partial)
                    seconds = time.monotonic() - started
                    is_mine = commit(spec, root, partial, record, seconds, usage)
                made = lookup(root, spec)
                if made is not None:
                    return replace(made, reused=not is_mine)
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
    folder = folder_of(root, spec.name, spec.key)
    partial = partials.prepare(folder, lease.token, resumable=spec.resumable)
    partials.write_json(partial / "inputs.json", spec.inputs)
    try:
        yield partial
    except BaseException as error:
        if not spec.resumable:
            partials.discard(partial)
        if not lease.is_lost() or not isinstance(error, Exception):
            raise


def commit(
    spec: StageSpec[Any], root: Path, partial: Path, record: Any, seconds: float, usage: Usage
) -> bool:
    """Make a result visible; where somebody else was first, theirs stays, and this says False.

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
        return True
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
    partials.write_json(partial / "result.json", {**result, jsonfile.CHECKSUM: digest(result)})
    return partials.publish(partial, folder)
