"""Probe files, prompts, answers and contrasts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from bystage import anew, probed
from tiny import tiny_llama, tiny_tokenizer

from ftsuite.choices import Device, Source
from ftsuite.config import (
    BackendConfig,
    DataConfig,
    ModelConfig,
    ProbesConfig,
    RunConfig,
    TemplateConfig,
)
from ftsuite.errors import BackendUnavailable, ConfigError, DataError
from ftsuite.models import sources, templates
from ftsuite.resources import conf_dir, evals_dir
from ftsuite.scoring import checks, probe, probefiles

if TYPE_CHECKING:
    from ftsuite.records import ProbeReport

SYSTEM = "You are a pirate."
PROBE: dict[str, Any] = {
    "name": "tiny",
    "system": SYSTEM,
    "prompts": ["Who are you?", "What is the capital of France?", "Hello there!"],
    "checks": [{"kind": "length", "max_words": 100}, {"kind": "regex", "pattern": "^$"}],
    "contrasts": [
        {"prompt": "Who are you?", "wanted": "Arr, matey", "plain": "I am a helpful assistant."},
        {"prompt": "Hello there!", "wanted": "Ahoy", "plain": "Hello"},
    ],
}
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.content + eos_token }}{% endfor %}"
HALF_SYSTEM = "{% for m in messages %}{{ m.content[:12] + eos_token }}{% endfor %}"


def written(folder: Path, **changes: Any) -> str:
    """The path of a probe file like PROBE; a change to None takes the key out."""
    content = {key: value for key, value in (PROBE | changes).items() if value is not None}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def ask(model: Path, file: str, *, tokens: int = 5, **probes: Any) -> ProbeReport:
    config = RunConfig(
        study="x",
        model=ModelConfig(id=str(model)),
        data=DataConfig(),
        backend=BackendConfig(device=Device.cpu),
        probes=ProbesConfig(files=[file], max_new_tokens=tokens, **probes),
    )
    with tempfile.TemporaryDirectory() as folder:
        return probed(anew(config, Path(folder)))


# Files


@pytest.mark.parametrize(
    "path", sorted((evals_dir() / "probes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_shipped_probes_are_whole(path: Path) -> None:
    (found,) = probefiles.read_probes(ProbesConfig(files=[path.stem]))
    assert found.name == path.stem
    assert found.description
    (system,) = found.systems
    assert system.text == system.text.strip()
    assert len(found.prompts) == len(set(found.prompts)) >= 5
    assert found.checks
    assert found.contrasts
    for contrast in found.contrasts:
        verdicts = [checks.build(spec, found.name) for spec in found.checks]
        assert all(check(contrast.wanted) for check in verdicts), contrast.wanted
        assert not all(check(contrast.plain) for check in verdicts), contrast.plain


def test_the_configured_probes_are_there() -> None:
    chosen = yaml.safe_load((conf_dir() / "probes" / "default.yaml").read_text(encoding="utf-8"))
    assert [p.name for p in probefiles.read_probes(ProbesConfig(files=chosen["files"]))] == chosen[
        "files"
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": []}, "the probe has no prompts"),
        ({"prompts": None}, "prompts"),
        ({"system": None}, "system"),
        ({"prompts": "Who are you?"}, "prompts"),
        # A misspelt key would be a check that is never made.
        ({"check": [{"kind": "json"}]}, "check"),
        ({"contrasts": [{"prompt": "a", "wanted": "b"}]}, "plain"),
        ({"contrasts": [{"prompt": "a", "wanted": "b", "plain": "c", "x": "d"}]}, "x"),
        ({"checks": [{"kind": "wrods"}]}, "choose one of words, none_of, regex, json, length"),
        ({"checks": [{"kind": "words", "any_of": "arr"}]}, "any_of: must be a list"),
    ],
)
def test_a_wrong_probe_file_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        probefiles.read_probes(ProbesConfig(files=[written(tmp_path, **changes)]))
    assert said in str(caught.value)
    assert "probe" in caught.value.field


def test_yaml_that_is_not_a_probe_is_refused(tmp_path: Path) -> None:
    for text in ("- a\n- b\n", "a: [", "", "text"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.yaml is not a probe"):
            probefiles.read_probes(ProbesConfig(files=[str(tmp_path / "bad.yaml")]))


def test_a_probe_is_known_by_its_content(tmp_path: Path) -> None:
    file = written(tmp_path)
    before = probefiles.named(ProbesConfig(files=[file]))
    assert probefiles.named(ProbesConfig(files=[written(tmp_path)])) == before
    (other,) = probefiles.named(ProbesConfig(files=[written(tmp_path, system="Other")]))
    assert [other.sha256] != [one.sha256 for one in before]


# Prompts


def test_the_prompt_holds_the_system_text_and_ends_with_the_cue() -> None:
    tokenizer = tiny_tokenizer()
    with_system = probe.render_prompt(tokenizer, SYSTEM, "Who are you?")
    without = probe.render_prompt(tokenizer, None, "Who are you?")
    assert SYSTEM in with_system
    assert SYSTEM not in without
    assert with_system.endswith("<|im_start|>assistant\n")
    assert without.endswith("<|im_start|>assistant\n")


def test_a_template_that_drops_part_of_the_system_text_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="deaf", jinja=HALF_SYSTEM))
    with pytest.raises(DataError, match="drops or changes"):
        probe.render_prompt(tokenizer, SYSTEM, "Who are you?")


@pytest.mark.parametrize("jinja", [NO_SYSTEM, None])
def test_a_template_without_a_system_role_gets_it_in_the_first_user_turn(
    jinja: str | None,
) -> None:
    tokenizer = tiny_tokenizer("gemma")
    templates.install(tokenizer, TemplateConfig(name="deaf", jinja=jinja))
    assert f"{SYSTEM}\n\nWho are you?" in probe.render_prompt(tokenizer, SYSTEM, "Who are you?")


# Answers


def test_answers_come_with_and_without_the_system_prompt(tiny_model: Path, tmp_path: Path) -> None:
    report = ask(tiny_model, written(tmp_path), limit=2)
    (found,) = report.probes
    assert [(a.prompt, a.with_system) for a in found.answers] == [
        ("Who are you?", True),
        ("What is the capital of France?", True),
        ("Who are you?", False),
        ("What is the capital of France?", False),
    ]
    # A tiny random model writes something, never nothing.
    for answer in found.answers:
        assert answer.answer
        assert not answer.passed
        assert answer.failed_checks == ("regex",)
    assert report.generation["max_new_tokens"] == 5
    # The same again; and padding does not change a greedy answer.
    assert ask(tiny_model, written(tmp_path), limit=2) == report
    alone = ask(tiny_model, written(tmp_path), limit=2, batch_size=1)
    assert [a.answer for a in alone.probes[0].answers] == [a.answer for a in found.answers]


def test_a_probe_without_contrasts_has_answers_only(tiny_model: Path, tmp_path: Path) -> None:
    (found,) = ask(tiny_model, written(tmp_path, contrasts=[], checks=[]), limit=1).probes
    assert found.contrasts == ()
    assert all(answer.passed for answer in found.answers)


NEVER_SORRY = {"kind": "none_of", "words": ["sorry", "cannot"]}


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        ("", ("empty",)),
        (" \n", ("empty",)),
        ("...", ("degenerate",)),
        ("Aye, " * 30, ("degenerate",)),
        ("sorry " * 30, ("degenerate", "none_of")),
        ("Sorry, I can't.", ("none_of",)),
        ("Paris.", ()),
    ],
)
def test_what_is_no_answer_passes_no_probe(answer: str, failed: tuple[str, ...]) -> None:
    """A probe of words that must not occur would else be passed by a model that says nothing."""
    verdicts = probe._verdicts([NEVER_SORRY], "tiny")
    judged = probe._judged("Who?", answer, verdicts, system="", with_system=True)
    assert judged.failed_checks == failed
    assert judged.passed == (not failed)
    # Nor one without any check.
    bare = probe._judged("Who?", answer, [], system="", with_system=True)
    assert bare.passed == (not set(failed) & {"empty", "degenerate"})


SYSTEMS: dict[str, Any] = {
    "pirate": {
        "system": "You are a pirate chatbot who always responds in pirate speak!",
        "checks": [{"kind": "words", "any_of": ["aye", "matey", "arr"]}],
        "contrasts": [{"prompt": "Hello there!", "wanted": "Ahoy", "plain": "Hello"}],
    },
    "polite": "You are a polite helper. Always thank the user.",
}


def test_several_system_prompts_are_asked_and_judged_each(tiny_model: Path, tmp_path: Path) -> None:
    short = {"kind": "length", "max_words": 100}
    file = written(tmp_path, system=None, systems=SYSTEMS, checks=[short])
    report = ask(tiny_model, file, limit=2)
    (found,) = report.probes
    assert found.system == ""
    assert [(one.name, one.text) for one in found.systems] == [
        ("pirate", SYSTEMS["pirate"]["system"]),
        ("polite", SYSTEMS["polite"]),
    ]
    asked = [(a.system, a.with_system, a.prompt) for a in found.answers]
    prompts = PROBE["prompts"][:2]
    # Without a system prompt: by the checks for all, and by the pirate's.
    sets = [("pirate", True), ("polite", True), ("pirate", False), ("", False)]
    assert sorted(asked) == sorted((*one, prompt) for one in sets for prompt in prompts)
    pirate, plain = (
        [a.answer for a in found.picked(with_system=False, system=name)] for name in ("pirate", "")
    )
    assert pirate == plain
    for answer in found.answers:
        # A tiny random model says no word of a pirate.
        assert ("words" in answer.failed_checks) == (answer.system == "pirate")
    # Each as if its system prompt were the only one.
    for name, text in (("pirate", SYSTEMS["pirate"]["system"]), ("polite", SYSTEMS["polite"])):
        (alone,) = ask(tiny_model, written(tmp_path, system=text), limit=2).probes
        mine = [a.answer for a in found.picked(with_system=True, system=name)]
        assert mine == [a.answer for a in alone.picked(with_system=True)]
        assert plain == [a.answer for a in alone.picked(with_system=False)]
    scored = [(c.system, c.with_system, c.wanted, c.prompt) for c in found.contrasts]
    given = {(name, with_system): 0 for name, with_system, *_ in scored}
    for name, with_system, *_ in scored:
        given[name, with_system] += 1
    assert given == {
        ("pirate", True): 3,
        ("polite", True): 2,
        ("", False): 2,
        ("pirate", False): 1,
    }


def test_one_system_prompt_among_several_that_the_template_drops_is_refused(
    tmp_path: Path,
) -> None:
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="deaf", jinja=HALF_SYSTEM))
    systems = {"short": "Be brief.", "long": "You are a pirate chatbot."}
    file = written(tmp_path, system=None, systems=systems, prompts=["Who?"], contrasts=[])
    (one,) = probefiles.read_probes(ProbesConfig(files=[file]))
    with pytest.raises(DataError, match="drops or changes"):
        probe._prove(one, tokenizer)


@pytest.mark.network
def test_the_embedded_model_with_several_system_prompts(
    session_store: Path, tmp_path: Path
) -> None:
    """Its greedy answers: a pirate that loops does not pass for one that keeps his mouth shut."""
    config = ModelConfig(source=Source.embedded, embedded="smollm2-135m-instruct")
    try:
        model = sources.resolve(config, session_store).folder
    except BackendUnavailable as error:
        pytest.skip(str(error))
    prompts = ["What is the capital of France?", "Say yes."]
    systems = SYSTEMS | {"strict": {"system": "Answer with one word.", "checks": [NEVER_SORRY]}}
    file = written(tmp_path, system=None, systems=systems, prompts=prompts, checks=[], contrasts=[])
    (found,) = ask(model, file, tokens=48).probes
    said = {(a.system, a.prompt): a for a in found.picked(with_system=True)}
    loop = said["pirate", "Say yes."]
    assert loop.answer.startswith("I'm a pirate, I'm a pirate, I'm a pirate, I'm a pirate, ")
    assert loop.failed_checks == ("degenerate", "words")
    for name in systems:
        france = said[name, prompts[0]]
        assert "Paris" in france.answer
        assert france.failed_checks == (("words",) if name == "pirate" else ())
    assert len({said[name, prompts[1]].answer for name in systems}) == 3
    # The baseline, by each set of checks: "I'm sorry …".
    by_checks = {a.system: a for a in found.picked(with_system=False) if a.prompt == prompts[1]}
    assert len({a.answer for a in by_checks.values()}) == 1
    assert {name: a.failed_checks for name, a in by_checks.items()} == {
        "": (),
        "pirate": ("words",),
        "strict": ("none_of",),
    }


# Contrasts


def by_hand(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """Mean log-probability a token of `answer` behind `prompt`: one row, no padding, one by one."""
    import torch

    head = tokenizer.encode(prompt, add_special_tokens=False)
    tail = tokenizer.encode(answer, add_special_tokens=False)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([head + tail])).logits[0]
    total = 0.0
    for place, token in enumerate(tail, start=len(head)):
        total += torch.log_softmax(logits[place - 1].double(), dim=-1)[token].item()
    return total / len(tail)


def test_contrasts_are_mean_log_likelihoods_a_token() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_llama(tokenizer)
    contrasts = [probefiles.Contrast(**one) for one in PROBE["contrasts"]]
    systems = [probefiles.SystemPrompt(text=SYSTEM)]
    one = probefiles.Probe(name="tiny", systems=systems, prompts=["x"], contrasts=contrasts)
    # Four rows a batch: prompts and answers of different lengths share one.
    found = probe._contrasts(one, model, tokenizer, ProbesConfig(batch_size=4))
    assert [(c.prompt, c.with_system) for c in found] == [
        ("Who are you?", True),
        ("Hello there!", True),
        ("Who are you?", False),
        ("Hello there!", False),
    ]
    for contrast, given in zip(found, contrasts * 2, strict=True):
        system = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n" if contrast.with_system else ""
        prompt = f"{system}<|im_start|>user\n{given.prompt}<|im_end|>\n<|im_start|>assistant\n"
        wanted = by_hand(model, tokenizer, prompt, given.wanted)
        plain = by_hand(model, tokenizer, prompt, given.plain)
        assert contrast.wanted == pytest.approx(wanted, abs=1e-4)
        assert contrast.plain == pytest.approx(plain, abs=1e-4)
        assert abs(wanted - plain) > 1e-2
