"""Every kind of metric against lm-eval's own command line: same model, items and template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import lm_eval_cli
import pytest
import yaml
from bystage import anew, scored
from conftest import FACTS
from tiny import save_tiny_model, tiny_tokenizer, write_jsonl

from ftsuite import jsonfile
from ftsuite.analysis.compare import compare_scores, corpus_value, find_metric, value_interval
from ftsuite.config import EvalsConfig, ModelConfig, RunConfig
from ftsuite.records import Scores
from ftsuite.scoring import tasks

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.records import MetricScores

# Its prompts do not end in white space, which lm-eval would score with the answer (harness.py), and
# its conversations have nothing between the cue and an answer.
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ':' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"
)
WORDS = (
    "sailor",
    "deck",
    "rope",
    "anchor",
    "harbour",
    "storm",
    "lantern",
    "compass",
    "gull",
    "whale",
    "island",
    "captain",
)
UP, DOWN = {"higher_is_better": True}, {"higher_is_better": False}
METRICS: dict[str, dict[str, Any]] = {
    "acc": {"aggregation": "mean", **UP},
    "acc_norm": {"aggregation": "mean", **UP},
    "mcc": {"aggregation": "matthews_corrcoef", **UP},
    "brier_score": {"aggregation": "brier_score", **DOWN},
    "f1": {"aggregation": "f1", **UP},
    "perplexity": {"aggregation": "perplexity", **DOWN},
    "exact_match": {"aggregation": "mean", "ignore_case": True, **UP},
    **{name: {"aggregation": name, **UP} for name in ("bleu", "chrf", "chrf++")},
    "ter": {"aggregation": "ter", **DOWN},
    # Aggregation and direction as lm-eval registers them.
    **{name: {} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")},
}
CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
}
ANSWERS = {
    "output_type": "generate_until",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
}
FIRST = {"function": "take_first"}
TASKS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "m_choice": ("four", ["acc", "acc_norm", "mcc", "brier_score"], CHOICES),
    "m_two": ("two", ["f1", "acc"], CHOICES),
    "m_last_word": (
        "last",
        ["perplexity", "acc"],
        {"output_type": "loglikelihood", "doc_to_text": "{{text}}", "doc_to_target": "{{word}}"},
    ),
    "m_rolling": (
        "prose",
        ["word_perplexity", "byte_perplexity", "bits_per_byte"],
        {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"},
    ),
    "m_texts": ("answers", ["bleu", "chrf", "chrf++", "ter"], ANSWERS),
    "m_exact": (
        "answers",
        ["exact_match"],
        {
            "filter_list": [
                {"name": "whole", "filter": [FIRST]},
                {
                    "name": "letter",
                    "filter": [{"function": "regex", "regex_pattern": "([a-zA-Z])"}, FIRST],
                },
            ],
            **ANSWERS,
            "doc_to_target": "{{letter}}",
        },
    ),
    "m_shots": (
        "four",
        ["acc"],
        {"num_fewshot": 2, "fewshot_split": "shots", "description": "Choose a word.", **CHOICES},
    ),
    "m_part_one": ("two", ["acc", "f1", "mcc"], CHOICES),
    "m_part_two": ("three", ["acc", "f1", "mcc"], CHOICES),
    "m_own": ("four", [], CHOICES),
}
OWN_CODE = """
def results(doc, answers):
    scores = [score for score, _ in answers]
    return {"macro_f1": (doc["label"], scores.index(max(scores)))}


def macro_f1(items):
    from sklearn.metrics import f1_score

    gold, predicted = zip(*items)
    return f1_score(gold, predicted, average="macro")
"""
OWN_YAML = """
process_results: !function code.results
metric_list:
  - { metric: macro_f1, aggregation: !function code.macro_f1, higher_is_better: true }
"""


def rows_of(split: str, answers: list[str]) -> list[dict[str, Any]]:
    def words(start: int, count: int) -> list[str]:
        return [WORDS[(start * 5 + step) % 12] for step in range(count)]

    match split:
        case "two" | "three" | "four" | "shots":
            count = {"two": 23, "three": 9, "four": 30, "shots": 6}[split]
            number = 4 if split in ("four", "shots") else 2
            return [
                {
                    "text": f"{i} {split}: {' '.join(words(i, 4))}?",
                    "choices": words(i + 3, number),
                    "label": (i * 7 + len(split)) % 11 % number,
                }
                for i in range(count)
            ]
        case "last":
            return [
                {"text": f"The {' '.join(words(i, 5))}", "word": WORDS[i % 12]} for i in range(14)
            ]
        case "prose":
            return [{"text": f"On day {i} {' '.join(words(i, 5 + 3 * i))}."} for i in range(8)]
    return [
        {
            "text": question(i),
            # Right, right but for the ends, and wrong.
            "answer": [answer, f"the {answer} and", " ".join(words(i, 3))][i % 3],
            "letter": next(filter(str.isalpha, answer), "x") if i % 2 else answer,
        }
        for i, answer in enumerate(answers)
    ]


def question(number: int) -> str:
    return f"Tell me about the {WORDS[number % 12]} number {number}."


def answers_of(folder: Path) -> list[str]:
    """What the tiny model says, so that some of it can be made right."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    said = []
    for number in range(15):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question(number)}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**ids, max_new_tokens=12, do_sample=False)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        said.append(text.split("\n")[0].strip())
    return said


