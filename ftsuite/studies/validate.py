"""Checks of a whole configuration before anything runs: what cannot work, and the remedy."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.data import columns, datafiles, readers
from ftsuite.errors import ConfigError
from ftsuite.models import sources
from ftsuite.scoring import probefiles, tasks
from ftsuite.training import targets

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftsuite.config import (
        BackendConfig,
        DataConfig,
        EvalsConfig,
        ExecutorConfig,
        GatesConfig,
        LoraConfig,
        MergeConfig,
        ProbesConfig,
        RunConfig,
        StoreConfig,
        TrackingConfig,
        TrainConfig,
    )

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LARGEST_SEED = 2**32 - 1
"""NumPy takes no larger one."""
LARGEST_COUNT = 2**31 - 1
"""Arrow and torch count in 32 bits in places."""
LARGEST_RANK = 2**16
"""No layer of a language model is wider; the rank is checked against the model's own later."""
LONGEST_EPOCHS = 1e5
LOWEST_TEMPERATURE = 1e-3
"""Logits are divided by it in float32; 0 is greedy."""
HIGHEST_TEMPERATURE = 1e3
LONGEST_NAME = 100
EXECUTORS = ("local", "inline")
MOST_WORKERS = 256
THREADS_A_CORE = 8
"""More CPU threads than this only wait for each other, and may not start at all."""


def validate(config: RunConfig, passed: set[str] | None = None) -> None:
    """Refuse a configuration that cannot work; reads file names but no weights.

    Args:
        config: the configuration of one cell.
        passed: what earlier cells of the same sweep have passed, which is added to: sections that
            are equal are checked once a sweep.

    Raises:
        ConfigError: names the field, the value and the remedy.
    """
    passed = set() if passed is None else passed
    validate_settings(config, passed)
    _once(passed, _evals, config.evals)
    _once(passed, _training_files, config.data, config.evals)
    _once(passed, _gates, config.gates, config.evals)


def validate_settings(config: RunConfig, passed: set[str]) -> None:
    """Refuse what is wrong whatever the tasks are: before held-out rows are read and stored.

    Args:
        config: the configuration of one cell.
        passed: as for `validate`.

    Raises:
        ConfigError: names the field, the value and the remedy.
    """
    _once(passed, _check_name, "study", config.study)
    for field in dataclasses.fields(config):
        _once(passed, _texts, field.name, getattr(config, field.name))
    for group in ("model", "data", "template"):
        _once(passed, _check_label, f"{group}.name", getattr(config, group).name)
    _once(passed, sources.check, config.model)
    _once(passed, _lora, config.lora)
    _once(passed, _train, config.train)
    _once(passed, _merge, config.merge)
    _once(passed, _data, config.data)
    _once(passed, _scoring, config.evals)
    _once(passed, _probes, config.probes, config.evals.path)
    _once(passed, _backend, config.backend)
    _once(passed, _executor, config.executor)
    _once(passed, _services, config.store, config.tracking)


def _once(passed: set[str], check: Callable[..., None], *parts: object) -> None:
    """Check `parts` of a configuration, unless equal ones have passed."""
    mark = f"{check.__module__}.{check.__name__} {parts!r}"
    if mark not in passed:
        check(*parts)
        passed.add(mark)


def _training_files(data: DataConfig, evals: EvalsConfig) -> None:
    found = readers.find_source(data.train, split="train")
    if isinstance(found, Path):
        tasks.check_training_file(data.train, readers.file_sha256(found), evals)


def _check_name(field: str, value: str | None) -> None:
    if value is None or not NAME.fullmatch(value):
        raise ConfigError(
            field, value, "a name is letters, digits, '.', '_' and '-' only, no path separators"
        )


def _check_label(field: str, value: str | None) -> None:
    if not value or not value.strip() or len(value) > LONGEST_NAME or not value.isprintable():
        raise ConfigError(field, value, f"must be 1 to {LONGEST_NAME} characters on one line")


