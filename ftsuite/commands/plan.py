"""`ftsuite plan`: what a sweep will compute and what it costs; runs and fetches nothing."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite import devices
from ftsuite.commands import estimate, power, score_estimate
from ftsuite.commands.cached import cached_base
from ftsuite.commands.display import one_line, table, write, write_json
from ftsuite.commands.selection import overrides
from ftsuite.config import to_plain
from ftsuite.jsonfile import canonical
from ftsuite.models.sources import Base
from ftsuite.recipe import recipe
from ftsuite.records import ModelIdentity
from ftsuite.reporting import formats as fmt
from ftsuite.stages import BaseModel, Evaluate, HeldOutLossOf, Probe, Train
from ftsuite.store.computing import lookup
from ftsuite.studies import study, sweeper

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from ftsuite.config import RunConfig
    from ftsuite.records import RunRecord
    from ftsuite.store.stage import Stage

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


def plan(options: Namespace) -> int:
    """Print the cells of a sweep, their stages and the costs."""
    sweep = sweeper.compose(overrides(options))
    root = Path(sweep.configs[0].store.root)
    runs = [record for _, record in study.all_runs(root)]
    bases: dict[str, Base | None] = {}
    cells = []
    for entry, config in zip(sweep.manifest.cells, sweep.configs, strict=True):
        wanted = canonical(to_plain(config.model))
        if wanted not in bases:
            bases[wanted] = cached_base(config.model, root)
        cells.append(_cell(entry.label, entry.run_id, config, bases[wanted], root, runs))
    plain = {
        "study": sweep.manifest.study,
        "store": str(root),
        "cells": [_cell_object(cell) for cell in cells],
        "totals": _totals(cells),
        "detectable": power.detectable(sweep.configs),
        "held_out": sweeper.said_of_evals(sweep),
    }
    if options.json:
        write_json(plain)
    else:
        _write(plain, cells)
    return 0


def _cell(
    label: str,
    run_id: str,
    config: RunConfig,
    base: Base | None,
    root: Path,
    runs: Sequence[RunRecord],
) -> PlannedCell:
    target = devices.resolve(config.backend, config.model, devices.probe())
    speeds = estimate.speeds(runs, devices.describe(target.device), config)
    stages = recipe(config, target, (base or _stand_in(config)).model)
    data = lookup(root, stages.data) if base else None
    tokens = (
        estimate.stored_tokens(data.record, config.train) if data else estimate.file_tokens(config)
    )
    limit = config.data.validation_limit
    held_out = estimate.held_out_tokens(data.record, limit) if data else None

    @functools.cache
    def score(task: str) -> float | None:
        folder = base.folder if base else None
        return _over(score_estimate.score_tokens(task, config, runs, folder, root), speeds.score)

    def cost(stage: Stage[Any]) -> float | None:
        match stage:
            case Train():
                return _over(tokens, speeds.train)
            case Evaluate():
                return score(stage.name)
            case Probe():
                known = speeds.seconds.get(f"probe {stage.name}")
                return known or _over(estimate.probe_tokens(stage.probes), speeds.score)
            case HeldOutLossOf() if held_out is not None:
                return _over(held_out, speeds.score)
            case _:
                return speeds.seconds.get(stage.NAME, UNKNOWN[stage.NAME])

    planned = []
    for name, spec in stages.named():
        stored = base is not None and lookup(root, spec) is not None
        seconds = 0.0 if stored else cost(spec)
        planned.append(
            PlannedStage(
                stage=name,
                key=spec.key,
                stored=stored,
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
        tokens_estimated=data is None,
        stages=tuple(planned),
    )


def _stand_in(config: RunConfig) -> Base:
    """A base without weights: its keys tell which cells share a stage, and nothing else."""
    identity = ModelIdentity(id=config.model.id, source="hub", revision=TO_BE_FETCHED)
    model = BaseModel(source="hub", revision=TO_BE_FETCHED, hub_id=config.model.id)
    return Base(identity=identity, folder=Path(TO_BE_FETCHED), model=model)


def _over(tokens: int | None, speed: float) -> float | None:
    return None if tokens is None else tokens / speed


def _cell_object(cell: PlannedCell) -> dict[str, Any]:
    return {
        "label": cell.label,
        "run_id": cell.run_id,
        "model": "stored" if cell.has_model else TO_BE_FETCHED,
        "device": cell.device,
        "dtype": cell.dtype,
        "train_tokens": cell.train_tokens,
        "train_tokens_estimated": cell.tokens_estimated,
        "stages": [
            {**asdict(stage), "key": stage.key if cell.has_model else None} for stage in cell.stages
        ],
        "speeds": {
            "train_tokens_per_second": round(cell.speeds.train, 1),
            "score_tokens_per_second": round(cell.speeds.score, 1),
            "source": cell.speeds.source,
        },
    }


def _totals(cells: Sequence[PlannedCell]) -> dict[str, Any]:
    """Sums over distinct stages: what several cells share is counted once."""
    distinct = {stage.key: stage for cell in cells for stage in cell.stages}
    todo = [stage for stage in distinct.values() if not stage.stored]
    trained = {
        stage.key: cell.train_tokens
        for cell in cells
        for stage in cell.stages
        if stage.stage == "train" and not stage.stored
    }
    unknown = any(tokens is None for tokens in trained.values())
    return {
        "cells": len(cells),
        "stages": len(distinct),
        "stored": len(distinct) - len(todo),
        "to_compute": len(todo),
        "seconds": round(sum(stage.seconds or 0.0 for stage in todo), 1),
        "stages_without_estimate": sum(stage.seconds is None for stage in todo),
        "train_tokens": None if unknown else sum(tokens or 0 for tokens in trained.values()),
    }


def _write(plain: dict[str, Any], cells: Sequence[PlannedCell]) -> None:
    totals = plain["totals"]
    rows = [_row(cell) for cell in cells]
    headers = ("cell", "=run", ">train tokens", ">stored", ">time ≈", "to compute")
    unknown = totals["stages_without_estimate"]
    tokens = totals["train_tokens"]
    lines = [
        f"{totals['to_compute']} of {totals['stages']} distinct stages to compute, "
        f"{totals['stored']} stored; shared ones count once.",
        f"estimate: {'at least ' if unknown else ''}{fmt.seconds(totals['seconds'])}"
        + (f" ({fmt.plural(unknown, 'stage')} without an estimate)" if unknown else "")
        + ("" if tokens is None else f", {tokens:,} tokens to train on"),
    ]
    for source in dict.fromkeys(_speed_words(cell) for cell in cells):
        lines.append(f"speeds: {source}")
    if any(not cell.has_model for cell in cells):
        names = [cell.label for cell in cells if not cell.has_model]
        lines.append(one_line(f"model: to be fetched, for {fmt.enumerate_words(names)}"))
    lines += [one_line(power.words(found)) for found in plain["detectable"]]
    lines += [one_line(said) for said in plain["held_out"]]
    title = f"{plain['study']}: {fmt.plural(len(cells), 'cell')}, store {plain['store']}"
    write(table(title, headers, rows), *lines)


def _row(cell: PlannedCell) -> tuple[str, ...]:
    todo = [stage for stage in cell.stages if not stage.stored]
    known = [stage.seconds for stage in todo if stage.seconds is not None]
    tokens = fmt.NONE if cell.train_tokens is None else f"{cell.train_tokens:,}"
    if cell.tokens_estimated and cell.train_tokens is not None:
        tokens += " estimated"
    return (
        cell.label,
        cell.run_id,
        tokens,
        f"{len(cell.stages) - len(todo)}/{len(cell.stages)}",
        (fmt.seconds(sum(known)) + ("" if len(known) == len(todo) else " +")) if todo else "0 s",
        _names([stage.stage for stage in todo]) or "nothing",
    )


def _names(stages: Sequence[str]) -> str:
    """'train, eval-tuned (3)': the stages of several tasks or probes are counted."""
    kinds: dict[str, list[str]] = {}
    for name in stages:
        kinds.setdefault(name.partition(" ")[0], []).append(name)
    return ", ".join(
        names[0] if len(names) == 1 else f"{kind} ({len(names)})" for kind, names in kinds.items()
    )


def _speed_words(cell: PlannedCell) -> str:
    speeds = cell.speeds
    return f"train {speeds.train:,.0f}, score {speeds.score:,.0f} tokens/s ({speeds.source})"