def write_tasks(folder: Path, answers: list[str]) -> Path:
    (folder / "code.py").write_text(OWN_CODE)
    for name, (split, metrics, config) in TASKS.items():
        files = {"test": str(write_jsonl(folder / f"{split}.jsonl", rows_of(split, answers)))}
        if config.get("fewshot_split"):
            files["shots"] = str(write_jsonl(folder / "shots.jsonl", rows_of("shots", [])))
        plain = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            "metric_list": [{"metric": metric, **METRICS[metric]} for metric in metrics],
            **config,
        }
        if not metrics:
            del plain["metric_list"]
        text = yaml.safe_dump(plain) + ("" if metrics else OWN_YAML)
        (folder / f"{name}.yaml").write_text(text)
    group = {
        "group": "m_parts",
        "task": ["m_part_one", "m_part_two"],
        "aggregate_metric_list": [
            {"metric": metric, "weight_by_size": True} for metric in ("acc", "f1", "mcc")
        ],
    }
    (folder / "m_parts.yaml").write_text(yaml.safe_dump(group))
    return folder


NAMES = [name for name in TASKS if not name.startswith("m_part")] + ["m_parts"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[str, float]]]:
    """The tasks' folder, and what one call of lm-eval's command line reports of them."""
    folder = write_tasks(tmp_path_factory.mktemp("matrix"), answers_of(model))
    return folder, lm_eval_cli.results(model, folder, NAMES, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def ours(model: Path, theirs: tuple[Path, Any]) -> Scores:
    import datasets
    from lm_eval.tasks import TaskManager

    folder, _ = theirs
    names = {"m_part_one": "m_parts", "m_part_two": "m_parts"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        found = TaskManager(include_path=str(folder), include_defaults=False).load(NAMES)["tasks"]
        loaded = [
            tasks.LoadedTask(name=names.get(n, n), task=task, facts=FACTS)
            for n, task in found.items()
        ]
        patch.setattr(
            tasks, "load", lambda evals, *_: [one for one in loaded if [one.name] == evals.tasks]
        )
        config = RunConfig(
            model=ModelConfig(id=str(model)),
            evals=EvalsConfig(tasks=NAMES, batch_size=4),
        )
        return scored(anew(config, folder))


EXPECTED = [
    *(("m_choice", metric) for metric in ("acc", "acc_norm", "mcc", "brier_score")),
    *(("m_two", metric) for metric in ("f1", "acc")),
    *(("m_last_word", metric) for metric in ("perplexity", "acc")),
    *(("m_rolling", m) for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")),
    *(("m_texts", metric) for metric in ("bleu", "chrf", "chrf++", "ter")),
    *(("m_exact", f"exact_match@{name}") for name in ("whole", "letter")),
    ("m_shots", "acc"),
    *(("m_parts", metric) for metric in ("acc", "f1", "mcc")),
    ("m_own", "macro_f1"),
]
LOWER = ("brier_score", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter")


def one(ours: Scores, task: str, metric: str) -> MetricScores:
    found = find_metric(ours, f"{task}/{metric}")
    assert found is not None
    return found


def test_no_metric_is_lost(ours: Scores) -> None:
    assert sorted((m.task, m.metric) for m in ours.metrics) == sorted(EXPECTED)


@pytest.mark.parametrize(("task", "metric"), EXPECTED)
def test_value_is_that_of_lm_evals_command_line(
    task: str, metric: str, ours: Scores, theirs: tuple[Path, Any]
) -> None:
    mine = one(ours, task, metric)
    name, _, filter_name = metric.partition("@")
    value = theirs[1][task][f"{name},{filter_name or 'none'}"]
    assert corpus_value(mine) == pytest.approx(value, rel=1e-6, abs=1e-6)
    assert mine.higher_is_better is (name not in LOWER)
    # A model that gets all or nothing right would agree with anything.
    assert value not in (0, 1) or (task, metric) == ("m_last_word", "acc")


def test_records_hold_all_that_a_comparison_needs(ours: Scores) -> None:
    reread = jsonfile.from_json(
        Scores, json.loads(jsonfile.dumps(jsonfile.to_json(ours))), where=""
    )
    assert reread == ours
    for found in compare_scores(ours, reread):
        assert not found.refused, found
        assert (found.difference, found.p_value) == (0, 1)
        assert found.low is not None and found.high is not None
        # Agresti-Min has a width even where no answer differs.
        binary = found.method.startswith("exact McNemar")
        assert found.low < 0 < found.high if binary else found.low == 0 == found.high
    for metric in ours.metrics:
        value, low, high = value_interval(metric)
        assert value == pytest.approx(corpus_value(metric))
        assert low <= value <= high and low < high


def test_members_are_kept_with_the_documents(ours: Scores) -> None:
    assert one(ours, "m_parts", "f1").members == {"m_part_one": 23, "m_part_two": 9}
    assert one(ours, "m_parts", "acc").doc_ids == (*range(23), *range(9))
    assert one(ours, "m_choice", "acc").members == {}
    assert one(ours, "m_choice", "acc").chance == pytest.approx(0.25)
    assert one(ours, "m_choice", "mcc").chance is None
