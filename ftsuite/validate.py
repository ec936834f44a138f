"""Checks of a whole configuration before anything runs: what cannot work, and the remedy."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite import models, probe, readers, tasks
from ftsuite.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ftsuite.config import (
        DataConfig,
        EvalsConfig,
        LoraConfig,
        ProbesConfig,
        RunConfig,
        TrainConfig,
    )

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LARGEST_SEED = 2**32 - 1
"""NumPy takes no larger one."""


def validate(config: RunConfig) -> None:
    """Refuse a configuration that cannot work; reads file names but no weights.

    Raises:
        ConfigError: names the field, the value and the remedy.
    """
    _check_name("study", config.study)
    models.check(config.model)
    _lora(config.lora)
    _train(config.train)
    _data(config.data)
    _evals(config.evals)
    _probes(config.probes)
    if config.backend.name != "local":
        raise ConfigError("backend.name", config.backend.name, "only 'local' is there")
    _positive("backend.threads", config.backend.threads)
    for name, limit in config.gates.max_worse.items():
        _at_least(f"gates.max_worse.{name}", limit, 0)
        _check_metric(f"gates.max_worse.{name}", name, config.evals)
    _fraction("gates.alpha", config.gates.alpha)
    for field in ("root", "reports"):
        if not getattr(config.store, field):
            raise ConfigError(f"store.{field}", "", "name a folder")
    if config.tracking.mode not in ("offline", "online", "disabled"):
        raise ConfigError(
            "tracking.mode", config.tracking.mode, "choose offline, online or disabled"
        )


def _check_name(field: str, value: str | None) -> None:
    if value is None or not NAME.fullmatch(value):
        raise ConfigError(
            field, value, "a name is letters, digits, '.', '_' and '-' only, no path separators"
        )


def _lora(lora: LoraConfig) -> None:
    _positive("lora.r", lora.r)
    _positive("lora.alpha", lora.alpha)
    _fraction("lora.dropout", lora.dropout)
    if not lora.target_modules:
        raise ConfigError("lora.target_modules", [], "name modules, or [all-linear]")


def _train(train: TrainConfig) -> None:
    for field in (
        "max_steps",
        "micro_batch_size",
        "gradient_accumulation",
        "eval_every_steps",
        "checkpoint_every_steps",
        "shard_bytes",
        "fidelity_items",
    ):
        _positive(f"train.{field}", getattr(train, field))
    for field in ("epochs", "learning_rate", "max_grad_norm"):
        if not 0 < getattr(train, field) < math.inf:
            raise ConfigError(f"train.{field}", getattr(train, field), "must be above 0, finite")
    _at_least("train.weight_decay", train.weight_decay, 0)
    if not 0 <= train.seed <= LARGEST_SEED:
        raise ConfigError("train.seed", train.seed, f"must be 0 to {LARGEST_SEED}")
    _fraction("train.warmup_fraction", train.warmup_fraction)
    if train.fidelity_tolerance is not None:
        _at_least("train.fidelity_tolerance", train.fidelity_tolerance, 0)


def _data(data: DataConfig) -> None:
    for field in ("max_length", "train_limit", "validation_limit"):
        _positive(f"data.{field}", getattr(data, field))
    for field in ("validation_fraction", "test_fraction"):
        _fraction(f"data.{field}", getattr(data, field))
    if data.validation is None and data.validation_fraction == 0:
        raise ConfigError(
            "data.validation_fraction",
            0,
            "the validation split would be empty; cut some, or give data.validation",
        )
    for field in ("train", "validation", "test"):
        if (source := getattr(data, field)) is None:
            continue
        if not source:
            raise ConfigError(f"data.{field}", source, "name a file or a Hub id")
        try:
            found = readers.find_source(source, split=field)
        except DataError as error:
            raise ConfigError(f"data.{field}", source, str(error).partition(": ")[2]) from error
        if isinstance(found, Path) and found.suffix.lower() not in readers.READERS:
            known = ", ".join(readers.READERS)
            raise ConfigError(f"data.{field}", source, f"unknown kind of file; use one of {known}")


def _evals(evals: EvalsConfig) -> None:
    _positive("evals.limit", evals.limit)
    _positive("evals.batch_size", evals.batch_size)
    for task, limit in evals.limits.items():
        _positive(f"evals.limits.{task}", limit)
        if task not in evals.tasks:
            remedy = f"evals.tasks has no such task; take the limit out: ~evals.limits.{task}"
            raise ConfigError(f"evals.limits.{task}", limit, remedy)
    if evals.num_fewshot is not None:
        _at_least("evals.num_fewshot", evals.num_fewshot, 0)
    _distinct("evals.tasks", evals.tasks)
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


def _probes(probes: ProbesConfig) -> None:
    for field in ("limit", "max_new_tokens", "batch_size"):
        _positive(f"probes.{field}", getattr(probes, field))
    _at_least("probes.temperature", probes.temperature, 0)
    if not 0 < probes.top_p <= 1:
        raise ConfigError("probes.top_p", probes.top_p, "must be above 0 and at most 1")
    _distinct("probes.files", probes.files)
    probe.read_probes(probes)


def _positive(field: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(field, value, "must be at least 1")


def _at_least(field: str, value: float, low: float) -> None:
    if not low <= value < math.inf:
        raise ConfigError(field, value, f"must be at least {low}, finite")


def _distinct(field: str, names: list[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(field, twice[0], "named twice; once is enough")


def _fraction(field: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(field, value, "must be at least 0 and below 1")
