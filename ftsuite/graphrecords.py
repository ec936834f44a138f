"""`studies/<study>/graph.json`: which stages each cell of a study needs, for who watches it."""

from __future__ import annotations

from dataclasses import dataclass

from ftsuite.records import SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRef:
    """One stage of one cell; several cells may need the same."""

    name: str
    """What the study calls it, such as 'score tuned intent_test'."""
    stage: str
    """Kind of the stage, the store's folder: data, train, merge, …"""
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStages:
    """The stages of one cell, in order."""

    run_id: str
    label: str
    place: str
    """Such as '2/4 lora.r=4'."""
    stages: tuple[StageRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyGraph:
    """The stages of all cells of the study's latest command."""

    schema_version: int = SCHEMA_VERSION
    study: str
    cells: tuple[CellStages, ...]
