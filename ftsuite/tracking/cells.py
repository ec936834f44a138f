"""What trackers are given: a cell's name, configuration and axes; its result; its live run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ftsuite.config import TrackingConfig
    from ftsuite.records import RunRecord, StudyManifest
    from ftsuite.tracking.curve import Point

Scalar = str | float | int | bool
_NO_AXIS = ("sweep", "study", "hydra", "tracking", "store")
"""Settings that say how a study is run, not what its cells are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What a tracker needs besides the cells."""

    config: TrackingConfig
    name: str
    command: str
    """The command that reproduces the study, without secrets."""
    report: Path | None
    """Folder of the rendered report; need not exist. None while cells train."""
    folder: Path
    """Where trackers write: `<store>/tracking`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """A cell, as trackers name and describe it; without secrets and paths of the machine."""

    run_id: str
    label: str
    config: dict[str, Any]
    axes: dict[str, Scalar]
    """What sets the cell apart in its study, such as {'lora.r': 4}."""

    @property
    def model(self) -> str:
        """Short name of the base model; empty where the configuration has none."""
        return str(self.config.get("model", {}).get("name") or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished cell."""

    cell: Tracked
    record: RunRecord
    adjusted: dict[str, float]
    """Metric → Holm p-value over all comparisons of the study with the base."""
    points: tuple[Point, ...]
    """The curve of its training, by rising step."""


class LiveRun(Protocol):
    """A run that is written while its cell trains."""

    def log(self, point: Point) -> None:
        """Add values; `point.step` never falls."""

    def close(self, *, failed: bool) -> None:
        """End the run."""


class CellTracker(Protocol):
    """Where cells are tracked."""

    def __init__(self, study: Study) -> None: ...

    @staticmethod
    def check(config: TrackingConfig) -> None:
        """Raise BackendUnavailable, with a remedy, where this tracker cannot work."""

    def open(self, cell: Tracked) -> LiveRun:
        """Begin a run while the cell trains; what was there of the same cell is replaced."""

    def log(self, result: Result) -> None:
        """Write one finished cell; what was there of the same cell is replaced."""

    def stop(self) -> None:
        """Give up what live runs have left open after a failure, so that `log` can begin anew."""

    def lines(self, cells: int) -> list[str]:
        """Say where the `cells` cells just tracked lie, one line a fact."""

    def live_lines(self) -> list[str]:
        """Say how to look at the runs of cells that still train, one line a fact."""


def axes(
    manifest: StudyManifest, configs: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Scalar]]:
    """Find what sets the cells of a study apart.

    Args:
        manifest: the study. Of a single cell, every override is an axis.
        configs: run id → configuration, as plain values; cells without one are left out.

    Returns:
        Run id → setting → its value in the configuration, or the name of the chosen file
        (`packing=bfd`) where the setting is a group.
    """
    chosen = {cell.run_id: _settings(cell.overrides) for cell in manifest.cells}
    names = list(dict.fromkeys(name for settings in chosen.values() for name in settings))
    if len(chosen) > 1:
        names = [
            name for name in names if len({settings.get(name) for settings in chosen.values()}) > 1
        ]
    return {
        run_id: {
            name: value
            for name in names
            if (value := _value(name, chosen.get(run_id, {}).get(name), config)) is not None
        }
        for run_id, config in configs.items()
    }


def _settings(overrides: Sequence[str]) -> dict[str, str]:
    named = (override.lstrip("+").partition("=") for override in overrides)
    return {name: text for name, _, text in named if re.split("[./]", name)[0] not in _NO_AXIS}


def _value(name: str, text: str | None, config: dict[str, Any]) -> Scalar | None:
    found: Any = config
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, (bool, int, float, str)):
        return found
    if text is None or isinstance(found, dict):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int, float)) else text
