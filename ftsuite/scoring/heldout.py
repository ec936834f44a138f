"""Held-out rows of the user's data as evaluation tasks: lm-eval YAML and documents, in the store.

The rows are cut as the data stage cuts them. What is written is what a person would write by hand,
so lm_eval's own CLI runs it (`--include_path FOLDER`); tasks of long conversations are the
exception, since lm-eval has no place for earlier turns.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite import provenance
from ftsuite.choices import Answers
from ftsuite.config import reset
from ftsuite.data import prepare as data_module
from ftsuite.data import shapes
from ftsuite.data.readers import file_sha256
from ftsuite.errors import ConfigError
from ftsuite.resources import evals_dir
from ftsuite.scoring import answers, heldout_tasks, labelnotes
from ftsuite.stagerecords import HeldOutTasks
from ftsuite.stages import BuildHeldOut
from ftsuite.store.computing import compute

if TYPE_CHECKING:
    from ftsuite.config import DataConfig, EvalsConfig, RunConfig
    from ftsuite.data.shapes import Conversation
    from ftsuite.data.splits import Conversations, SplitName
    from ftsuite.events import Events
    from ftsuite.store.stage import Folders

HELD_OUT: tuple[SplitName, ...] = ("validation", "test")
MOST_DOCUMENTS = 10_000
"""Held-out rows that become documents: each command reads all of them."""
TURNS = "turns"
"""Field of a document with its whole conversation, for those that lm-eval cannot hold."""


def stage_of(data: DataConfig, evals: EvalsConfig) -> BuildHeldOut:
    """The stage that builds the tasks of a data set's held-out rows.

    Args:
        data: the rows; its `name` is set.
        evals: for `max_new_tokens`.

    Raises:
        DataError: a file is missing.
    """
    assert data.name is not None
    # What is cut off at the end, or not trained on, is held out all the same.
    return BuildHeldOut(
        name=data.name,
        source_sha256=data_module.source_sha256(data),
        data=reset(data, "max_length", "truncate", "train_limit"),
        group=data.group,
        max_new_tokens=evals.max_new_tokens,
        scoring_sha256=file_sha256(_scoring()),
        versions=provenance.versions("genson", "rensa"),
    )


def build(data: DataConfig, evals: EvalsConfig, root: Path) -> tuple[HeldOutTasks, Path]:
    """The tasks of a data set's held-out rows and the folder they are in; built once.

    Args:
        data: the rows; its `name` is set.
        evals: for `max_new_tokens`.
        root: the store.

    Raises:
        ConfigError: no validation or no test rows.
        DataError: a file or a row cannot be used.
    """
    entry = compute(root, stage_of(data, evals))
    return entry.record, entry.folder


def build_tasks(stage: BuildHeldOut, _: Folders, out: Path, __: Events) -> HeldOutTasks:
    """Cut the rows, find out what the answers are, and write YAML and documents to `out`."""
    return _write(stage.data, stage.max_new_tokens, out)


def lines(config: RunConfig) -> list[str]:
    """What will be scored on the held-out rows, for people; nothing where nothing is.

    Args:
        config: with its tasks listed (`suite.resolve`).

    Raises:
        DataError: a file or a row cannot be used.
    """
    if not config.evals.held_out:
        return []
    built, _ = build(config.data, config.evals, Path(config.store.root))
    counts = ", ".join(f"{built.rows[name]:,} for the {name}" for name in HELD_OUT)
    found = [f"held-out rows of {built.name}: {counts.replace('the validation', 'validation')}"]
    for task in built.tasks:
        if task not in config.evals.tasks:
            continue
        split = "validation" if task.endswith("_validation") else "test"
        there = built.documents[split]
        scored = min(there, config.evals.limits.get(task, config.evals.limit) or there)
        words = heldout_tasks.words(task, built.kind)
        found.append(f"{task}: {words}, {scored:,} of {there:,} documents{_use(task, config)}")
    return [*found, *built.data_notes, *built.notes]


def _use(task: str, config: RunConfig) -> str:
    """What a task's metrics decide, if they do."""
    uses = {config.evals.rank_by: "ranks the cells", config.evals.headline: "reported first"}
    return "".join(
        f"; {name.partition('/')[2]} {what}"
        for name, what in uses.items()
        if name.partition("/")[0] == task
    )


def notes(config: RunConfig) -> tuple[str, ...]:
    """What a reader of the scores must know of the tasks that were built."""
    if not config.evals.held_out:
        return ()
    built, _ = build(config.data, config.evals, Path(config.store.root))
    return tuple(f"Held-out rows of {built.name}: {note}" for note in built.notes)


