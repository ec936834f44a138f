"""A study as one graph: the union of its cells' stages by key, and which of them are missing."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite import devices
from ftsuite.config import to_plain
from ftsuite.errors import FtsuiteError
from ftsuite.executors.schedule import Task
from ftsuite.graphrecords import CellStages, StageRef, StudyGraph
from ftsuite.jsonfile import canonical
from ftsuite.models import embedded, sources
from ftsuite.recipe import Recipe, recipe
from ftsuite.store.entries import folder_of as entry_folder_of
from ftsuite.store.pruning import is_pruned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from ftsuite.devices import Environment, Target
    from ftsuite.models.sources import Base
    from ftsuite.store.stage import Stage
    from ftsuite.studies.study import Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A cell with its stages."""

    cell: Cell
    target: Target
    base: Base
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Unplanned:
    """A cell whose stages cannot be known, and why."""

    cell: Cell
    target: Target
    error: FtsuiteError


def plan(
    cells: Sequence[Cell], root: Path, there: Environment, on_event: Callable[[str, str], None]
) -> list[Planned | Unplanned]:
    """Find every cell's base model, fetching it where needed, and describe its stages.

    Args:
        cells: in the study's order.
        root: the store.
        there: what the environment that computes tells of itself.
        on_event: told in words, after the cell's place, of what takes long.

    Raises:
        BackendUnavailable: a cell asks for a device that is not there.
    """
    bases: dict[str, Base | FtsuiteError] = {}
    planned: list[Planned | Unplanned] = []
    for cell in cells:
        target = devices.resolve(cell.config.backend, cell.config.model, there)
        wanted = canonical(to_plain(cell.config.model))
        if wanted not in bases:
            bases[wanted] = _base(cell, root, on_event)
        base = bases[wanted]
        try:
            if isinstance(base, FtsuiteError):
                raise base
            stages = recipe(cell.config, target, base.model)
            planned.append(Planned(cell=cell, target=target, base=base, recipe=stages))
        except FtsuiteError as error:
            planned.append(Unplanned(cell=cell, target=target, error=error))
    _fetch_standard(planned, root)
    return planned


def _base(cell: Cell, root: Path, on_event: Callable[[str, str], None]) -> Base | FtsuiteError:
    try:
        return sources.resolve(
            cell.config.model, root, on_event=lambda text: on_event(cell.place, text)
        )
    except FtsuiteError as error:
        return error


def _fetch_standard(planned: Iterable[Planned | Unplanned], root: Path) -> None:
    """What comes from outside is fetched here: a worker may have no network."""
    if any(
        score.standard is not None
        for one in planned
        if isinstance(one, Planned)
        for score in one.recipe.base.scores.values()
    ):
        embedded.standard_data(root)


def missing(planned: Iterable[Planned], root: Path) -> list[Task]:
    """The stages whose results are not in the store, in the order of the cells."""
    found: dict[str, tuple[Stage[Any], str, str]] = {}
    needed_by: dict[str, list[str]] = {}
    is_there = functools.cache(lambda stage, key: entry_folder_of(root, stage, key).exists())
    is_freed = functools.cache(lambda stage, key: is_pruned(entry_folder_of(root, stage, key)))
    checks: dict[str, str] = {}
    for one in planned:
        named = list(one.recipe.named())
        wanted = {stage.key for _, stage in named if not is_there(stage.NAME, stage.key)}
        # What is to be built on files that were freed needs them again: backwards, for those may
        # need others.
        for _, stage in reversed(named):
            if stage.key in wanted:
                freed = (up for up in stage.upstreams if is_freed(up.stage, up.key))
                wanted.update(up.key for up in freed)
        for name, stage in named:
            if stage.key in wanted:
                found.setdefault(stage.key, (stage, name, one.cell.place))
                needed_by.setdefault(stage.key, []).append(one.cell.entry.run_id)
                if one.recipe.is_of_tuned(name):
                    checks[stage.key] = one.recipe.check.key
    return [
        Task(
            stage=stage,
            name=name,
            place=place,
            run_ids=tuple(needed_by[key]),
            # Nothing is asked of a merged model before it is proved to be its adapter.
            needs=frozenset({one.key for one in stage.upstreams} | {checks.get(key, "")})
            & found.keys(),
        )
        for key, (stage, name, place) in found.items()
    ]


def for_watchers(study: str, planned: Iterable[Planned]) -> StudyGraph:
    """What `ftsuite watch` reads: the stages of each cell."""
    return StudyGraph(
        study=study,
        cells=tuple(
            CellStages(
                run_id=one.cell.entry.run_id,
                label=one.cell.entry.label,
                place=one.cell.place,
                stages=tuple(
                    StageRef(name=name, stage=stage.NAME, key=stage.key)
                    for name, stage in one.recipe.named()
                ),
            )
            for one in planned
        ),
    )
