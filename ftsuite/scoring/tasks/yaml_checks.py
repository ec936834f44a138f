"""Checks of our own tasks' YAML: keys, metrics, filters, templates and functions.

lm-eval's own tasks are lm-eval's matter; a YAML of evals/ is written by hand.
"""

from __future__ import annotations

import ast
import difflib
from typing import TYPE_CHECKING, Any

from ftsuite.errors import DataError
from ftsuite.scoring.tasks import documents
from ftsuite.scoring.tasks.facts import filter_names, known_output_type, shortened
from ftsuite.scoring.tasks.prompts import RENDERED, compiled
from ftsuite.scoring.tasks.schema import (
    AGGREGATIONS,
    COMPUTED,
    FILTERS,
    GENERATION_METRICS,
    METRICS,
    STRUCTURE_KEYS,
    TASK_KEYS,
)
from ftsuite.scoring.tasks.yaml_files import FunctionRef, functions, shown

if TYPE_CHECKING:
    from ftsuite.scoring.tasks.yaml_files import TaskFile

TYPES: dict[str, tuple[type, ...]] = {
    "test_split": (str,),
    "validation_split": (str,),
    "training_split": (str,),
    "fewshot_split": (str,),
    "fewshot_config": (dict,),
    "generation_kwargs": (dict,),
    "dataset_kwargs": (dict,),
    "metric_list": (list,),
    "filter_list": (list,),
    "metadata": (dict,),
    "description": (str,),
    "repeats": (int,),
}
"""What lm-eval takes for a key, where another type would fail far from here."""


def check(task: TaskFile) -> None:
    """Refuse a YAML that lm-eval could not build, or would build into something else.

    Raises:
        DataError: names the file, the key and the remedy.
    """
    if not task.is_own:
        return
    _keys(task)
    _functions(task)
    _data(task)
    for entry in task.config.get("metric_list") or []:
        _metric(task, entry)
    _filters(task)
    for key in (*RENDERED, "description"):
        if isinstance(template := task.config.get(key), str):
            compiled(template, f"{task.where}: {key}")


def _keys(task: TaskFile) -> None:
    if "class" in task.config:
        raise DataError(
            f"{task.where}: class: tasks written in Python are not supported here; describe the "
            "task in YAML, with !function where it needs code"
        )
    for key in task.config:
        if key not in TASK_KEYS | STRUCTURE_KEYS:
            near = difflib.get_close_matches(key, TASK_KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else "take it out"
            raise DataError(f"{task.where}: {key}: lm-eval's tasks have no such key; {hint}")
    for key, kinds in TYPES.items():
        value = task.config.get(key)
        if value is not None and not isinstance(value, kinds):
            raise DataError(
                f"{task.where}: {key}: {value!r} is a {type(value).__name__}; write a "
                f"{kinds[0].__name__}"
            )
    known_output_type(task)
    if "/" in task.name:
        raise DataError(f"{task.where}: task: {task.name!r}: a name holds no '/'; rename it")


def _functions(task: TaskFile) -> None:
    for function in functions(task.config):
        where = f"{task.where}: !function {function.spec}"
        if function.spec.startswith("lm_eval."):
            continue
        if not function.file.is_file():
            raise DataError(
                f"{where}: {shown(function.file)} is not there; write the module's name without "
                ".py, a dot, and the function's name"
            )
        try:
            tree = ast.parse(function.file.read_bytes())
        except (SyntaxError, ValueError) as error:
            raise DataError(f"{where}: not Python ({error}); mend the file") from error
        if function.name not in _defined(tree):
            raise DataError(f"{where}: {shown(function.file)} defines no {function.name!r}")


def _defined(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def _data(task: TaskFile) -> None:
    path = task.config.get("dataset_path")
    if task.config.get("custom_dataset") is not None:
        return
    if not isinstance(path, str) or not path:
        kinds = ", ".join(documents.READERS)
        raise DataError(f"{task.where}: dataset_path: write one of {kinds}, or a Hub id")
    if not documents.is_local(task):
        return
    there = documents.data_files(task)
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        split = task.config.get(key)
        if split and split not in there:
            raise DataError(
                f"{task.where}: {key}: {split!r} has no data file; data_files has: "
                f"{', '.join(there)}"
            )


def _metric(task: TaskFile, entry: dict[str, Any]) -> None:
    if not isinstance(entry, dict) or not entry.get("metric"):
        raise DataError(f"{task.where}: metric_list: {entry!r} has no `metric:`; name one")
    name, where = entry["metric"], f"{task.where}: metric"
    aggregation = entry.get("aggregation")
    if isinstance(aggregation, str) and aggregation not in AGGREGATIONS:
        raise DataError(
            f"{where} {name}: aggregation: lm-eval has no {aggregation!r}; it has: "
            f"{', '.join(sorted(AGGREGATIONS))}"
        )
    is_known = isinstance(name, str) and name in METRICS
    if aggregation is None and not is_known:
        raise DataError(f"{where} {name}: say how it is aggregated, such as aggregation: mean")
    if isinstance(name, FunctionRef) or task.config.get("process_results") is not None:
        return
    kind = task.output_type
    computed = COMPUTED.get(kind, GENERATION_METRICS)
    if entry.get("hf_evaluate") is not True and name not in computed:
        problem = f"lm-eval computes none for {kind}" if is_known else "lm-eval has no such metric"
        raise DataError(f"{where} {name!r}: {problem}; choose from {', '.join(sorted(computed))}")


def _filters(task: TaskFile) -> None:
    filter_names(task)
    for entry in task.config.get("filter_list") or []:
        steps = entry.get("filter")
        if not isinstance(steps, list) or not steps:
            raise DataError(f"{task.where}: filter {entry['name']}: list steps under `filter:`")
        for step in steps:
            name = step.get("function") if isinstance(step, dict) else None
            if not isinstance(name, FunctionRef) and name not in FILTERS:
                raise DataError(
                    f"{task.where}: filter {entry['name']}: lm-eval has no step {name!r}; it has: "
                    f"{shortened(sorted(FILTERS))}"
                )
