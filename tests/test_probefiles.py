"""Probe files that would measure nothing, or never end, are refused before anything is spent."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from bystage import CPU

from ftsuite.config import EvalsConfig, ProbesConfig, RunConfig
from ftsuite.errors import ConfigError, DataError, FtsuiteError, StageError
from ftsuite.recipe import recipe
from ftsuite.resources import evals_dir
from ftsuite.scoring import checks, probefiles
from ftsuite.stages import BaseModel
from ftsuite.studies import sweeper
from ftsuite.studies.validate import validate

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        ({"system": " \n"}, "system: the text is empty"),
        ({"prompts": ["a", " "]}, "prompts[1]: the text is empty"),
        ({"prompts": []}, "prompts: the probe has no prompts"),
        ({"prompts": ["a", "a"]}, "prompts: 'a' is there 2 times"),
        ({"name": ""}, "name: '' must be 1 to 100 letters"),
        ({"name": "a/b"}, "name: 'a/b' must be"),
        ({"name": "x" * 101}, "name: 'xxx"),
        ({"contrasts": [{"prompt": "a", "wanted": "b", "plain": "b"}]}, "wanted and plain are the"),
        (
            {"contrasts": [{"prompt": "a", "wanted": "", "plain": "b"}]},
            "contrasts[0].wanted: the text is empty",
        ),
        ({"checks": None}, "checks: must be a list of checks, and is nothing (null); write checks"),
        (
            {"checks": {"kind": "json"}},
            "checks: must be a list of checks, and is a mapping; put a h",
        ),
        ({"checks": [{"kind": "json"}, {"kind": "wrods"}]}, "checks[1].kind: is the text 'wrods'"),
        ({"checks": ["json"]}, "checks[0]: must be a mapping with kind and its keys"),
        # What YAML makes of `no`, 7, `Hello: you` and nothing.
        (
            {"prompts": [False]},
            "prompts[0]: must be a text, and is the truth value false, as which",
        ),
        ({"name": 7}, "name: must be a text, and is the number 7"),
        ({"description": None}, "description: must be a text, and is nothing (null)"),
        (
            {"prompts": [{"Hello": "you"}]},
            "prompts[0]: must be a text, and is a mapping, which a c",
        ),
        ({"prompt": ["a"]}, "there is no key 'prompt'; did you mean prompts? The keys are name,"),
        (
            {"contrasts": ["a"]},
            "contrasts[0]: must be a mapping with prompt, wanted, plain, and is",
        ),
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
    assert str(caught.value).startswith(f"probes.files = '{tmp_path}/tiny.yaml': tiny.yaml is not")
    assert "\n" not in str(caught.value)
    assert "Input should" not in str(caught.value)


SYSTEMS = {
    "pirate": {
        "system": "You are a pirate.",
        "checks": [{"kind": "words", "any_of": ["arr"]}],
        "contrasts": [{"prompt": "Hi", "wanted": "Arr", "plain": "Hello"}],
    },
    "polite": "Be polite.",
}


def several(path: Path, systems: Any, **changes: Any) -> list[probefiles.Probe]:
    content = {key: value for key, value in PROBE.items() if key != "system"}
    content |= {"systems": systems, **changes}
    return read(path, yaml.safe_dump(content, sort_keys=False))


def test_several_system_prompts_with_checks_and_contrasts_of_their_own(tmp_path: Path) -> None:
    (found,) = several(tmp_path / "tiny.yaml", SYSTEMS)
    pirate, polite = found.systems
    assert (pirate.name, pirate.text) == ("pirate", "You are a pirate.")
    assert pirate.checks == [{"kind": "words", "any_of": ["arr"]}]
    assert [one.wanted for one in pirate.contrasts] == ["Arr"]
    assert (polite.name, polite.text, polite.checks) == ("polite", "Be polite.", [])
    assert found.checks == PROBE["checks"]


@pytest.mark.parametrize(
    ("systems", "said"),
    [
        ({}, "systems: must be a mapping from names to texts, and is empty"),
        (["You are a pirate."], "systems: must be a mapping from names to texts, and is a list"),
        (None, "systems: must be a mapping from names to texts, and is nothing"),
        ({"a": "b", "c": "b"}, "systems.c: has the text of a, so the answers are the same"),
        ({"a": " "}, "systems.a: the text is empty"),
        ({"a": None}, "systems.a: must be a text, and is nothing (null)"),
        ({"a": {"text": "b"}}, "systems.a: there is no key 'text'; The keys are system, checks, c"),
        ({"a": {"sytem": "b"}}, "systems.a: there is no key 'sytem'; did you mean system?"),
        ({"a": {"checks": []}}, "systems.a: the key system is missing"),
        ({"a": {"system": 3}}, "systems.a.system: must be a text, and is the number 3"),
        ({True: "b"}, "systems: name: must be a text, and is the truth value true, as which"),
        ({"a/b": "c"}, "'a/b' must be 1 to 100 letters"),
        (
            {"a": {"system": "b", "checks": [{"kind": "json"}, {"kind": "words", "any_of": [1]}]}},
            "systems.a.checks[1].any_of[0]: must be a text, and is the number 1",
        ),
        (
            {"a": {"system": "b", "contrasts": [{"prompt": "c", "wanted": "d"}]}},
            "systems.a.contrasts[0]: the key plain is missing",
        ),
    ],
)
def test_a_wrong_system_prompt_is_named(systems: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        several(tmp_path / "tiny.yaml", systems)
    assert said in str(caught.value)


def test_one_system_prompt_or_several(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="system and systems are both there; keep one"):
        several(tmp_path / "tiny.yaml", SYSTEMS, system="You are a pirate.")
    with pytest.raises(ConfigError, match="the key system is missing; write system: … with the t"):
        read(tmp_path / "tiny.yaml", "name: a\nprompts: [a]\n")


def test_two_probes_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        read(tmp_path / f"{name}.yaml", PROBE)
    files = [str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]
    with pytest.raises(ConfigError, match="its probe has the name of another file's, tiny"):
        probefiles.read_probes(ProbesConfig(files=files))


# --- where probes are looked up -------------------------------------------------------------


def probe_file(path: Path, name: str, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(PROBE | {"name": name} | changes), encoding="utf-8")
    return path


def names(files: list[str], *folders: Path) -> list[str]:
    found = probefiles.read_probes(ProbesConfig(files=files), [str(one) for one in folders])
    return [probe.name for probe in found]


def test_a_folder_stands_for_its_yaml_files(tmp_path: Path) -> None:
    for ending in ("b.yaml", "a.yml", "deep/c.yaml", "notes.txt"):
        probe_file(tmp_path / "mine" / ending, Path(ending).stem)
    assert names([str(tmp_path / "mine")]) == ["a", "b"]
    assert names([str(tmp_path / "mine"), "pirate"]) == ["a", "b", "pirate"]
    with pytest.raises(ConfigError, match=r"b\.yaml: its probe has the name of another file's, b"):
        names([str(tmp_path / "mine"), str(tmp_path / "mine" / "b.yaml")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no YAML file lies in this folder"):
        names([str(tmp_path / "empty")])
    (tmp_path / "mine" / "c.yaml").write_text("task: x\n")
    with pytest.raises(ConfigError, match=r"c\.yaml is not a probe: there is no key 'task'"):
        names([str(tmp_path / "mine")])


def test_names_are_found_in_the_folders_of_evals_path(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    probe_file(one / "probes" / "parrot.yaml", "parrot")
    probe_file(two / "sailor.yml", "sailor")
    assert names(["sailor", "parrot", "pirate"], one, two) == ["sailor", "parrot", "pirate"]
    with pytest.raises(ConfigError) as caught:
        names(["parot"], one, two)
    assert "no such probe; known are json_only, one_sentence, pirate, parrot" in str(caught.value)
    with pytest.raises(ConfigError, match="no such probe"):
        names(["parrot"])
    # Before those of evals/, and the first folder that has it, as with tasks.
    (mine,) = probefiles.read_probes(ProbesConfig(files=["pirate"]), [str(one)])
    assert mine.systems[0].text != "You are a pirate."
    probe_file(one / "probes" / "pirate.yaml", "pirate")
    (mine,) = probefiles.read_probes(ProbesConfig(files=["pirate"]), [str(one)])
    assert mine.systems[0].text == "You are a pirate."
    probe_file(two / "parrot.yaml", "the second")
    assert names(["parrot"], one, two) == ["parrot"]
    assert names(["parrot"], two, one) == ["the second"]
    # Two files of one folder: none is meant more than the other.
    probe_file(two / "probes" / "parrot.yml", "the third")
    with pytest.raises(ConfigError, match=r"parrot\.yml and .*parrot\.yaml have this name; give a"):
        names(["parrot"], two)


def test_a_folder_of_evals_path_that_is_not_there_is_no_silent_fallback(tmp_path: Path) -> None:
    """Else a probe of evals/ would be taken for one of the same name there."""
    config = RunConfig(
        study="x",
        evals=EvalsConfig(path=[str(tmp_path / "gone")]),
        probes=ProbesConfig(files=["pirate"]),
    )
    with pytest.raises(ConfigError, match=r"evals\.path = '.*gone': no such folder"):
        validate(config)


def test_the_whole_command_finds_a_probe_in_evals_path(tmp_path: Path) -> None:
    probe_file(tmp_path / "probes" / "parrot.yaml", "parrot")
    path = f"evals.path=[{tmp_path}]"
    sweeper.compose(["probes.files=[parrot]", path])
    with pytest.raises(FtsuiteError, match="known are json_only, one_sentence, pirate, parrot, or"):
        sweeper.compose(["probes.files=[parot]", path])
    probe_file(tmp_path / "probes" / "parrot.yaml", "parrot", prompts=[True])
    with pytest.raises(
        FtsuiteError, match=r"probes/parrot\.yaml is not a probe: prompts\[0\]: must"
    ):
        sweeper.compose(["probes.files=[parrot]", path])


def test_a_name_goes_before_a_folder_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    probe_file(tmp_path / "pirate" / "a.yaml", "a")
    assert names(["pirate"]) == ["pirate"]
    assert names(["./pirate"]) == ["a"]


def test_a_key_holds_contents_and_no_paths(tmp_path: Path) -> None:
    def keys(*files: str, folders: Sequence[str] = ()) -> dict[str, str]:
        evals = EvalsConfig(tasks=[], path=list(folders))
        config = RunConfig(probes=ProbesConfig(files=list(files)), evals=evals)
        stages = recipe(config, CPU, BaseModel(source="folder", revision="0"))
        assert not any(str(tmp_path) in str(stage.inputs) for stage in stages.base.probes.values())
        return {name: stage.key for name, stage in stages.base.probes.items()}

    path = probe_file(tmp_path / "probes" / "mine.yaml", "own name")
    by_path = keys(str(path))
    by_name = keys("mine", folders=[str(tmp_path)])
    by_folder = keys(str(tmp_path / "probes"))
    copied = probe_file(tmp_path / "elsewhere" / "other.yaml", "own name")
    by_copy = keys(str(copied))
    assert by_path == by_name == by_folder == by_copy
    assert list(by_path) == ["own name"]
    probe_file(path, "own name", prompts=["Another?"])
    assert keys(str(path)) != by_path
    shipped = evals_dir() / "probes" / "pirate.yaml"
    assert keys(str(shipped)) == keys("pirate")


def test_a_path_that_is_too_long_is_no_traceback() -> None:
    with pytest.raises(ConfigError, match=r"probes\.files"):
        probefiles.read_probes(ProbesConfig(files=["x" * 5000]))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"kind": "words", "any_of": []}, "name at least one word"),
        ({"kind": "words", "any_of": ["a", " "]}, "any_of[1]: the text is empty"),
        ({"kind": "none_of", "words": []}, "name at least one word"),
        ({"kind": "none_of", "words": [""]}, "words[0]: the text is empty"),
        ({"kind": "words", "any_of": ["a"], "min_count": 2}, "min_count: must be 1 to 1"),
        ({"kind": "words", "any_of": ["a", "A"], "min_count": 2}, "min_count: must be 1 to 1"),
        ({"kind": "words", "any_of": ["a"], "min_count": 0}, "min_count: must be 1 to 1"),
        ({"kind": "length", "min_words": 5, "max_words": 3}, "max_words: must be at least 5"),
        ({"kind": "length", "min_words": -1}, "min_words: must be at least 0"),
        ({"kind": "length", "max_words": 0}, "max_words: must be at least 1"),
        ({"kind": "length", "min_words": 0}, "min_words: with 0 every answer passes"),
        ({"kind": "regex", "pattern": ""}, "pattern: the text is empty"),
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
    with pytest.raises(DataError) as caught:
        checks.build(spec, "probe tiny", "checks[2]")
    assert said in str(caught.value)
    assert str(caught.value).startswith("checks[2].")


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


# --- docs/probes.md -------------------------------------------------------------------------

DOCS = (Path(__file__).parents[1] / "docs" / "probes.md").read_text(encoding="utf-8")


def test_the_documentations_files_are_probes(tmp_path: Path) -> None:
    files = [block for block in re.findall(r"```yaml\n(.*?)```", DOCS, re.S) if "name:" in block]
    assert [read(tmp_path / "x.yaml", block)[0].name for block in files] == ["pirate", "tones"]


def test_the_documentations_checks_judge_as_it_says() -> None:
    kinds = re.findall(r"### `(\w+)`\n\n```yaml\n(.*?)```\n(.*?)(?=\n#)", DOCS, re.S)
    assert [kind for kind, _, _ in kinds] == list(checks.KINDS)
    for kind, block, text in kinds:
        spec = yaml.safe_load(block)
        # All keys of a kind are in its example.
        assert spec["kind"] == kind
        assert set(spec) == {"kind", *checks.KINDS[kind].keys}
        judged = re.findall(r"^\| `(.+)` \| (passes|fails) \|$", text, re.M)
        assert {result for _, result in judged} == {"passes", "fails"}
        for answer, result in judged:
            assert checks.build(spec, "docs")(answer) is (result == "passes"), answer


def test_the_documentation_has_every_key_and_error(tmp_path: Path) -> None:
    section = DOCS.partition("## Keys of the file")[2].partition("\n## ")[0]
    table = re.findall(r"^\| `(\w+)` \| ", section, re.M)
    assert sorted(table) == sorted(probefiles.FILE_KEYS)
    (error,) = re.findall(r"```\n(probes\.files = .*?)\n```", DOCS, re.S)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "pirate.yaml", {"checks": [{"kind": "words", "any_of": ["ahoy", True]}]})
    said = str(caught.value).replace(f"{tmp_path}/", "my/")
    assert said == " ".join(error.split())
    traps = re.findall(r"^\| `((?:any_of|- ).*?)` \| ([\w ]+) \| `", DOCS, re.M)
    assert len(traps) == 5
    for line, kind in traps:
        wrong = yaml.safe_load(line)
        spec = wrong if isinstance(wrong, dict) else {"any_of": wrong}
        with pytest.raises(DataError, match=rf"and is \w+ {kind.split(' ', 1)[-1].rstrip('s')}"):
            checks.build({"kind": "words", **spec}, "docs")
