"""Checks of a probe's answer: word list, regular expression, JSON, length."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from typing import Any

from ftsuite.errors import ConfigError, StageError

Check = Callable[[str], bool]
REGEX_SECONDS = 1.0
"""A pattern that takes longer on one answer backtracks: it would go on for hours on the next."""
LONGEST_PATTERN = 10_000
"""Characters."""


def build(spec: dict[str, Any], where: str) -> Check:
    """Return the check that one entry of a probe's `checks` describes.

    Args:
        spec: `kind` and that kind's own settings.
        where: the probe's name, for errors.

    Raises:
        ConfigError: the kind or one of its settings is unknown or wrong, or no answer could ever
            pass, or none fail.
    """
    from pydantic import ValidationError, validate_call

    kind = str(spec.get("kind"))
    settings = {name: value for name, value in spec.items() if name != "kind"}
    if kind not in KINDS:
        raise ConfigError(f"{where}.checks.kind", kind, f"choose one of {', '.join(KINDS)}")
    try:
        check: Check = validate_call(config={"strict": True})(KINDS[kind])(**settings)
    except ValidationError as error:
        wrong = "; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"{where}.checks", spec, f"not a {kind} check: {wrong}") from error
    except UselessCheckError as error:
        raise ConfigError(f"{where}.checks", spec, f"not a {kind} check: {error}") from error

    def bounded(answer: str) -> bool:
        try:
            return check(answer)
        except TimeoutError as error:
            raise StageError(
                f"{where}: the pattern {spec['pattern']!r} takes more than {REGEX_SECONDS:g} s on "
                f"an answer of {len(answer)} characters; write it without repeats inside repeats"
            ) from error

    return bounded


class UselessCheckError(Exception):
    """Settings with which every answer passes, or none."""


def words(any_of: list[str], min_count: int = 1) -> Check:
    """At least `min_count` distinct words or phrases of the list, case and boundaries respected."""
    distinct = {word.casefold() for word in any_of}
    if not distinct or not all(word.strip() for word in distinct):
        raise UselessCheckError("any_of: name at least one word, and no empty one")
    if not 1 <= min_count <= len(distinct):
        raise UselessCheckError(f"min_count: must be 1 to {len(distinct)}, the number of words")
    patterns = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in distinct]
    return lambda answer: sum(bool(p.search(answer)) for p in patterns) >= min_count


def regex(pattern: str) -> Check:
    """The pattern is found in the answer; TimeoutError after `REGEX_SECONDS`."""
    # Python's own re cannot be stopped, and some patterns backtrack for ever.
    import regex as bounded

    if not pattern or len(pattern) > LONGEST_PATTERN:
        raise UselessCheckError(f"pattern: must have 1 to {LONGEST_PATTERN:,} characters")
    # What re takes: the regex package knows more, which re's documentation would not explain.
    # FutureWarning: brackets that the two read differently.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            re.compile(pattern)
            compiled = bounded.compile(pattern)
    except (re.error, bounded.error, OverflowError, RecursionError, FutureWarning) as error:
        raise UselessCheckError(f"pattern: {error}") from error

    return lambda answer: compiled.search(answer, timeout=REGEX_SECONDS) is not None


def json_object(required_keys: list[str] | None = None) -> Check:
    """The answer is one JSON object, nothing around it, that has the keys."""

    def check(answer: str) -> bool:
        try:
            parsed = json.loads(answer)
        except (ValueError, RecursionError):
            return False
        return isinstance(parsed, dict) and set(required_keys or []) <= set(parsed)

    return check


def length(min_words: int = 1, max_words: int | None = None) -> Check:
    """The number of words lies between the bounds."""
    if min_words < 0 or (max_words is not None and max_words < max(min_words, 1)):
        raise UselessCheckError("min_words must be at least 0, max_words at least 1 and min_words")
    if min_words == 0 and max_words is None:
        raise UselessCheckError("every answer passes; set min_words or max_words")

    def check(answer: str) -> bool:
        count = len(answer.split())
        return count >= min_words and (max_words is None or count <= max_words)

    return check


KINDS: dict[str, Callable[..., Check]] = {
    "words": words,
    "regex": regex,
    "json": json_object,
    "length": length,
}
