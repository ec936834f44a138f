"""Probe files that would measure nothing, or never end, are refused before anything is spent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from ftsuite import checks, probefiles
from ftsuite.config import ProbesConfig
from ftsuite.errors import ConfigError, StageError

if TYPE_CHECKING:
    from pathlib import Path

PROBE: dict[str, Any] = {
    "name": "tiny",
    "system": "You are a pirate.",
    "prompts": ["Who are you?", "Hello there!"],
    "checks": [{"kind": "length", "max_words": 100}],
    "contrasts": [{"prompt": "Hello there!", "wanted": "Ahoy", "plain": "Hello"}],
}
BOMB = "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 8)}]\n"
    for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


def read(path: Path, content: str | bytes | dict[str, Any]) -> list[probefiles.Probe]:
    if isinstance(content, dict):
        content = yaml.safe_dump(PROBE | content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return probefiles.read_probes(ProbesConfig(files=[str(path)]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"system": " \n"}, "system: it is empty"),
        ({"prompts": ["a", " "]}, "prompts: one is empty"),
        ({"prompts": ["a", "a"]}, "prompts: 'a' is there 2 times"),
        ({"name": ""}, "name: '' must be 1 to 100 letters"),
        ({"name": "a/b"}, "name: 'a/b' must be"),
        ({"name": "x" * 101}, "name: 'xxx"),
        ({"contrasts": [{"prompt": "a", "wanted": "b", "plain": "b"}]}, "wanted and plain are the"),
        (
            {"contrasts": [{"prompt": "a", "wanted": "", "plain": "b"}]},
            "contrasts: wanted: one is e",
        ),
        ({"checks": None}, "checks: Input should be a valid list"),
        ("- a\n", "no mapping with name, system and prompts"),
        ("3\n", "no mapping with name, system and prompts"),
        ("name: a\nname: b\n", "line 1: the key 'name' twice"),
        (b"name: caf\xe9", "not UTF-8 text (byte 9)"),
        ("name: a".encode("utf-16"), "not UTF-8 text"),
        (b"name: a\x00", "unacceptable character"),
        ("a: " + "[" * 1000, "nested too deeply"),
        ("name: " + "1" * 5000, "Exceeds the limit (4300 digits)"),
        ("name: !!python/name:os.system x", "could not determine a constructor"),
        ("a: &a [x,x,x,x,x,x,x,x]\n" + BOMB, "aliases of aliases without end"),
        ("a: &a [*a]\n", "aliases of aliases without end"),
        ("[a]: 1\n", "unhashable key"),
    ],
)
def test_a_probe_that_measures_nothing_is_refused(
    content: str | bytes | dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "tiny.yaml", content)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_probes_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        read(tmp_path / f"{name}.yaml", PROBE)
    files = [str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]
    with pytest.raises(ConfigError, match="its probe has the name of another file's, tiny"):
        probefiles.read_probes(ProbesConfig(files=files))


def test_a_path_that_is_too_long_is_no_traceback() -> None:
    with pytest.raises(ConfigError, match=r"probes\.files"):
        probefiles.read_probes(ProbesConfig(files=["x" * 5000]))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"kind": "words", "any_of": []}, "name at least one word"),
        ({"kind": "words", "any_of": ["a", " "]}, "no empty one"),
        ({"kind": "words", "any_of": ["a"], "min_count": 2}, "min_count: must be 1 to 1"),
        ({"kind": "words", "any_of": ["a", "A"], "min_count": 2}, "min_count: must be 1 to 1"),
        ({"kind": "words", "any_of": ["a"], "min_count": 0}, "min_count: must be 1 to 1"),
        ({"kind": "length", "min_words": 5, "max_words": 3}, "max_words at least"),
        ({"kind": "length", "min_words": -1}, "min_words must be at least 0"),
        ({"kind": "length", "max_words": 0}, "max_words at least 1"),
        ({"kind": "length", "min_words": 0}, "every answer passes"),
        ({"kind": "regex", "pattern": ""}, "pattern: must have 1 to 10,000 characters"),
        ({"kind": "regex", "pattern": "a" * 20_000}, "pattern: must have 1 to 10,000 characters"),
        ({"kind": "regex", "pattern": "a{99999999999}"}, "repetition number is too large"),
        ({"kind": "regex", "pattern": "(" * 500 + ")" * 500}, "recursion"),
        # A set of letters to re, and a class to the regex package.
        ({"kind": "regex", "pattern": "[[:alpha:]]"}, "Possible nested set"),
    ],
)
def test_a_check_that_no_answer_passes_or_none_fails_is_refused(
    spec: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        checks.build(spec, "probe tiny")
    assert said in str(caught.value)
    assert str(caught.value).startswith("probe tiny.checks = ")


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "(ab|abab)+$"])
def test_a_pattern_that_backtracks_for_ever_is_stopped(pattern: str, tmp_path: Path) -> None:
    """Found when the file is read; and by its timeout, should an answer find another way."""
    started = time.monotonic()
    check = checks.build({"kind": "regex", "pattern": "(a|aa)+$"}, "probe tiny")
    assert check("aaa")
    with pytest.raises(StageError, match=r"probe tiny: the pattern '\(a\|aa\)\+\$' takes more"):
        check("a" * 200 + "!")
    with pytest.raises(StageError, match="repeats inside repeats"):
        read(tmp_path / "tiny.yaml", {"checks": [{"kind": "regex", "pattern": pattern}]})
    assert time.monotonic() - started < 60
