"""Checks of a probe's answer: words, forbidden words, regular expression, JSON, length.

docs/probes.md describes every kind and key, with what passes and what fails.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ftsuite.errors import DataError, StageError, shorten
from ftsuite.scoring import probevalues

Check = Callable[[str], bool]
REGEX_SECONDS = 1.0
"""A pattern that takes longer on one answer backtracks: it would go on for hours on the next."""
LONGEST_PATTERN = 10_000
"""Characters."""
LOOP_TIMES = 3.5
"""How often a phrase stands in a row in a loop: four times, where the last one may be cut at its
half; in a chorus it may do so three times."""
LOOP_CHARACTERS = 20
"""Shortest loop: "No, no, no, no!" and "3.333333333333" are answers."""
EMPTY_JSON = ("{}", "[]")
"""Answers that are punctuation alone and yet say something: "nothing found"."""
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""How Unicode's names of characters begin in scripts that put no spaces between words."""


def build(spec: object, where: str, place: str = "checks[0]") -> Check:
    """Return the check that one entry of a probe's `checks` describes.

    Args:
        spec: `kind` and that kind's own keys.
        where: the probe's name, for errors while it runs.
        place: where the entry stands in its file, such as `checks[1]`.

    Raises:
        DataError: the kind or one of its keys is unknown or wrong, or no answer could ever pass,
            or none fail. Names the place and the remedy.
    """
    if not isinstance(spec, dict):
        said = f"must be a mapping with kind and its keys, and is {probevalues.kind_of(spec)}"
        raise DataError(f"{place}: {said}; write {{kind: words, any_of: [ahoy]}}")
    name = spec.get("kind")
    if not isinstance(name, str) or name not in KINDS:
        missing = "the key is missing" if "kind" not in spec else f"is {probevalues.kind_of(name)}"
        raise DataError(f"{place}.kind: {missing}; choose one of {', '.join(KINDS)}")
    kind = KINDS[name]
    _no_twin_key(spec, name, place)
    probevalues.mapping(spec, place, ("kind", *kind.keys), kind.required)
    settings = {
        key: read(spec[key], f"{place}.{key}") for key, read in kind.keys.items() if key in spec
    }
    try:
        check = kind.make(**settings)
    except UselessCheckError as error:
        raise DataError(f"{place}.{error}") from error

    def bounded(answer: str) -> bool:
        try:
            return check(answer)
        except TimeoutError as error:
            raise StageError(
                f"{where}: the pattern {spec['pattern']!r} takes more than {REGEX_SECONDS:g} s on "
                f"an answer of {len(answer)} characters; write it without repeats inside repeats"
            ) from error

    return bounded


def _no_twin_key(spec: dict[str, Any], kind: str, place: str) -> None:
    """The two checks of words are easily mixed up, and no spelling is near."""
    twins = {("words", "none_of"): "any_of", ("none_of", "any_of"): "words"}
    twins |= {("words", "words"): "any_of", ("none_of", "none_of"): "words"}
    for (wrong, key), right in twins.items():
        if kind == wrong and key in spec:
            raise DataError(
                f"{place}: {kind} has no key {key!r}, its list is called {right}; words that must "
                "occur are {kind: words, any_of: […]}, words that must not are "
                "{kind: none_of, words: […]}"
            )


class UselessCheckError(Exception):
    """Settings with which every answer passes, or none; begins with the key's name."""


def no_answer(answer: str) -> str:
    """Why a text passes no probe, whatever the checks are: 'empty', 'degenerate', or ''.

    Empty: white space and invisible characters alone. Degenerate: punctuation alone (but the
    empty JSON values), or a loop: the answer ends in a phrase that stands there at least
    `LOOP_TIMES` times in a row, over `LOOP_CHARACTERS` and over half of the answer.

    Why so: models get into loops of a word, phrase or sentence under greedy decoding and stay in
    them up to the token limit, while hardly any text of people repeats a sentence in a row (Xu et
    al. 2022, arXiv 2206.02369). What people do repeat is short, or a refrain among other lines, or
    is closed behind (a list of zeros and its bracket); the three bounds are ours, set for those.
    """
    plain = " ".join("".join(map(_visible, answer)).split())
    if not plain:
        return "empty"
    if all(map(_is_punctuation, plain)) and answer.strip() not in EMPTY_JSON:
        return "degenerate"
    # A model that does end its loop ends it with a full stop.
    return "degenerate" if _ends_in_a_loop(plain.casefold().rstrip(" .!?…。！？")) else ""


def _visible(character: str) -> str:
    return " " if unicodedata.category(character) in ("Cc", "Cf", "Cs") else character


