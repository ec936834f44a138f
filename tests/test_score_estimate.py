"""What `plan` says that scoring costs, against what scoring spends."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from bystage import anew, scored
from synthetic import make_record

from ftsuite.commands import score_estimate
from ftsuite.config import EvalsConfig, ModelConfig, RunConfig, to_plain
from ftsuite.records import StageRecord

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.records import RunRecord

DEMO = {"intent_choice_validation": 80, "intent_choice": 120, "intent_exact": 60, "prose_bpb": 16}
SPENT = {
    "intent_choice_validation": 5248,
    "intent_choice": 7728,
    "intent_exact": 4432,
    "prose_bpb": 2280,
}
"""Tokens that the eval stage counted for these with SmolLM2-135M, padding included."""
NO_RUNS: list[RunRecord] = []


def config_of(model: str, **evals: Any) -> RunConfig:
    return RunConfig(model=ModelConfig(id=model), evals=EvalsConfig(**evals))


@pytest.mark.parametrize("task", DEMO)
def test_the_demo_is_planned_as_it_is_spent(task: str, tmp_path: Path) -> None:
    """By words alone: the tokenizer is not on every machine that plans."""
    config = config_of("none", tasks=[task], limits={task: DEMO[task]})
    planned = score_estimate.score_tokens(task, config, NO_RUNS, None, tmp_path)
    assert planned == pytest.approx(SPENT[task], rel=0.15)


@pytest.mark.parametrize("task", DEMO)
def test_the_models_own_tokenizer_counts(task: str, tiny_model: Path, tmp_path: Path) -> None:
    """A vocabulary of 400 makes labels of several tokens, so that each choice is a pass."""
    config = config_of(str(tiny_model), tasks=[task], limit=4, batch_size=1)
    spent = scored(anew(config, tmp_path)).tokens
    planned = score_estimate.score_tokens(task, config, NO_RUNS, tiny_model, tmp_path)
    assert planned == pytest.approx(spent, rel=0.15)
    by_words = score_estimate.score_tokens(task, config, NO_RUNS, None, tmp_path)
    assert by_words != pytest.approx(spent, rel=0.15)


def test_examples_are_paid_with_every_question(own_evals: Path, tmp_path: Path) -> None:
    folder = own_evals / "intent"
    text = (folder / "intent_choice.yaml").read_text(encoding="utf-8")
    text = text.replace("{ test: test.jsonl }", "{ test: test.jsonl, train: train.jsonl }")
    (folder / "intent_choice.yaml").write_text(text + "fewshot_split: train\n", encoding="utf-8")
    plain, shots = (
        score_estimate.score_tokens(
            "intent_choice",
            config_of("none", tasks=["intent_choice"], limit=10, num_fewshot=number),
            NO_RUNS,
            None,
            tmp_path,
        )
        for number in (0, 4)
    )
    assert plain is not None and shots is not None
    # Ten documents, four examples of about 13 words, a label and two turns each.
    assert 10 * 4 * 20 < shots - plain < 10 * 4 * 35


def test_what_only_the_hub_knows_is_not_estimated(tmp_path: Path) -> None:
    config = config_of("none", tasks=["gsm8k"])
    assert score_estimate.score_tokens("gsm8k", config, NO_RUNS, None, tmp_path) is None
    assert score_estimate.documents("gsm8k", config.evals, tmp_path) is None
    config.evals.limit = 5
    assert score_estimate.documents("gsm8k", config.evals, tmp_path) == 5
    # A limit is each task's of a group.
    assert score_estimate.documents("mmlu", config.evals, tmp_path) == 5 * 57


def test_an_earlier_run_tells_what_a_task_took(tmp_path: Path) -> None:
    """Of a run that scored several tasks, a task's share is that of its seconds."""
    run = make_record()
    assert run.base is not None
    stages = tuple(
        StageRecord(stage=stage, key=stage, seconds=seconds, reused=False)
        for stage, seconds in (("train", 9.0), ("eval-base gsm8k", 3.0), ("eval-base other", 1.0))
    )
    config = config_of("m", tasks=["gsm8k"], limits={"gsm8k": 5, "other": 7})
    said = to_plain(config_of("m", tasks=["gsm8k", "other"], limit=5))
    run = dataclasses.replace(run, stages=stages, config=said)
    found = score_estimate.score_tokens("gsm8k", config, [run], None, tmp_path)
    assert found == round(run.base.tokens * 3 / 4)
    for change in ({"limit": 4}, {"num_fewshot": 3}, {"batch_size": 64}):
        other = config_of("m", tasks=["gsm8k"], **{"limit": 5} | change)
        assert score_estimate.score_tokens("gsm8k", other, [run], None, tmp_path) is None
    config.model.id = "another"
    assert score_estimate.score_tokens("gsm8k", config, [run], None, tmp_path) is None


def test_planning_imports_nothing_heavy(tiny_model: Path, tmp_path: Path) -> None:
    script = f"""
import json, sys
from pathlib import Path
from ftsuite.commands import score_estimate
from ftsuite.config import EvalsConfig, RunConfig
config = RunConfig(evals=EvalsConfig(tasks={list(DEMO)!r}))
for name in config.evals.tasks:
    score_estimate.score_tokens(name, config, [], Path({str(tiny_model)!r}), Path("."))
heavy = ("torch", "transformers", "lm_eval", "datasets", "pandas")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
