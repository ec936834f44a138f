"""The values of a probe file by their kind, and what is said of a wrong one.

A place is where a value stands, as a person would find it: `checks[1].any_of[0]`, counted from 0.
"""

from __future__ import annotations

import datetime
import difflib
from typing import TYPE_CHECKING, Any

from ftsuite.errors import DataError, shorten

if TYPE_CHECKING:
    from collections.abc import Collection

TRUTH = {True: ("yes, on and true", "yes"), False: ("no, off and false", "no")}
"""The words that YAML 1.1 reads as each truth value, and one of them as an example."""


def kind_of(value: object) -> str:
    """Say what YAML made of a value."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {shorten(str(value))}"
    if isinstance(value, datetime.date):
        return f"the date {value}"
    if isinstance(value, str):
        return f"the text {shorten(value)!r}"
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, dict) else "of a kind that has no use here"


def text(value: object, place: str) -> str:
    """Return `value`, a text that is not blank.

    Raises:
        DataError: it is of another kind, or blank.
    """
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{place}: the text is empty; write it or take it out")
        return value
    said = f"{place}: must be a text, and is {kind_of(value)}"
    if isinstance(value, bool):
        words, example = TRUTH[value]
        raise DataError(
            f"{said}, as which YAML reads {words} without quotes; put the word in quotes, such as "
            f'"{example}"'
        )
    if isinstance(value, int | float | datetime.date):
        raise DataError(f'{said}, as it has no quotes; write "{shorten(str(value))}"')
    if isinstance(value, dict):
        raise DataError(f"{said}, which a colon before a space makes; put the whole text in quotes")
    raise DataError(f"{said}; write one text")


def texts(value: object, place: str) -> list[str]:
    """Return `value`, a list of texts, none of them blank; the list may be empty.

    Raises:
        DataError: it, or one of its items, is of another kind.
    """
    items = sequence(value, place, "texts")
    return [text(item, f"{place}[{number}]") for number, item in enumerate(items)]


def sequence(value: object, place: str, of: str) -> list[Any]:
    """Return `value`, a list of anything; `of` says of what, for the error.

    Raises:
        DataError: it is of another kind.
    """
    if isinstance(value, list):
        return value
    key = place.rpartition(".")[2].partition("[")[0]
    remedy = f"write {key}: [first, second]"
    if value is None:
        remedy = f"write {key}: [first, second], or take the key out"
    elif isinstance(value, str):
        remedy = f"write {key}: [{shorten(value)!r}], or each on a line of its own behind a hyphen"
    elif isinstance(value, dict):
        remedy = "put a hyphen before each entry"
    raise DataError(f"{place}: must be a list of {of}, and is {kind_of(value)}; {remedy}")


def whole(value: object, place: str) -> int:
    """Return `value`, a whole number.

    Raises:
        DataError: it is of another kind.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    remedy = "write it without quotes" if isinstance(value, str) else "write one such as 3"
    raise DataError(f"{place}: must be a whole number, and is {kind_of(value)}; {remedy}")


def mapping(
    value: object, place: str, known: Collection[str], required: Collection[str] = ()
) -> dict[str, Any]:
    """Return `value`, a mapping with keys of `known` alone and all of `required`.

    A misspelt key would be one that is never read, so it is an error.

    Args:
        value: what the file holds.
        place: where; empty for the file as a whole.
        known: the keys that there are, in the order of the documentation.
        required: those that must be there.

    Raises:
        DataError: it is of another kind, or a key is unknown or missing.
    """
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: must be a mapping with {', '.join(known)}, and is {kind_of(value)}; write "
            f"{next(iter(required or known))}: …"
        )
    before = f"{place}: " if place else ""
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise DataError(
                f"{before}there is no key {shorten(str(key))!r}; {hint}The keys are "
                f"{', '.join(known)}"
            )
    if missing := [key for key in required if key not in value]:
        raise DataError(f"{before}the key {missing[0]} is missing; write {missing[0]}: …")
    return value
