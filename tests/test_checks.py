"""The checks of a probe's answer: what passes, what does not, and which settings are refused."""

from __future__ import annotations

from typing import Any

import pytest

from ftsuite import checks
from ftsuite.errors import ConfigError

PIRATE = {"kind": "words", "any_of": ["arr", "yo ho", "ye", "it's"], "min_count": 1}


@pytest.mark.parametrize(
    ("spec", "answer", "passes"),
    [
        (PIRATE, "Arr, matey!", True),
        (PIRATE, "ARR", True),
        (PIRATE, "yo ho, yo ho", True),
        (PIRATE, "See, it's here", True),
        (PIRATE, "The array is sorted, yes", False),
        (PIRATE, "yo-ho", False),
        (PIRATE, "", False),
        (PIRATE | {"min_count": 2}, "arr arr arr", False),
        (PIRATE | {"min_count": 2}, "arr, where be ye", True),
        # A word of the list is text, not a pattern.
        ({"kind": "words", "any_of": ["a.b"]}, "axb", False),
        ({"kind": "words", "any_of": ["a.b"]}, "see a.b!", True),
        ({"kind": "regex", "pattern": r"\d{3}"}, "in 1999", True),
        ({"kind": "regex", "pattern": r"^\d+$"}, "in 1999", False),
        ({"kind": "json"}, '{"answer": 1}', True),
        ({"kind": "json"}, ' {"answer": 1}\n', True),
        ({"kind": "json"}, 'Sure: {"answer": 1}', False),
        ({"kind": "json"}, '```json\n{"answer": 1}\n```', False),
        ({"kind": "json"}, "[1]", False),
        ({"kind": "json"}, "", False),
        ({"kind": "json", "required_keys": ["answer"]}, '{"answer": null, "b": 1}', True),
        ({"kind": "json", "required_keys": ["answer"]}, '{"Answer": 1}', False),
        ({"kind": "length"}, "one", True),
        ({"kind": "length"}, " \n", False),
        ({"kind": "length", "min_words": 2, "max_words": 3}, "one", False),
        ({"kind": "length", "min_words": 2, "max_words": 3}, "one two", True),
        ({"kind": "length", "min_words": 2, "max_words": 3}, "one two three", True),
        ({"kind": "length", "min_words": 2, "max_words": 3}, "one two three four", False),
    ],
)
def test_an_answer_passes_or_not(spec: dict[str, Any], answer: str, passes: bool) -> None:
    assert checks.build(spec, "probe x")(answer) is passes


@pytest.mark.parametrize("kind", ["wrods", "", None, 3, ["words"]])
def test_an_unknown_kind_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        checks.build({"kind": kind}, "probe x")
    assert caught.value.field == "probe x.checks.kind"
    assert caught.value.remedy == "choose one of words, regex, json, length"


@pytest.mark.parametrize(
    ("spec", "setting"),
    [
        ({}, "kind"),
        ({"kind": "words"}, "any_of"),
        # One word where a list belongs would check for its letters.
        ({"kind": "words", "any_of": "arr"}, "any_of"),
        ({"kind": "words", "any_of": ["arr"], "min_count": "1"}, "min_count"),
        ({"kind": "words", "any_of": ["arr"], "min": 1}, "min"),
        ({"kind": "words", "any_of": [1]}, "any_of"),
        ({"kind": "regex", "pattern": "("}, "unterminated"),
        ({"kind": "json", "required_keys": "answer"}, "required_keys"),
        ({"kind": "length", "max_words": 2.5}, "max_words"),
        ({"kind": "length", "max": 2}, "max"),
    ],
)
def test_a_wrong_setting_is_named(spec: dict[str, Any], setting: str) -> None:
    with pytest.raises(ConfigError, match=setting) as caught:
        checks.build(spec, "probe x")
    assert caught.value.field.startswith("probe x.checks")
    assert "\n" not in str(caught.value)
