"""Probe files, prompts, answers and contrasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tiny import tiny_llama, tiny_tokenizer

from ftsuite import checks, probe, probefiles, templates
from ftsuite.choices import Device
from ftsuite.config import (
    BackendConfig,
    DataConfig,
    ModelConfig,
    ProbesConfig,
    RunConfig,
    TemplateConfig,
)
from ftsuite.devices import Compute
from ftsuite.errors import ConfigError, DataError
from ftsuite.resources import conf_dir, evals_dir

if TYPE_CHECKING:
    from pathlib import Path

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


def ask(model: Path, file: str, **probes: Any) -> ProbeReport:
    config = RunConfig(
        study="x",
        model=ModelConfig(id=str(model)),
        data=DataConfig(),
        backend=BackendConfig(device=Device.cpu),
        probes=ProbesConfig(files=[file], max_new_tokens=5, **probes),
    )
    return probe.probe(config, Compute(device="cpu", dtype="float32"), model, "cell", "probe base")


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
    before = probefiles.identity(ProbesConfig(files=[file]))
    assert probefiles.identity(ProbesConfig(files=[written(tmp_path)])) == before
    assert probefiles.identity(ProbesConfig(files=[written(tmp_path, system="Other")])) != before


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