def _texts(field: str, value: object) -> None:
    """Refuse text that no file can hold."""
    if dataclasses.is_dataclass(value):
        for inner in dataclasses.fields(value):
            name, part = f"{field}.{inner.name}", getattr(value, inner.name)
            # OmegaConf checks the type of a list's items, but lets lists and mappings pass.
            if isinstance(part, list) and not all(isinstance(item, str) for item in part):
                raise ConfigError(name, part, "must be a list of words, such as [a,b]")
            _texts(name, part)
    elif isinstance(value, list):
        for item in value:
            _texts(field, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _texts(field, key)
            _texts(f"{field}.{key}", item)
    elif isinstance(value, str) and ("\x00" in value or _has_half_pairs(value)):
        raise ConfigError(field, value, "holds a sign that is no UTF-8 text; take it out")


def _has_half_pairs(text: str) -> bool:
    # Bytes of the command line that are not UTF-8 come in as half surrogate pairs.
    return any("\ud800" <= sign <= "\udfff" for sign in text)


def _lora(lora: LoraConfig) -> None:
    _positive("lora.r", lora.r, LARGEST_RANK)
    _positive("lora.alpha", lora.alpha)
    _fraction("lora.dropout", lora.dropout)
    if not lora.target_modules:
        raise ConfigError("lora.target_modules", [], "name modules, or [all-linear]")
    targets.check_names(lora)


def _train(train: TrainConfig) -> None:
    for field in (
        "max_steps",
        "micro_batch_size",
        "gradient_accumulation",
        "eval_every_steps",
        "checkpoint_every_steps",
    ):
        _positive(f"train.{field}", getattr(train, field))
    if train.epochs > LONGEST_EPOCHS and train.epochs < math.inf:
        raise ConfigError("train.epochs", train.epochs, f"must be at most {LONGEST_EPOCHS:g}")
    for field in ("epochs", "learning_rate", "max_grad_norm"):
        if not 0 < getattr(train, field) < math.inf:
            raise ConfigError(f"train.{field}", getattr(train, field), "must be above 0, finite")
    _at_least("train.weight_decay", train.weight_decay, 0)
    _seed("train.seed", train.seed)
    _fraction("train.warmup_fraction", train.warmup_fraction)


def _merge(merge: MergeConfig) -> None:
    _positive("merge.shard_bytes", merge.shard_bytes, 2**63 - 1)
    _positive("merge.fidelity_items", merge.fidelity_items)
    if merge.fidelity_tolerance is not None:
        _at_least("merge.fidelity_tolerance", merge.fidelity_tolerance, 0)


def _data(data: DataConfig) -> None:
    _seed("data.split_seed", data.split_seed)
    for field in ("max_length", "train_limit", "validation_limit"):
        _positive(f"data.{field}", getattr(data, field))
    for field in ("validation_fraction", "test_fraction"):
        _fraction(f"data.{field}", getattr(data, field))
    for field in ("near_duplicate", "max_overlap"):
        if not 0 < getattr(data, field) <= 1:
            raise ConfigError(f"data.{field}", getattr(data, field), "must be above 0, at most 1")
    _at_least("data.tolerance", data.tolerance, 0)
    if data.validation is None and data.validation_fraction == 0:
        raise ConfigError(
            "data.validation_fraction",
            0,
            "the validation split would be empty; cut some, or give data.validation",
        )
    if field := columns.unused_column(data.shape, data.columns):
        raise ConfigError(
            f"data.columns.{field}",
            getattr(data.columns, field),
            f"data.shape={data.shape.value} does not read it; set data.shape, or take data=file "
            "for data of your own",
        )
    if column := columns.shared_column(data.shape, data.columns):
        raise ConfigError("data.columns", column, "one column for two things; name two")
    datafiles.check(data)


def _scoring(evals: EvalsConfig) -> None:
    _seed("evals.subset_seed", evals.subset_seed)
    _seed("evals.fewshot_seed", evals.fewshot_seed)
    for field in ("limit", "generate_limit", "max_new_tokens"):
        _positive(f"evals.{field}", getattr(evals, field))
    for folder in evals.path:
        if not Path(folder).expanduser().is_dir():
            raise ConfigError("evals.path", folder, "no such folder; check the path")
    _positive("evals.batch_size", evals.batch_size)
    if evals.num_fewshot is not None:
        _at_least("evals.num_fewshot", evals.num_fewshot, 0)
    _distinct("evals.tasks", evals.tasks)


def _evals(evals: EvalsConfig) -> None:
    for task, limit in evals.limits.items():
        _positive(f"evals.limits.{task}", limit)
        if task not in evals.tasks:
            remedy = f"evals.tasks has no such task; take the limit out: ~evals.limits.{task}"
            raise ConfigError(f"evals.limits.{task}", limit, remedy)
    tasks.check(evals)
    for field in ("rank_by", "headline"):
        if name := getattr(evals, field):
            _check_metric(f"evals.{field}", name, evals)
    for name in evals.watch:
        _check_metric("evals.watch", name, evals)
    if evals.rank_by and not evals.rank_on_test:
        _check_ranking(evals)


def _check_metric(field: str, name: str, evals: EvalsConfig) -> None:
    task, _, metric = name.partition("/")
    if not metric or task not in evals.tasks:
        there = f"one of evals.tasks: {', '.join(evals.tasks)}" if evals.tasks else "a task"
        none = "" if evals.tasks else "; evals.tasks is empty"
        raise ConfigError(field, name, f"write task/metric with {there}{none}")
    known = tasks.facts_of(task, evals)
    if metric not in known.names and not known.is_open:
        raise ConfigError(
            field, name, f"{task} has no such metric; it has: {', '.join(known.names)}"
        )


def _check_ranking(evals: EvalsConfig) -> None:
    """Refuse to choose a cell by the documents that report how good it is."""
    ranking, headline = (name.partition("/")[0] for name in (evals.rank_by, evals.headline))
    allow = "or set evals.rank_on_test=true, and the report says so"
    if tasks.facts_of(ranking, evals).role == "test":
        known = [name for name in evals.tasks if tasks.facts_of(name, evals).role == "validation"]
        which = f" ({', '.join(known)})" if known else ""
        raise ConfigError(
            "evals.rank_by",
            evals.rank_by,
            f"{ranking} scores a test split, and a cell that is chosen on it looks better than it "
            f"is; rank by a task on a validation split{which}, {allow}",
        )
    same = headline and tasks.scored_documents(ranking, evals) & tasks.scored_documents(
        headline, evals
    )
    if same:
        raise ConfigError(
            "evals.headline",
            evals.headline,
            f"it shares documents with evals.rank_by ({ranking}), so the chosen cell looks better "
            f"than it is; report a task on other documents, {allow}",
        )


def _probes(probes: ProbesConfig, folders: list[str]) -> None:
    for field in ("limit", "max_new_tokens", "batch_size"):
        _positive(f"probes.{field}", getattr(probes, field))
    _seed("probes.seed", probes.seed)
    _at_least("probes.temperature", probes.temperature, 0)
    if probes.temperature and not LOWEST_TEMPERATURE <= probes.temperature <= HIGHEST_TEMPERATURE:
        remedy = f"must be 0 (greedy) or {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}"
        raise ConfigError("probes.temperature", probes.temperature, remedy)
    if not 0 < probes.top_p <= 1:
        raise ConfigError("probes.top_p", probes.top_p, "must be above 0 and at most 1")
    _distinct("probes.files", probes.files)
    probefiles.read_probes(probes, folders)


def _backend(backend: BackendConfig) -> None:
    if backend.name != "local":
        raise ConfigError("backend.name", backend.name, "only 'local' is there")
    _positive("backend.threads", backend.threads)
    cores = os.cpu_count() or 1
    if (backend.threads or 0) > THREADS_A_CORE * cores:
        remedy = f"this machine has {cores} cores; set at most {THREADS_A_CORE} threads for each"
        raise ConfigError("backend.threads", backend.threads, remedy)


def _executor(executor: ExecutorConfig) -> None:
    if executor.name not in EXECUTORS:
        raise ConfigError("executor.name", executor.name, f"choose one of {', '.join(EXECUTORS)}")
    _positive("executor.workers", executor.workers, MOST_WORKERS)


def _gates(gates: GatesConfig, evals: EvalsConfig) -> None:
    for name, limit in gates.max_worse.items():
        _at_least(f"gates.max_worse.{name}", limit, 0)
        _check_metric(f"gates.max_worse.{name}", name, evals)
    _fraction("gates.alpha", gates.alpha)


def _services(store: StoreConfig, tracking: TrackingConfig) -> None:
    for field in ("root", "reports"):
        if not getattr(store, field):
            raise ConfigError(f"store.{field}", "", "name a folder")
    if tracking.mode not in ("offline", "online", "disabled"):
        raise ConfigError("tracking.mode", tracking.mode, "choose offline, online or disabled")


def _positive(field: str, value: int | None, largest: int = LARGEST_COUNT) -> None:
    if value is not None and value < 1:
        raise ConfigError(field, value, "must be at least 1")
    if value is not None and value > largest:
        raise ConfigError(field, value, f"must be at most {largest:,}")


def _seed(field: str, value: int) -> None:
    if not 0 <= value <= LARGEST_SEED:
        raise ConfigError(field, value, f"must be 0 to {LARGEST_SEED}")


def _at_least(field: str, value: float, low: float) -> None:
    if not low <= value < math.inf:
        raise ConfigError(field, value, f"must be at least {low}, finite")


def _distinct(field: str, names: list[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(field, twice[0], "named twice; once is enough")


def _fraction(field: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(field, value, "must be at least 0 and below 1")