def require_splits(data: DataConfig) -> None:
    """Refuse data of which no rows are held out for validation or for the test.

    Raises:
        ConfigError: names the field.
    """
    for name in HELD_OUT:
        field = f"{name}_fraction"
        if getattr(data, name) is None and not getattr(data, field):
            raise ConfigError(
                f"data.{field}",
                0,
                f"no {name} rows, so nothing can be scored on this data; set it to 0.15, or give "
                f"data.{name}, or take evals=none to train without scores",
            )


def _scoring() -> Path:
    return evals_dir() / "held_out" / "scoring.py"


def _write(data: DataConfig, max_new_tokens: int | None, folder: Path) -> HeldOutTasks:
    complete = data_module.cut_rows(data, folder)
    splits = complete.splits
    facts = _facts(splits, data)
    schema = _schema(splits) if facts and facts.kind is Answers.json else ""
    documents, rows, notes = dict[str, int](), dict[str, int](), list[str]()
    fields: set[str] = set()
    for name in HELD_OUT:
        held = splits[name]
        rows[name], documents[name] = len(held), min(len(held), MOST_DOCUMENTS)
        if len(held) > MOST_DOCUMENTS:
            notes.append(
                f"{MOST_DOCUMENTS:,} of {len(held):,} {name} rows became documents (seed "
                f"{data.split_seed})"
            )
        made = [_document(held, number, facts, schema, data) for number in range(documents[name])]
        fields |= {field for document in made for field, value in document.items() if value}
        lines = (json.dumps(document, ensure_ascii=False) for document in made)
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    if facts and facts.labels:
        notes += labelnotes.notes(splits, facts.labels)
    assert data.name is not None
    made_tasks = heldout_tasks.tasks(data.name, facts, fields, max_new_tokens)
    for task in made_tasks.tasks:
        (folder / f"{task['task']}.yaml").write_text(heldout_tasks.yaml_text(task), "utf-8")
    shutil.copyfile(_scoring(), folder / "scoring.py")
    return HeldOutTasks(
        name=data.name,
        kind=facts.kind.value if facts else "prose",
        labels=facts.labels if facts else (),
        tasks=tuple(task["task"] for task in made_tasks.tasks),
        limits=made_tasks.limits,
        rank_by=made_tasks.rank_by,
        headline=made_tasks.headline,
        rows=rows,
        documents=documents,
        data_notes=complete.notes,
        notes=(*(facts.notes if facts else ()), *made_tasks.notes, *notes),
    )


def _facts(splits: dict[SplitName, Conversations], data: DataConfig) -> answers.AnswerFacts | None:
    """What the answers are; None for plain text, which has none."""
    first = splits["train"][0]
    if first[0]["role"] == shapes.TEXT_ROLE:
        if data.labels or data.answers is not Answers.auto:
            field = "data.labels" if data.labels else "data.answers"
            raise ConfigError(
                field, data.labels or data.answers.value, "rows of plain text have no answers"
            )
        return None
    every = (row[-1]["content"] for rows in splits.values() for row in rows)
    return answers.describe(every, data)


def _schema(splits: dict[SplitName, Conversations]) -> str:
    """JSON schema of all answers: the types that occur, the keys that every object has."""
    from genson import SchemaBuilder

    builder = SchemaBuilder()
    for rows in splits.values():
        for row in rows:
            builder.add_object(json.loads(row[-1]["content"]))
    return json.dumps(_closed(builder.to_schema()), sort_keys=True)


def _closed(schema: Any) -> Any:
    """The schema without room for keys that no answer has."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _closed(value) for key, value in schema.items()}
    if isinstance(inner.get("properties"), dict) and inner.get("type") == "object":
        inner["additionalProperties"] = False
    return inner


def _document(
    rows: Conversations,
    number: int,
    facts: answers.AnswerFacts | None,
    schema: str,
    data: DataConfig,
) -> dict[str, Any]:
    conversation = rows[number]
    group = rows.group(number)
    if facts is None:
        return {"text": conversation[0]["content"], "group": group}
    *asked, last = conversation
    answer = last["content"]
    document: dict[str, Any] = {
        "prompt": asked[-1]["content"],
        "answer": answer,
        "expected": answer.strip(),
        "system": asked[0]["content"] if asked[0]["role"] == "system" else "",
        "group": group,
        # As text: Arrow would give every message the keys of every other.
        TURNS: json.dumps(asked) if needs_turns(asked) else "",
    }
    match facts.kind:
        case Answers.labels:
            document["label"] = facts.labels.index(document["expected"])
        case Answers.json:
            document["schema"] = schema
        case Answers.number:
            document["tolerance"] = data.tolerance
    return document


def needs_turns(asked: Conversation) -> bool:
    """Whether a prompt is more than a system message and one user turn of plain text."""
    users = asked[1:] if asked[0]["role"] == "system" else asked
    return len(users) > 1 or any(set(message) > {"role", "content"} for message in asked)
