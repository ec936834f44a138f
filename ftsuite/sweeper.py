"""The sweep as one job: compose and validate every cell, run them, then report and track.

Hydra takes sweepers from the `hydra_plugins` namespace only, which it imports in every program of
the environment. Doing here what its own `multirun` does costs other programs nothing, and gives
`run`, `plan` and `preview` the same cells.
"""

from __future__ import annotations

import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, RunMode

from ftsuite import devices, environment, study
from ftsuite.compose import (
    COMPOSITION_ERRORS,
    chosen_sweep,
    cross_sweeps,
    from_hydra,
    readable,
    register,
)
from ftsuite.errors import ConfigError, StoreError, one_line
from ftsuite.records import CellEntry, StudyManifest
from ftsuite.resources import conf_dir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hydra.types import TaskFunction
    from omegaconf import DictConfig

    from ftsuite.config import RunConfig

Overrides = list[str]
LABEL_CHARACTERS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A composed and validated sweep."""

    context: HydraContext
    shared: DictConfig
    """What Hydra composed before the swept overrides, with its own node."""
    overrides: list[Overrides]
    """One list a cell."""
    configs: list[RunConfig]
    manifest: StudyManifest


def compose(arguments: list[str]) -> Sweep:
    """Compose and validate every cell of a command line.

    Args:
        arguments: overrides, such as `+sweep=lora_rank lora.r=32`.

    Raises:
        ConfigError: a cell cannot work.
    """
    register()
    GlobalHydra.instance().clear()
    search = create_automatic_config_search_path(None, None, str(conf_dir()))
    hydra = Hydra.create_main_hydra2(task_name="ftsuite", config_search_path=search)
    # Ours goes before the plugin's own joblib launcher, as it should.
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/joblib' is validated")
    try:
        shared = hydra.compose_config(
            config_name="config",
            overrides=cross_sweeps(arguments),
            run_mode=RunMode.MULTIRUN,
            with_log_configuration=False,
        )
        params = dict(shared.hydra.sweeper.params or {})
        parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(
            # What the command line says of a swept setting goes before the sweep's own values.
            [f"{key}={value}" for key, value in params.items()] + list(shared.hydra.overrides.task)
        )
        batch: list[Overrides] = BasicSweeper.split_arguments(parsed, None)[0]
        composed = [hydra.config_loader.load_sweep_config(shared, cell) for cell in batch]
    except (*COMPOSITION_ERRORS, ValueError, AttributeError) as error:
        raise readable(error) from error
    configs = [from_hydra(cell, chosen_sweep(cell.hydra)) for cell in composed]
    swept = set(params) | {o.get_key_element() for o in parsed if o.is_sweep_override()}
    return Sweep(
        context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(shared)),
        shared=shared,
        overrides=batch,
        configs=configs,
        manifest=_manifest(arguments, batch, configs, swept),
    )


def run(sweep: Sweep, task: TaskFunction) -> None:
    """Run every cell through the configured launcher, then report and track.

    Args:
        sweep: the cells.
        task: what runs one cell; importable, so that joblib's workers find it.

    Raises:
        ConfigError: an environment variable would change results; nothing has run.
        BackendUnavailable: a cell asks for a device that is not there; nothing has run.
        CellsFailed: some cells failed; the others are done and reported.
    """
    root = Path(sweep.configs[0].store.root)
    environment.check()
    for config in sweep.configs:
        devices.resolve(config.backend, config.model)
    # `plan` and `preview` need neither reports nor trackers.
    from ftsuite.finish import finish, require_a_way_to_finish

    require_a_way_to_finish(sweep.configs[0])
    _tell_left_out(root, sweep.manifest)
    study.write_manifest(root, sweep.manifest)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=sweep.context, task_function=task, config=sweep.shared
    )
    for result in launcher.launch(sweep.overrides, initial_job_idx=0):
        # Cells keep their failures as records; an exception here is a bug, or a disk that takes no
        # record. `result.return_value` would print a line of its own before it raises.
        if result.status is not JobStatus.COMPLETED:
            raise result._return_value
    finish(sweep.configs[0], sweep.manifest, root)


def _tell_left_out(root: Path, manifest: StudyManifest) -> None:
    """Say which cells of the study's last command this one leaves out of the report."""
    path = study.folder(root, manifest.study) / "study.json"
    if manifest.study == study.UNNAMED or not path.exists():
        return
    kept = {cell.run_id for cell in manifest.cells}
    try:
        earlier = study.read_manifest(root, manifest.study).cells
    except StoreError as error:
        # The file is about to be replaced; nothing else is lost.
        print(f"{manifest.study}: study.json is replaced: {one_line(error)}")
        return
    left = [cell for cell in earlier if cell.run_id not in kept]
    if left:
        # The labels of a cell then and now may be equal: another setting or default has changed.
        names = ", ".join(f"{cell.label} ({cell.run_id})" for cell in left)
        print(
            f"{manifest.study}: an earlier command's runs stay in the store, but the report will "
            f"not show them: {names}; give this command study=NAME to keep both reports"
        )


def _manifest(
    arguments: list[str], batch: list[Overrides], configs: list[RunConfig], swept: set[str]
) -> StudyManifest:
    names = {str(config.study) for config in configs}
    if len(names) > 1:
        raise ConfigError("study", sorted(names), "one sweep is one study; do not sweep it")
    entries: list[CellEntry] = []
    for overrides, config in zip(batch, configs, strict=True):
        run_id = study.run_id(config)
        label = _label(overrides, swept, config, run_id)
        if twin := next((e for e in entries if e.run_id == run_id), None):
            raise ConfigError("sweep", label, f"the same cell as {twin.label}; name it once")
        entries.append(CellEntry(run_id=run_id, label=label, overrides=tuple(overrides)))
    command = shlex.join(["python", "-m", "ftsuite", *arguments])
    return StudyManifest(study=names.pop(), command=command, cells=tuple(entries))


def _label(overrides: Sequence[str], swept: set[str], config: RunConfig, run_id: str) -> str:
    """What sets a cell apart: its swept settings, or else what the user set by hand."""
    mine = [o for o in overrides if o.partition("=")[0].lstrip("+") in swept]
    if mine:
        return ", ".join(o.lstrip("+") for o in mine)
    hidden = ("sweep", "study", "hydra", "tracking", "store")
    mine = [o.lstrip("+") for o in overrides if not o.lstrip("+").startswith(hidden)]
    label = ", ".join(mine)
    # A table's first column must stay narrow; the record lists every override.
    if 0 < len(label) <= LABEL_CHARACTERS:
        return label
    # Single runs share a study, so the run's id tells two of one model and data set apart.
    return f"{config.model.name} on {config.data.name} {run_id[:6]}"
