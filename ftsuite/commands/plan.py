"""`ftsuite plan`: what a sweep will compute and what it costs; runs and fetches nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ftsuite import devices
from ftsuite.commands import estimate, power, score_estimate
from ftsuite.commands.cached import cached_base
from ftsuite.commands.display import MOST_ROWS, left_out, one_line, table, write, write_json
from ftsuite.commands.selection import overrides
from ftsuite.models.sources import Base
from ftsuite.recipe import recipe
from ftsuite.records import ModelIdentity
from ftsuite.reporting import formats as fmt
from ftsuite.stages import BaseModel
from ftsuite.store.computing import lookup
from ftsuite.studies import study, sweeper

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

    from ftsuite.config import RunConfig
    from ftsuite.records import RunRecord
    from ftsuite.stages import PrepareData
    from ftsuite.store.stage import Stage

T = TypeVar("T")

TO_BE_FETCHED = "to be fetched"


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


def plan(options: Namespace) -> int:
    """Print the cells of a sweep, their stages and the costs."""
    sweep = sweeper.compose(overrides(options))
    root = Path(sweep.configs[0].store.root)
    known = Known(
        root=root,
        environment=devices.probe(),
        runs=[record for _, record in study.all_runs(root)],
    )
    cells = [
        _cell(entry.label, entry.run_id, config, known)
        for entry, config in zip(sweep.manifest.cells, sweep.configs, strict=True)
    ]
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
        _write(plain, cells, most=None if options.all else MOST_ROWS)
    return 0


def _cell(label: str, run_id: str, config: RunConfig, known: Known) -> PlannedCell:
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
    tokens = _train_tokens(config, stages.data if stored["data"] else None, known)
    costs = _costs(config, base, speeds, len(stages.base.probes), known)
    costs["train"] = _over(tokens, speeds.train)
    planned = []
    for name, one in stages.named():
        seconds = 0.0 if stored[name] else costs[one.NAME]
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


def _train_tokens(config: RunConfig, data: PrepareData | None, known: Known) -> int | None:
    """Tokens that training goes through, by the stored data stage or else by the file."""
    if data is None:
        parts = config.data, config.packing
        size = known.once("file", parts, lambda: estimate.file_size(config))
        return None if size is None else estimate.train_tokens(*size, config.train)
    entry = known.once("data", data.key, lambda: lookup(known.root, data))
    assert entry is not None
    return estimate.stored_tokens(entry.record, config.train)


def _costs(
    config: RunConfig, base: Base | None, speeds: estimate.Speeds, probes: int, known: Known
) -> dict[str, float | None]:
    """Seconds of one stage of each kind, training apart; None if unknown."""
    evals, root = config.evals, known.root
    folder = base.folder if base else None
    scored = known.once(
        "scored",
        (evals, config.model.id, folder),
        lambda: score_estimate.score_tokens(config, known.runs, folder, root),
    )
    probed = known.once(
        "probed",
        (config.probes, evals.path),
        lambda: estimate.probe_tokens(config.probes, evals.path),
    )
    return {
        "check": estimate.CHECK_SECONDS,
        "loss": estimate.CHECK_SECONDS,
        "data": speeds.seconds.get("data", estimate.DATA_SECONDS),
        "merge": speeds.seconds.get("merge", estimate.MERGE_SECONDS),
        "eval": _over(scored, speeds.score * max(1, len(evals.tasks))),
        "probe": speeds.seconds.get("probe") or _over(probed, speeds.score * max(1, probes)),
    }


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


def _write(plain: dict[str, Any], cells: Sequence[PlannedCell], most: int | None) -> None:
    totals = plain["totals"]
    rows = [_row(cell) for cell in cells[:most]]
    headers = ("cell", "=run", ">train tokens", ">stored", ">time ≈", "to compute")
    unknown = totals["stages_without_estimate"]
    tokens = totals["train_tokens"]
    lines = [
        *left_out(len(cells), most, "cell"),
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
        _kinds(todo) or "nothing",
    )


def _kinds(stages: Sequence[PlannedStage]) -> str:
    """Their names in order; of several tasks or probes, how many."""
    names: dict[str, list[str]] = {}
    for stage in stages:
        names.setdefault(stage.stage.partition(" ")[0], []).append(stage.stage)
    return ", ".join(
        found[0] if len(found) == 1 else f"{kind} ({len(found)})" for kind, found in names.items()
    )


def _speed_words(cell: PlannedCell) -> str:
    speeds = cell.speeds
    return f"train {speeds.train:,.0f}, score {speeds.score:,.0f} tokens/s ({speeds.source})"
