"""A stage as data: a frozen dataclass of its inputs, whose key is computed from these fields.

What a stage's function reads and what its key holds cannot differ: the function is given the stage,
the folders of its upstreams, a folder to write into and a place for its events, and nothing else.
A stage can be written down as an order (plain JSON) and computed by another process.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import types
import typing
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from ftsuite.errors import StoreError
from ftsuite.jsonfile import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from ftsuite.events import Events

    Folders = Mapping[str, Path]
    """Key of an upstream → its folder."""
    Function = Callable[[Any, Folders, Path, Events], Any]
    """(stage, folders, output folder, events) → record."""

T_co = TypeVar("T_co", covariant=True)

LAYOUT = 2
"""Version of what an entry's files hold; entries of another layout are not found.

2: the checksum covers the whole of result.json.
"""


class Upstream(Protocol):
    """What a stage knows of another whose result it reads."""

    @property
    def stage(self) -> str:
        """Kind of the stage, the store's folder."""

    @property
    def key(self) -> str:
        """64 hex digits that identify its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A stage by its key alone: what an order says of its upstreams."""

    stage: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Generic[T_co]):
    """Inputs of one computation; a subclass for each kind.

    Fields are settings (dataclasses of config.py, plain values), the target, and upstreams, which
    enter the key by their keys. Fields marked NOT_IDENTITY or NOT_KEY (config.py) stay out of it.
    Nothing may change a stage's settings once it is made: its key is computed then.
    """

    NAME: ClassVar[str]
    """Kind of the stage, and the store's folder."""
    VERSION: ClassVar[int]
    """Raised when the same inputs would now give another result."""
    FUNCTION: ClassVar[str]
    """'module:function' that computes the record."""
    RECORD: ClassVar[Any]
    """Type of the record."""
    RESUMABLE: ClassVar[bool] = False
    """Whether the function can go on in a folder that a killed run left behind."""
    MANY: ClassVar[str] = ""
    """'module:function' that computes several stages of equal `together` at once:

    (stages, folders, output folder by key, events by key) → an iterator of (key, record or error).
    Each result is stored under its own key as soon as it comes."""
    CHECK: ClassVar[str] = ""
    """'module:function' (stage, folders) that refuses what cannot work, before work begins."""

    key: str = field(init=False, repr=False, compare=False, metadata={"identity": False})
    """64 hex digits that identify the result."""

    def __post_init__(self) -> None:
        """Compute the key."""
        made = {"stage": self.NAME, "version": self.VERSION, "inputs": self.inputs}
        object.__setattr__(self, "key", digest({"layout": LAYOUT, **made}))

    @property
    def stage(self) -> str:
        """Kind of the stage."""
        return self.NAME

    @property
    def together(self) -> str:
        """Equal for stages that may be computed at once."""
        return ""

    @property
    def inputs(self) -> dict[str, Any]:
        """What the key is made of, as JSON values."""
        return {f.name: _plain(getattr(self, f.name), key=True) for f in _fields(self, key=True)}

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        """The stages whose results this one reads, each once."""
        found = {one.key: one for f in _fields(self) for one in _upstreams(getattr(self, f.name))}
        return tuple(found.values())

    def order(self) -> dict[str, Any]:
        """The stage as JSON values, from which `from_order` makes it again elsewhere."""
        fields = {f.name: _plain(getattr(self, f.name)) for f in _fields(self)}
        return {"stage": self.NAME, "version": self.VERSION, "key": self.key, "fields": fields}


def from_order(kinds: Mapping[str, type[Stage[Any]]], order: Any) -> Stage[Any]:
    """Make a stage of its order; its upstreams are references.

    Raises:
        StoreError: it is no order, or another version of ftsuite wrote it.
    """
    another = "another version of ftsuite wrote it; plan the study again with this one"
    try:
        kind: Any = kinds[order["stage"]]
        hints = _hints(kind)
        values = {name: _made(hints[name], value) for name, value in order["fields"].items()}
        stage: Stage[Any] = kind(**values)
        said = order["key"]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"order: not one that can be computed ({error!r}); {another}") from error
    if stage.key != said:
        raise StoreError(
            f"order: {kind.NAME} has the key {stage.key[:12]} here, not {str(said)[:12]}; {another}"
        )
    return stage


def function_of(name: str) -> Any:
    """Import 'module:function'."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _fields(value: Any, *, key: bool = False) -> Iterator[dataclasses.Field[Any]]:
    for one in dataclasses.fields(value):
        marks = one.metadata
        is_key = marks.get("identity", True) and marks.get("key", True)
        if one.init and (is_key or not key):
            yield one


def _plain(value: Any, *, key: bool = False) -> Any:
    if isinstance(value, Stage | Reference):
        return {"stage": value.stage, "key": value.key}
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name), key=key) for f in _fields(value, key=key)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(item, key=key) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item, key=key) for name, item in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a stage cannot hold a {type(value).__name__}: {value!r}")


def _upstreams(value: Any) -> Iterator[Upstream]:
    if isinstance(value, Stage | Reference):
        yield value
    elif dataclasses.is_dataclass(value):
        for one in _fields(value):
            yield from _upstreams(getattr(value, one.name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _upstreams(item)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    # Types that modules import for checking alone are found by name in the package's modules.
    known = {"Upstream": Upstream}
    return typing.get_type_hints(kind, None, known)


def _made(hint: Any, value: Any) -> Any:
    """The value of type `hint` that `_plain` made JSON of."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (hint,) = [one for one in arguments if one is not types.NoneType]
        return _made(hint, value)
    if hint is Upstream:
        return Reference(**value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = _hints(hint)
        return hint(**{name: _made(hints[name], item) for name, item in value.items()})
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    if origin is tuple:
        return tuple(_made(arguments[0], item) for item in value)
    if origin is list:
        return [_made(arguments[0], item) for item in value]
    if origin is dict:
        return {name: _made(arguments[1], item) for name, item in value.items()}
    if hint is float and isinstance(value, int):
        return float(value)
    return value
