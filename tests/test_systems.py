from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from tiny import conversation, tiny_tokenizer, write_jsonl

from ftsuite.choices import Loss
from ftsuite.config import DataConfig, EvalsConfig, PackingConfig, TemplateConfig
from ftsuite.data import prepare as data
from ftsuite.models import templates
from ftsuite.resources import evals_dir
from ftsuite.scoring import evaluate, systems

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from conftest import Command

    from ftsuite.records import DataSummary

TASK = yaml.safe_load((evals_dir() / "intent" / "intent_choice.yaml").read_text())["description"]
EVALS = EvalsConfig(
    tasks=["intent_choice_validation", "intent_choice", "prose_bpb"],
    rank_by="intent_choice_validation/acc",
    headline="intent_choice/acc",
)


def summary(folder: Path, *, system: str | None, jinja: str | None = None) -> DataSummary:
    rows = [conversation(f"What is {i}?", f"It is {i}.") for i in range(8)]
    rows += [conversation("Who?", "I.", system="Be brief.")]
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(jinja=jinja))
    config = DataConfig(
        train=str(write_jsonl(folder / "rows.jsonl", rows)),
        validation=str(write_jsonl(folder / "held.jsonl", [conversation("Held?", "Yes.")])),
        system=system,
    )
    return data.prepare(config, PackingConfig(), Loss.completion, tokenizer, folder)


def test_the_data_stage_counts_the_system_messages(tmp_path: Path) -> None:
    brief = data.digest_of_system("Be brief.")
    assert summary(tmp_path, system=None).systems == {"": 8, brief: 1}
    assert summary(tmp_path, system=TASK).systems == {data.digest_of_system(TASK): 8, brief: 1}


def test_a_task_that_asks_with_a_system_message_that_no_row_has_is_named(tmp_path: Path) -> None:
    (said,) = systems.differences(summary(tmp_path, system=None).systems, EVALS)
    assert said.startswith("evals.tasks intent_choice_validation, intent_choice: a system message")
    assert "data.system" in said
    assert systems.differences(summary(tmp_path, system=TASK).systems, EVALS) == []
    # White space is part of a prompt, and an empty message is one.
    assert systems.differences({data.digest_of_system(TASK + "\n"): 8}, EVALS)
    assert data.digest_of_system("") != data.digest_of_system(None) == ""
    # Plain text has no prompt at all.
    assert systems.differences({}, EVALS) == []


def test_a_run_says_so_before_anything_is_scored(
    new_command: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = evaluate.evaluate_many

    def scored(stages: Any, *rest: Any) -> Any:
        print("scoring", *(stage.name for stage in stages))
        return real(stages, *rest)

    monkeypatch.setattr(evaluate, "evaluate_many", scored)
    command: Command = new_command("systems")  # type: ignore[operator]
    assert command.here("data.system=null", "train.max_steps=1") == 0
    lines = capsys.readouterr().out.splitlines()
    (told,) = [i for i, line in enumerate(lines) if "note: evals.tasks intent_choice" in line]
    assert told < next(i for i, line in enumerate(lines) if "scoring " in line)
    (record,) = command.runs().values()
    assert len(record.notes) == 1
    report = (command.reports / "tiny" / "README.md").read_text()
    assert "a system message that no training row has" in report


def test_conversations_that_become_several_rows_are_counted(tmp_path: Path) -> None:
    # It marks the last answer, as Qwen 3 does with an empty thought.
    jinja = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if loop.last and m.role == 'assistant' %}{{ '<last>' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    )
    two = conversation("First?", "One.")
    two["messages"] += conversation("Second?", "Two.")["messages"]
    tokenizer = tiny_tokenizer()
    templates.install(tokenizer, TemplateConfig(name="marks", jinja=jinja))
    rows = write_jsonl(tmp_path / "rows.jsonl", [two, conversation("Once?", "Yes.")])
    held = write_jsonl(tmp_path / "held.jsonl", [conversation("Held?", "Yes.")])
    config = DataConfig(train=str(rows), validation=str(held))
    found = data.prepare(config, PackingConfig(), Loss.completion, tokenizer, tmp_path)
    assert next(split for split in found.splits if split.name == "train").rows == 3
    (note,) = found.notes
    assert note.startswith("2 train conversations became 3 rows: the template writes earlier turns")
