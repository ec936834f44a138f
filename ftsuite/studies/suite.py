"""What is scored: the tasks of the configuration, of the held-out rows, and of the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.errors import ConfigError
from ftsuite.scoring import heldout, tasks
from ftsuite.scoring.tasks.index import leaves
from ftsuite.scoring.tasks.own_files import name_in, own_tasks

if TYPE_CHECKING:
    from collections.abc import Collection

    from ftsuite.config import DataConfig, EvalsConfig, RunConfig
    from ftsuite.stagerecords import HeldOutTasks

DATA_ENDINGS = re.compile(r"(\.(jsonl?|csv|tsv|tab|txt|parquet|gz))+$", re.IGNORECASE)
DECIDING = ("rank_by", "headline")


def resolve(config: RunConfig, typed: Collection[str] = ()) -> None:
    """Make the list of tasks, in place, and drop what belongs to tasks that were taken out.

    Args:
        config: as it was composed; its data have been checked.
        typed: settings that the command line names; what it says of tasks that are not there
            stays, so that validation refuses it.

    Raises:
        ConfigError: a task to add or remove cannot be.
        DataError: the data's rows cannot be read.
    """
    evals = config.evals
    _name_files(evals)
    built = _held_out(config)
    _list_tasks(evals, built)
    before = set(evals.tasks)
    if unknown := [name for name in evals.remove if name not in before]:
        raise ConfigError(
            "evals.remove", unknown[0], f"not among the tasks: {', '.join(evals.tasks) or 'none'}"
        )
    evals.tasks = [name for name in evals.tasks if name not in evals.remove]
    _drop_of_others(config, typed)
    if built:
        _let_decide(evals, built)
    # They have done what they are there for: the same tasks make the same cell.
    evals.add, evals.remove = [], []
    if evals.generate_limit is not None:
        for name in evals.tasks:
            if tasks.facts_of(name, evals).output_type == "generate_until":
                evals.limits.setdefault(name, evals.generate_limit)


def data_name(data: DataConfig) -> str:
    """The data's name, or the training file's in letters, digits, '-' and '_'."""
    if data.name is not None:
        return data.name
    stem = DATA_ENDINGS.sub("", data.train.rstrip("/").rpartition("/")[2])
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-") or "data"


def _name_files(evals: EvalsConfig) -> None:
    """Replace YAML files among the task names by the names in them; their folders are searched."""
    named: dict[str, Path] = {}
    for listed in (evals.tasks, evals.add):
        for place, given in enumerate(listed):
            if not given.endswith((".yaml", ".yml")):
                continue
            file = Path(given).expanduser()
            if not file.is_file():
                raise ConfigError("evals.tasks", given, "no such file; check the path")
            name = name_in(file)
            if not name:
                raise ConfigError("evals.tasks", given, "it gives no name; write `task: NAME`")
            listed[place] = name
            named[name] = file
            if (folder := str(file.parent)) not in evals.path:
                evals.path.append(folder)
    found = own_tasks(evals.path)
    for name, file in named.items():
        if found[name] != (file.resolve(),):
            raise ConfigError(
                "evals.tasks",
                str(file),
                f"another file defines a task {name} as well, {found[name][0]}; rename one",
            )


def _held_out(config: RunConfig) -> HeldOutTasks | None:
    if not config.evals.held_out:
        return None
    heldout.require_splits(config.data)
    built, folder = heldout.build(config.data, config.evals, Path(config.store.root))
    config.evals.path.insert(0, str(folder))
    return built


def _list_tasks(evals: EvalsConfig, built: HeldOutTasks | None) -> None:
    own = list(built.tasks) if built else []
    if twice := [name for name in own if name in (*evals.tasks, *evals.add)]:
        raise ConfigError(
            "data.name",
            built.name if built else "",
            f"the held-out rows make a task {twice[0]}, and evals.tasks has one of that name; give "
            "the data another name",
        )
    for name in evals.add:
        try:
            leaves(name, evals)
        except ConfigError as error:
            raise ConfigError("evals.add", name, error.remedy) from error
    evals.tasks = list(dict.fromkeys([*own, *evals.tasks, *evals.add]))
    if built and evals.limit is not None:
        most = {name: min(limit, evals.limit) for name, limit in built.limits.items()}
        evals.limits = {**most, **evals.limits}


def _drop_of_others(config: RunConfig, typed: Collection[str]) -> None:
    """Drop limits, gates and metrics of tasks that were taken out, but nothing that was typed."""
    evals, gates = config.evals, config.gates

    def stays(field: str, name: str) -> bool:
        return _task_of(name) in evals.tasks or field in typed or f"{field}.{name}" in typed

    if evals.remove or "evals.tasks" in typed:
        evals.limits = {k: v for k, v in evals.limits.items() if stays("evals.limits", k)}
        evals.watch = [name for name in evals.watch if stays("evals.watch", name)]
        for field in DECIDING:
            if not stays(f"evals.{field}", getattr(evals, field)):
                setattr(evals, field, "")
    # The default gates are on a task that other evals may lack.
    if "gates" not in typed:
        gates.max_worse = {k: v for k, v in gates.max_worse.items() if stays("gates.max_worse", k)}


def _task_of(name: str) -> str:
    return name.partition("/")[0]


def _let_decide(evals: EvalsConfig, built: HeldOutTasks) -> None:
    """Rank and report by the held-out rows, unless something else was chosen."""
    for field in DECIDING:
        if not getattr(evals, field) and _task_of(getattr(built, field)) in evals.tasks:
            setattr(evals, field, getattr(built, field))
