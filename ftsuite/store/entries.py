"""The content-addressed store: a stage's result is computed once, whatever asks for it.

Layout, below the store's root:

```
<stage>/<key>/inputs.json     what the key was made from
<stage>/<key>/result.json     the record, the files with size and sha256, seconds, memory, checksum
<stage>/<key>/…               files
<stage>/<key>/pruned.json     which of the files were freed to save space (pruning.py)
<stage>/<key>.partial-<token>/  work in progress of one holder, never read as a result
<stage>/<key>.lease           who computes it (leases.py)
<stage>/<key>.events.jsonl    what it tells while it works (events.py)
<stage>/<key>.order.json      what a worker is sent (stage.py)
```

Only the final rename makes a result visible; where two compute the same, the first one stays. The
key is sha256 over the canonical JSON of the stage's name, its VERSION and its inputs, and the
layout's own version; upstream results enter by their keys, never by a path.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ftsuite import jsonfile
from ftsuite.errors import StoreError
from ftsuite.jsonfile import canonical as canonical
from ftsuite.jsonfile import digest as digest
from ftsuite.store.stage import LAYOUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


T = TypeVar("T")

PRUNED = "pruned.json"
"""Lists the files of an entry that were freed."""


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


def verify(folder: Path) -> None:
    """Check the files of the entry in `folder` against their sha256, before somebody builds on it.

    Raises:
        StoreError: a file's bytes are not those that were stored.
    """
    for name in _read_result(folder)["files"]:
        checked_file(folder, name)


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
