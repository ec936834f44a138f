"""Records to JSON and back: typed reading, checksums, atomic writing, no secrets."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from ftsuite.errors import StoreError, redacted
from ftsuite.records import SCHEMA_VERSION

T = TypeVar("T")

CHECKSUM = "sha256"
"""Field of a record's file: sha256 over the canonical JSON of its other fields."""


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def canonical(plain: Any) -> str:
    """JSON text that is equal for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(plain: Any) -> str:
    """Sha256 of the canonical JSON of `plain`, as 64 hex digits."""
    return hashlib.sha256(canonical(plain).encode()).hexdigest()


def to_json(record: Any) -> dict[str, Any]:
    """Return `record` as plain JSON values."""
    kind: Any = type(record)
    plain: dict[str, Any] = _adapter(kind).dump_python(record, mode="json")
    return plain


def from_json(kind: type[T], plain: Any, *, where: str) -> T:
    """Read a record of type `kind` from JSON values.

    Raises:
        StoreError: a field is missing, unknown, of the wrong type or out of its range.
    """
    from pydantic import ValidationError

    def refused(place: str, reason: str) -> StoreError:
        name = getattr(kind, "__name__", str(kind))
        return StoreError(f"{where}: not a {name} ({place}: {reason}); delete it and run again")

    try:
        untyped: Any = kind
        record: T = _adapter(untyped).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise refused(place, first["msg"]) from error
    # Pydantic passes over what a dataclass does not know.
    unknown = _unknown(plain, _adapter(untyped).dump_python(record, mode="json"))
    if unknown is not None:
        raise refused(unknown, "no such field; another version of ftsuite may have written it")
    return record


def _unknown(plain: Any, known: Any) -> str | None:
    """Path of the first field of `plain` that its record does not have, at any depth."""
    if isinstance(plain, dict) and isinstance(known, dict):
        if strange := sorted(set(plain) - set(known)):
            return str(strange[0])
        pairs = [(name, value, known[name]) for name, value in plain.items()]
    elif isinstance(plain, list) and isinstance(known, list):
        pairs = [(str(n), *both) for n, both in enumerate(zip(plain, known, strict=True))]
    else:
        return None
    deeper = ((name, _unknown(value, twin)) for name, value, twin in pairs)
    return next((f"{name}.{path}" for name, path in deeper if path is not None), None)


def dumps(plain: Any) -> str:
    """JSON text with one line a field and arrays of numbers on one line, without secrets."""
    arrays: dict[str, str] = {}

    def fold(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: fold(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            if value and all(isinstance(item, int | float) for item in value):
                mark = f"\0{len(arrays)}\0"
                arrays[json.dumps(mark)] = json.dumps(value)
                return mark
            return [fold(item) for item in value]
        return value

    text = json.dumps(fold(redacted(plain)), indent=1, ensure_ascii=False)
    return re.sub(r'"\\u0000\d+\\u0000"', lambda m: arrays.get(m[0], m[0]), text) + "\n"


def unwritable(what: str, error: OSError, settings: str) -> StoreError:
    """The error for `what`, which cannot be written; `settings` name another folder for it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "no space left on the disk; free some"
    else:
        reason = f"cannot be written ({error.strerror or error}); mend that"
    return StoreError(f"{what}: {reason}, or set {settings}")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the whole new one.

    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    try:
        _write_text(path, text)
    except OSError as error:
        settings = "store.root or FTSUITE_STORE, store.reports or --out"
        raise unwritable(str(path), error, settings) from error


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write(path: Path, record: Any) -> None:
    """Write a run record or a manifest to `path` as JSON with its checksum, atomically."""
    plain = redacted(to_json(record))
    write_text(path, dumps({**plain, CHECKSUM: digest(plain)}))


def read(kind: type[T], path: Path) -> T:
    """Read a run record or a manifest from the JSON file `path`, its checksum checked.

    Raises:
        StoreError: the file is missing, damaged, of another version, or not such a record.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        written = plain.pop(CHECKSUM, None) if isinstance(plain, dict) else None
        found = digest(plain)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such record; `ftsuite runs` lists what is there") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); mend that") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not valid JSON ({error}); delete it and run again") from error
    if not isinstance(plain, dict):
        raise StoreError(f"{path}: not a record but a {type(plain).__name__}; delete it")
    if (version := plain.get("schema_version")) != SCHEMA_VERSION:
        raise StoreError(
            f"{path}: schema_version is {version!r}, this ftsuite reads {SCHEMA_VERSION}; run its "
            "study again, or read it with the version of ftsuite that wrote it"
        )
    if written != found:
        raise StoreError(
            f"{path}: does not have the checksum it was written with, so somebody or something "
            "has changed it; delete it and run its study again"
        )
    return from_json(kind, plain, where=str(path))
