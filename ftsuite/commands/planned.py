"""A planned cell: its stages, whether they are stored, and what each will cost."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ftsuite import devices
from ftsuite.commands import estimate, score_estimate
from ftsuite.commands.cached import cached_base
from ftsuite.models.sources import Base
from ftsuite.recipe import recipe
from ftsuite.records import ModelIdentity
from ftsuite.stages import BaseModel, Evaluate, HeldOutLossOf, Probe, Train
from ftsuite.store.computing import lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ftsuite.config import RunConfig
    from ftsuite.records import DataSummary, RunRecord
    from ftsuite.stages import PrepareData
    from ftsuite.store.stage import Stage

T = TypeVar("T")

TO_BE_FETCHED = "to be fetched"
UNKNOWN = {
    "data": estimate.DATA_SECONDS,
    "loss": estimate.CHECK_SECONDS,
    "merge": estimate.MERGE_SECONDS,
    "check": estimate.CHECK_SECONDS,
}
"""Seconds of a stage of which neither its tokens nor earlier runs tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """One stage of one cell."""

    stage: str
    key: str
    """Only for telling equal stages while the model is not there."""
    stored: bool
    seconds: float | None
    """Still to be spent, an estimate; None if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """One cell of the sweep."""

    label: str
    run_id: str
    has_model: bool
    device: str
    dtype: str
    speeds: estimate.Speeds
    train_tokens: int | None
    tokens_estimated: bool
    stages: tuple[PlannedStage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What cells have in common: found out once a command, for a sweep may have thousands."""

    root: Path
    environment: devices.Environment
    runs: Sequence[RunRecord]
    """Of the store."""
    found: dict[str, Any] = field(default_factory=dict)

    def once(self, what: str, parts: object, find: Callable[[], T]) -> T:
        """`find()`, or what it gave when `what` was asked for with equal `parts`."""
        mark = f"{what} {parts!r}"
        if mark not in self.found:
            self.found[mark] = find()
        found: T = self.found[mark]
        return found


def planned_cell(label: str, run_id: str, config: RunConfig, known: Known) -> PlannedCell:
    """Plan one cell.

    Args:
        label: of the cell.
        run_id: of the cell.
        config: the cell's.
        known: what other cells have found out, which is added to.
    """
    root, model = known.root, config.model
    base = known.once("base", model, lambda: cached_base(model, root))
    target = devices.resolve(config.backend, model, known.environment)
    speeds = known.once(
        "speeds",
        (target.device, model.id, config.probes),
        lambda: estimate.speeds(known.runs, devices.describe(target.device), config),
    )
    stages = recipe(config, target, (base or _stand_in(config)).model)
    stored = {name: base is not None and _is_stored(one, known) for name, one in stages.named()}
    data = _summary(stages.data, known) if stored["data"] else None
    tokens = _train_tokens(config, data, known)
    cost = functools.partial(
        _seconds, config=config, speeds=speeds, base=base, data=data, tokens=tokens, known=known
    )
    planned = []
    for name, one in stages.named():
        seconds = 0.0 if stored[name] else cost(one)
        planned.append(
            PlannedStage(
                stage=name,
                key=one.key,
                stored=stored[name],
                seconds=None if seconds is None else round(seconds, 1),
            )
        )
    return PlannedCell(
        label=label,
        run_id=run_id,
        has_model=base is not None,
        device=target.device,
        dtype=target.dtype,
        speeds=speeds,
        train_tokens=tokens,
        tokens_estimated=not stored["data"],
        stages=tuple(planned),
    )


def _is_stored(stage: Stage[Any], known: Known) -> bool:
    return known.once("stored", stage.key, lambda: lookup(known.root, stage) is not None)


def _summary(data: PrepareData, known: Known) -> DataSummary:
    entry = known.once("data", data.key, lambda: lookup(known.root, data))
    assert entry is not None
    return entry.record


def _train_tokens(config: RunConfig, data: DataSummary | None, known: Known) -> int | None:
    """Tokens that training goes through, by the stored data stage or else by the file."""
    if data is not None:
        return estimate.stored_tokens(data, config.train)
    parts = config.data, config.packing
    size = known.once("file", parts, lambda: estimate.file_size(config))
    return None if size is None else estimate.train_tokens(*size, config.train)


def _seconds(
    stage: Stage[Any],
    *,
    config: RunConfig,
    speeds: estimate.Speeds,
    base: Base | None,
    data: DataSummary | None,
    tokens: int | None,
    known: Known,
) -> float | None:
    """Seconds that a stage will take; None if unknown.

    Args:
        stage: of the cell.
        config: the cell's.
        speeds: of its model on this machine.
        base: the model, where it is here.
        data: the stored data stage's, if it is stored.
        tokens: that training goes through.
        known: what other cells have found out.
    """
    match stage:
        case Train():
            return _over(tokens, speeds.train)
        case Evaluate():
            folder = base.folder if base else None
            scored = known.once(
                "scored",
                (stage.name, config.evals, config.model.id, folder),
                lambda: score_estimate.score_tokens(
                    stage.name, config, known.runs, folder, known.root
                ),
            )
            return _over(scored, speeds.score)
        case Probe():
            probed = known.once("probed", stage.probes, lambda: estimate.probe_tokens(stage.probes))
            return speeds.seconds.get(f"probe {stage.name}") or _over(probed, speeds.score)
        case HeldOutLossOf() if data is not None:
            limit = config.data.validation_limit
            return _over(estimate.held_out_tokens(data, limit), speeds.score)
        case _:
            return speeds.seconds.get(stage.NAME, UNKNOWN[stage.NAME])


def _stand_in(config: RunConfig) -> Base:
    """A base without weights: its keys tell which cells share a stage, and nothing else."""
    identity = ModelIdentity(id=config.model.id, source="hub", revision=TO_BE_FETCHED)
    model = BaseModel(source="hub", revision=TO_BE_FETCHED, hub_id=config.model.id)
    return Base(identity=identity, folder=Path(TO_BE_FETCHED), model=model)


def _over(tokens: int | None, speed: float) -> float | None:
    return None if tokens is None else tokens / speed
