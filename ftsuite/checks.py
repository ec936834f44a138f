"""Checks of a probe's answer: word list, regular expression, JSON, length."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from ftsuite.errors import ConfigError

Check = Callable[[str], bool]


def build(spec: dict[str, Any], where: str) -> Check:
    """Return the check that one entry of a probe's `checks` describes.

    Args:
        spec: `kind` and that kind's own settings.
        where: the probe's name, for errors.

    Raises:
        ConfigError: the kind or one of its settings is unknown or wrong.
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
    except re.error as error:
        raise ConfigError(f"{where}.checks", spec, f"not a {kind} check: {error}") from error
    return check


def words(any_of: list[str], min_count: int = 1) -> Check:
    """At least `min_count` distinct words or phrases of the list, case and boundaries respected."""
    patterns = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in any_of]
    return lambda answer: sum(bool(p.search(answer)) for p in patterns) >= min_count


def regex(pattern: str) -> Check:
    """The pattern is found in the answer."""
    compiled = re.compile(pattern)
    return lambda answer: compiled.search(answer) is not None


def json_object(required_keys: list[str] | None = None) -> Check:
    """The answer is one JSON object, nothing around it, that has the keys."""

    def check(answer: str) -> bool:
        try:
            parsed = json.loads(answer)
        except ValueError:
            return False
        return isinstance(parsed, dict) and set(required_keys or []) <= set(parsed)

    return check


def length(min_words: int = 1, max_words: int | None = None) -> Check:
    """The number of words lies between the bounds."""

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
