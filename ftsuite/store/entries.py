"""The content-addressed store: a stage's result is computed once, whatever asks for it.

Layout, below the store's root:

```
<stage>/<key>/inputs.json     what the key was made from
<stage>/<key>/result.json     the record, the files with size and sha256, seconds, memory, checksum
<stage>/<key>/…               files
<stage>/<key>.partial-<token>/  work in progress, never read as a result
<stage>/<key>.lease           held while somebody computes; see `leases`
```

Only the final rename makes a result visible. The key is sha256 over the canonical JSON of the
stage's name, its VERSION and its inputs, and the layout's own version; upstream results enter by
their keys, never by a path.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ftsuite import jsonfile
from ftsuite.errors import StoreError, redacted, secret_in
from ftsuite.jsonfile import canonical as canonical
from ftsuite.jsonfile import digest as digest
from ftsuite.measure import measure
from ftsuite.store import leases, partials

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

LAYOUT = 2
"""Version of what an entry's files hold; entries of another layout are not found.

2: the checksum covers the whole of result.json.
"""
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
    for name, facts in result["files"].items():
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
    # Redacting them would make them differ from the key's.
    if secret := secret_in(canonical(spec.inputs)):
        raise StoreError(
            f"{spec.name}: its inputs hold the value of {secret}, which would be stored; take it "
            "out of the settings, the task and the probe files"
        )
    while (entry := _computed(root, spec, on_wait)) is None:
        pass
    return entry


def _computed(root: Path, spec: StageSpec[T], on_wait: Callable[[str], None]) -> Entry[T] | None:
    """Compute the result under its lease; None where that failed because the lease was lost.

    Who takes a lease over takes the partial folder too, and so makes the former holder fail.
    """
    folder = folder_of(root, spec.name, spec.key)
    with leases.held(folder, on_wait=lambda _: on_wait(spec.name)) as lease:
        # Another process may have finished while this one waited.
        found = lookup(root, spec)
        if found is not None:
            return found
        try:
            with partials.full_disk_is_an_error(root):
                is_mine = _compute(folder, spec, lease.token)
        except Exception:
            if lease.is_lost():
                return None
            raise
    made = lookup(root, spec)
    if made is None:
        raise StoreError(f"{folder}: vanished while it was written")
    return replace(made, reused=not is_mine)


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
        StoreError: there is no such entry or file, or its bytes are not those that were stored.
    """
    if not folder.exists():
        raise StoreError(f"{folder}: no such entry in the store; run the study again to make it")
    facts = _read_result(folder)["files"].get(name)
    if facts is None:
        raise StoreError(
            f"{folder}: holds no {name}, as an earlier version made it; run the study again"
        )
    path = folder / name
    if not path.is_file() or file_digest(path) != facts["sha256"]:
        raise _corrupted(folder, f"{name} does not have the sha256 it was stored with")
    return path


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


def _compute(folder: Path, spec: StageSpec[T], token: str) -> bool:
    """Compute the result and make it visible; False if another process did so meanwhile."""
    partial = partials.prepare(folder, token, resumable=spec.resumable)
    partials.write_json(partial / "inputs.json", spec.inputs)
    started = time.monotonic()
    try:
        with measure() as usage:
            record = spec.compute(partial)
    except BaseException:
        if not spec.resumable:
            partials.discard(partial)
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
    partials.write_json(partial / "result.json", {**result, jsonfile.CHECKSUM: digest(result)})
    return partials.publish(partial, folder)


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
