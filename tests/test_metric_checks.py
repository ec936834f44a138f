"""Metrics that cannot be scored are refused when their task is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from bystage import CPU
from conftest import FACTS

from ftsuite.config import EvalsConfig, RunConfig
from ftsuite.errors import ConfigError
from ftsuite.events import silent
from ftsuite.recipe import recipe
from ftsuite.scoring import evaluate, metric_checks, tasks
from ftsuite.scoring.metric_checks import aggregation_name, check
from ftsuite.scoring.tasks import LoadedTask
from ftsuite.stages import BaseModel

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
}
ANSWER = {"output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{text}}"}
LAST = {"output_type": "loglikelihood", "doc_to_text": "{{text}}", "doc_to_target": "{{text}}"}
ROLLING = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}


def task_of(config: dict[str, Any], *metrics: dict[str, Any], choices: tuple[int, ...]) -> Any:
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    rows = [
        {"text": f"text {i}", "choices": ["one", "two", "three", "four"][:count], "label": i % 2}
        for i, count in enumerate(choices)
    ]
    documents = DatasetDict({"test": Dataset.from_list(rows)})
    plain = {
        "task": "mine",
        "test_split": "test",
        "custom_dataset": lambda **_: documents,
        "metric_list": list(metrics),
        **config,
    }
    return ConfigurableTask(config=plain)


def entry(metric: str, aggregation: Any = "mean", better: Any = True) -> dict[str, Any]:
    return {"metric": metric, "aggregation": aggregation, "higher_is_better": better}


@pytest.mark.parametrize(
    ("config", "metric", "choices", "message"),
    [
        (CHOICE, entry("accuracy"), (2, 2), "metric accuracy: lm-eval does not compute it for mul"),
        (CHOICE, entry("likelihood"), (2, 2), "metric likelihood: lm-eval does not compute it"),
        (LAST, entry("exact_match"), (2,), "lm-eval does not compute it for loglikelihood; choose"),
        (ROLLING, entry("perplexity"), (2,), "choose of bits_per_byte, byte_perplexity, word_per"),
        (ANSWER, entry("no_such_metric"), (2,), "metric no_such_metric: lm-eval does not know it"),
        (CHOICE, entry("acc", "meen"), (2, 2), "metric acc: it has no aggregation that lm-eval k"),
        (ANSWER, entry("bypass", "bypass"), (2,), "metric bypass: it scores nothing"),
        (ANSWER, entry("exact_match", better=None), (2,), "whether higher is better is not said"),
        (LAST, entry("perplexity", "perplexity"), (2,), "by perplexity lower is better; mend"),
        (ANSWER, entry("bleu", "bleu", False), (2,), "by bleu higher is better; mend"),
        (CHOICE, entry("brier_score", "brier_score"), (2, 2), "by brier_score lower is better"),
        (
            CHOICE,
            entry("f1", "f1"),
            (3, 3),
            "lm-eval's f1 is for two choices, and documents have 3",
        ),
        (CHOICE, entry("f1", "f1"), (2, 4), "documents have 2 to 4; use mcc"),
        (ANSWER, entry("f1", "f1"), (2,), "aggregation f1 needs classes"),
        (
            CHOICE,
            entry("brier_score", "brier_score", False),
            (2, 3),
            "as many choices in every document, not 2 to 3",
        ),
    ],
)
def test_metric_is_refused_by_name(
    config: dict[str, Any], metric: dict[str, Any], choices: tuple[int, ...], message: str
) -> None:
    task = task_of(config, metric, choices=choices)
    with pytest.raises(ConfigError, match=message) as raised:
        check([LoadedTask(name="mine", task=task, facts=FACTS)])
    assert str(raised.value).startswith("evals.tasks = 'mine': metric ")
    # One line, and the member of a group by its own name.
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"evals\.tasks = 'group': mine: metric"):
        check([LoadedTask(name="group", task=task, facts=FACTS)])


@pytest.mark.parametrize(
    ("config", "metric", "choices"),
    [
        (CHOICE, entry("acc"), (2, 4)),
        (CHOICE, entry("f1", "f1"), (2, 2)),
        (CHOICE, entry("mcc", "matthews_corrcoef"), (2, 4)),
        (CHOICE, entry("brier_score", "brier_score", False), (3, 3)),
        (LAST, entry("perplexity", "perplexity", False), (2,)),
        (LAST, {"metric": "perplexity"}, (2,)),
        (ROLLING, {"metric": "bits_per_byte"}, (2,)),
        (ANSWER, entry("ter", "ter", False), (2,)),
        (ANSWER, entry("exact_match", sorted), (2,)),
    ],
)
def test_metric_is_accepted(
    config: dict[str, Any], metric: dict[str, Any], choices: tuple[int, ...]
) -> None:
    check([LoadedTask(name="mine", task=task_of(config, metric, choices=choices), facts=FACTS)])


def test_a_tasks_own_code_may_give_any_metric() -> None:
    own = {"process_results": lambda doc, results: {"ours": (0, 1)}}
    task = task_of({**CHOICE, **own}, entry("ours", max), choices=(2, 3))
    check([LoadedTask(name="mine", task=task, facts=FACTS)])
    with pytest.raises(ConfigError, match="it has no aggregation"):
        missing = task_of({**CHOICE, **own}, entry("ours", "nope"), choices=(2,))
        check([LoadedTask(name="mine", task=missing, facts=FACTS)])


def test_nothing_is_loaded_before_the_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The model's folder is empty: the metric must be refused before it is looked at."""
    task = task_of(CHOICE, entry("accuracy"), choices=(2, 2))
    monkeypatch.setattr(tasks, "load", lambda *_: [LoadedTask(name="mine", task=task, facts=FACTS)])
    model = BaseModel(source="folder", revision="0", path=str(tmp_path))
    stages = recipe(RunConfig(evals=EvalsConfig(tasks=["mine"])), CPU, model)
    with pytest.raises(ConfigError, match="metric accuracy"):
        evaluate.evaluate(stages.base.scores["mine"], {}, tmp_path, silent())


def test_names_of_aggregations() -> None:
    import functools

    from lm_eval.api.registry import get_aggregation

    assert aggregation_name(get_aggregation("chrf++")) == "chrf++"
    assert aggregation_name(task_of) == "test_metric_checks.task_of"
    assert aggregation_name(functools.partial(task_of, {})) == "test_metric_checks.task_of"
    assert metric_checks.aggregation_name(max) == "builtins.max"
