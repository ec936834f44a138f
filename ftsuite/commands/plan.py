"""`ftsuite plan`: what a sweep will compute and what it costs; runs and fetches nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite import devices
from ftsuite.commands import power
from ftsuite.commands.display import MOST_ROWS, left_out, one_line, table, write, write_json
from ftsuite.commands.planned import TO_BE_FETCHED, Known, planned_cell
from ftsuite.commands.selection import overrides
from ftsuite.reporting import formats as fmt
from ftsuite.studies import study, sweeper

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from ftsuite.commands.planned import PlannedCell


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
        planned_cell(entry.label, entry.run_id, config, known)
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