def _is_punctuation(character: str) -> bool:
    # Unicode counts + and ~ as symbols, like emoji, which are answers.
    marks = string.punctuation + " "
    return character in marks or unicodedata.category(character).startswith("P")


def _ends_in_a_loop(plain: str) -> bool:
    """Whether some phrase repeats itself to the end; its last repeat may be cut short."""
    shortest = max(LOOP_CHARACTERS, len(plain) / 2)
    for period in range(1, int(len(plain) / LOOP_TIMES) + 1):
        place = len(plain) - 1
        while place >= period and plain[place] == plain[place - period]:
            place -= 1
        # Characters that repeat, with the phrase before them that they repeat.
        looped = len(plain) - 1 - place + period
        if looped >= max(shortest, LOOP_TIMES * period):
            return True
    return False


def words(any_of: list[str], min_count: int = 1) -> Check:
    """At least `min_count` distinct words or phrases of the list occur (see `_pattern`)."""
    distinct = {word.casefold() for word in any_of}
    if not distinct:
        raise UselessCheckError("any_of: the list is empty; name at least one word")
    if not 1 <= min_count <= len(distinct):
        raise UselessCheckError(
            f"min_count: must be 1 to {len(distinct)}, the number of words, and is {min_count}; "
            "change it or add words"
        )
    patterns = [_pattern(word) for word in distinct]
    return lambda answer: sum(bool(p.search(_straight(answer))) for p in patterns) >= min_count


def none_of(words: list[str]) -> Check:
    """No word or phrase of the list occurs (see `_pattern`)."""
    if not words:
        raise UselessCheckError("words: the list is empty; name at least one word")
    patterns = [_pattern(word) for word in words]
    return lambda answer: not any(pattern.search(_straight(answer)) for pattern in patterns)


def _pattern(phrase: str) -> re.Pattern[str]:
    """Finds a phrase as whole words: case, line breaks and curly apostrophes make no difference.

    Where a script puts no spaces between words, it is found inside of longer text too.
    """
    parts = _straight(phrase).split()
    found = r"\s+".join(map(re.escape, parts))
    start = "" if _is_unspaced(parts[0][0]) else r"(?<!\w)"
    end = "" if _is_unspaced(parts[-1][-1]) else r"(?!\w)"
    return re.compile(start + found + end, re.IGNORECASE)


def _straight(answer: str) -> str:
    return answer.replace("’", "'")


def _is_unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(UNSPACED)


def regex(pattern: str) -> Check:
    """The pattern is found in the answer; TimeoutError after `REGEX_SECONDS`."""
    # Python's own re cannot be stopped, and some patterns backtrack for ever.
    import regex as bounded

    if len(pattern) > LONGEST_PATTERN:
        raise UselessCheckError(f"pattern: must have 1 to {LONGEST_PATTERN:,} characters")
    # What re takes: the regex package knows more, which re's documentation would not explain.
    # FutureWarning: brackets that the two read differently.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            re.compile(pattern)
            compiled = bounded.compile(pattern)
    except (re.error, bounded.error, OverflowError, RecursionError, FutureWarning) as error:
        raise UselessCheckError(
            f"pattern: {shorten(pattern)!r} is no regular expression ({error}); mend it, in single "
            "quotes, and a backslash before a character that is meant itself"
        ) from error

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
    """The number of words, which white space separates, lies between the bounds."""
    if min_words < 0:
        raise UselessCheckError(f"min_words: must be at least 0, and is {min_words}; raise it")
    least = max(min_words, 1)
    if max_words is not None and max_words < least:
        raise UselessCheckError(
            f"max_words: must be at least {least}, or no answer passes, and is {max_words}; raise "
            "it or lower min_words"
        )
    if min_words == 0 and max_words is None:
        raise UselessCheckError("min_words: with 0 every answer passes; raise it or set max_words")

    def check(answer: str) -> bool:
        count = len(answer.split())
        return count >= min_words and (max_words is None or count <= max_words)

    return check


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of check: what makes it, and how its keys are read."""

    make: Callable[..., Check]
    keys: dict[str, Callable[[object, str], object]]
    required: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "words": Kind(
        make=words,
        keys={"any_of": probevalues.texts, "min_count": probevalues.whole},
        required=("any_of",),
    ),
    "none_of": Kind(make=none_of, keys={"words": probevalues.texts}, required=("words",)),
    "regex": Kind(make=regex, keys={"pattern": probevalues.text}, required=("pattern",)),
    "json": Kind(make=json_object, keys={"required_keys": probevalues.texts}),
    "length": Kind(
        make=length, keys={"min_words": probevalues.whole, "max_words": probevalues.whole}
    ),
}
