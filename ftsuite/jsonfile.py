"""Records to JSON and back: typed reading, atomic writing, no secrets."""

from __future__ import annotations

import functools
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from ftsuite.errors import StoreError, redact

T = TypeVar("T")


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def to_json(record: Any) -> dict[str, Any]:
    """Return `record` as plain JSON values."""
    kind: Any = type(record)
    plain: dict[str, Any] = _adapter(kind).dump_python(record, mode="json")
    return plain


def from_json(kind: type[T], plain: Any, *, where: str) -> T:
    """Read a record of type `kind` from JSON values.

    Raises:
        StoreError: a field is missing, unknown to the type or of the wrong type.
    """
    from pydantic import ValidationError

    try:
        untyped: Any = kind
        record: T = _adapter(untyped).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreError(
            f"{where}: not a {kind.__name__} ({place}: {first['msg']}); delete it and run again"
        ) from error
    return record


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

    text = json.dumps(fold(plain), indent=1, ensure_ascii=False)
    text = re.sub(r'"\\u0000\d+\\u0000"', lambda m: arrays.get(m[0], m[0]), text)
    return redact(text) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the whole new one."""
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
    """Write a record to `path` as JSON, atomically."""
    write_text(path, dumps(to_json(record)))


def read(kind: type[T], path: Path) -> T:
    """Read a record of type `kind` from the JSON file `path`.

    Raises:
        StoreError: the file is missing, not JSON, or not such a record.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such record; `ftsuite runs` lists what is there") from error
    except ValueError as error:
        raise StoreError(f"{path}: not valid JSON ({error}); delete it and run again") from error
    return from_json(kind, plain, where=str(path))
