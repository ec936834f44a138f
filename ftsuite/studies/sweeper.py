"""The sweep as one job: compose and validate every cell, run them, then report and track.

Hydra takes sweepers from the `hydra_plugins` namespace only, which it imports in every program of
the environment. Doing here what its own `multirun` does costs other programs nothing, and gives
`run`, `plan` and `preview` the same cells.
"""

from __future__ import annotations

import itertools
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import RangeSweep
from hydra.errors import HydraException
from hydra.types import RunMode

from ftsuite import devices, environment
from ftsuite.errors import CellsFailed, ConfigError, StoreError, one_line
from ftsuite.records import CellEntry, StudyManifest
from ftsuite.scoring import heldout
from ftsuite.studies import study
from ftsuite.studies.compose import Known, chosen_sweep, cross_sweeps, from_hydra, new_hydra
from ftsuite.studies.explain import COMPOSITION_ERRORS, readable
from ftsuite.studies.overrides import parse, unresolved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hydra.core.override_parser.types import Override

    from ftsuite.config import RunConfig
    from ftsuite.events import Event, Source

Overrides = list[str]
LABEL_CHARACTERS = 40
MOST_NAMED = 20
"""Cells that one line names; it says how many more there are."""
MOST_CELLS = 10_000
"""More are a mistake (`range(0,1e9)`): each has to be composed, and trained for minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A composed and validated sweep."""

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
    _refuse_launchers(arguments)
    hydra, loader = new_hydra()
    try:
        shared = hydra.compose_config(
            config_name="config",
            overrides=cross_sweeps(arguments),
            run_mode=RunMode.MULTIRUN,
            with_log_configuration=False,
        )
        # Interpolations are each cell's own: lora.alpha=${lora.r} follows a swept lora.r.
        params = unresolved(shared.hydra.sweeper.params) or {}
        # What the command line says of a swept setting goes before the sweep's own values.
        lines = [f"{key}={value}" for key, value in params.items()]
        parsed = parse(lines + unresolved(shared.hydra.overrides.task), loader)
        _check_size(parsed)
        batch: list[Overrides] = BasicSweeper.split_arguments(parsed, None)[0]
        cells = list(loader.cells(shared, batch))
    except (*COMPOSITION_ERRORS, ValueError, AttributeError, RecursionError) as error:
        raise readable(error) from error
    chosen, known = chosen_sweep(shared.hydra), Known()
    configs = [
        from_hydra(cell, chosen, lines, known) for cell, lines in zip(cells, batch, strict=True)
    ]
    swept = set(params) | {o.get_key_element() for o in parsed if o.is_sweep_override()}
    return Sweep(
        overrides=batch,
        configs=configs,
        manifest=_manifest(arguments, batch, configs, swept),
    )


def _refuse_launchers(arguments: list[str]) -> None:
    """Hydra's launchers run whole cells; here an executor runs the stages of all cells.

    Raises:
        ConfigError: says what to set instead.
    """
    for argument in arguments:
        name, _, value = argument.lstrip("+").partition("=")
        if name == "hydra/launcher" and value != "basic":
            raise ConfigError(
                name, value, "there are no launchers; set executor.workers=2 for two at once"
            )


def _check_size(overrides: list[Override]) -> None:
    """Refuse sweeps of no cell, of far too many, and over sweeps.

    Raises:
        ConfigError: names the setting.
    """
    # Of two that name one setting, the later one counts.
    values = {one.get_key_element().lstrip("+"): one for one in overrides}
    sizes = {}
    for key, one in values.items():
        if not one.is_sweep_override():
            continue
        text = one.get_value_string()
        if key == "sweep":
            raise ConfigError(key, text, "write +sweep=a,b for the grid of two sweeps")
        try:
            sizes[key] = _number_of_values(one)
        except (HydraException, ArithmeticError, ValueError) as error:
            remedy = "not a list of values, nor a range with a step that leads to its end"
            raise ConfigError(key, text, remedy) from error
        if sizes[key] == 0:
            raise ConfigError(key, text, "no value is in it; give at least one")
    if (cells := math.prod(sizes.values())) > MOST_CELLS:
        largest = max(sizes, key=lambda key: sizes[key])
        remedy = f"the sweep would have more than {MOST_CELLS:,} cells; take fewer values"
        raise ConfigError(largest, values[largest].get_value_string(), remedy)
    assert cells > 0


def _number_of_values(sweep: Override) -> int:
    """Count at most one more than `MOST_CELLS`: a range can be endless."""
    value = sweep.value()
    source = value.range() if isinstance(value, RangeSweep) else sweep.sweep_iterator()
    return sum(1 for _ in itertools.islice(source, MOST_CELLS + 1))


def run(sweep: Sweep) -> None:
    """Run every cell, then report and track.

    Args:
        sweep: the cells.

    Raises:
        ConfigError: an environment variable would change results; nothing has run.
        BackendUnavailable: a cell asks for a device that is not there; nothing has run.
        CellsFailed: some cells failed; the others are done and reported.
    """
    root = Path(sweep.configs[0].store.root)
    environment.check()
    there = devices.probe()
    for config in sweep.configs:
        devices.resolve(config.backend, config.model, there)
    # `plan` and `preview` need neither reports nor trackers, nor what computes.
    from ftsuite.display import display
    from ftsuite.studies import running
    from ftsuite.studies.finish import finish, require_a_way_to_finish
    from ftsuite.tracking.live import live

    require_a_way_to_finish(sweep.configs[0])
    _tell_left_out(root, study.joined(root, sweep.manifest))
    for line in said_of_evals(sweep):
        print(line)
    cells = study.cells_of(sweep.manifest, sweep.configs)
    configs = {cell.entry.run_id: cell.config for cell in cells}
    with study.command(root, sweep.manifest):
        prepared = running.prepare(sweep.manifest, cells, root)
        with (
            live(sweep.configs[0].tracking, sweep.manifest, configs, root) as track,
            display(cells=len(cells), done=prepared.num_stored) as show,
        ):

            def listen(source: Source, event: Event) -> None:
                show(source, event)
                track(source, event)

            statuses = running.run(prepared, listen)
        finish(sweep.configs[0], sweep.manifest, root)
    if failed := statuses.count("failed"):
        # Their records are complete, or `finish` had raised.
        raise CellsFailed(
            f"{failed} of {len(statuses)} cells failed before anything was computed; the results "
            "of the earlier run stay"
        )


def said_of_evals(sweep: Sweep) -> list[str]:
    """What will be scored on held-out rows, and what no report will be able to say.

    Raises:
        DataError: a file or a row cannot be used.
    """
    # What is said depends on these alone, and most cells agree in them.
    distinct: dict[str, RunConfig] = {}
    for config in sweep.configs:
        parts = config.data, config.evals, config.probes.files, config.store.root
        distinct.setdefault(repr(parts), config)
    configs = list(distinct.values())
    said = [line for config in configs for line in (*heldout.lines(config), *_others(config))]
    if not any(config.evals.tasks or config.probes.files for config in configs):
        said.append(
            "nothing will be evaluated: evals.tasks and probes.files are empty, so the report can "
            "say nothing of the models"
        )
    elif not any(config.evals.rank_by for config in configs):
        said.append(
            "no task ranks the cells: the report compares each with the base and recommends none; "
            "set evals.rank_by, or evals=own to score held-out rows"
        )
    elif not any(config.evals.headline for config in configs):
        said.append("no task is reported first; set evals.headline to a metric of a test split")
    return list(dict.fromkeys(said))


def _others(config: RunConfig) -> list[str]:
    """What is scored beside the held-out rows, where rows are held out."""
    if not config.evals.held_out:
        return []
    more = [name for name in config.evals.tasks if not name.startswith(f"{config.data.name}_")]
    probes = [Path(name).stem for name in config.probes.files]
    words = [f"tasks {', '.join(more)}"] if more else []
    words += [f"probes {', '.join(probes)}"] if probes else []
    return [f"beside them: {'; '.join(words)}"] if words else []


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
        names = ", ".join(f"{cell.label} ({cell.run_id})" for cell in left[:MOST_NAMED])
        names += f" and {len(left) - MOST_NAMED:,} more" if len(left) > MOST_NAMED else ""
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
    entries: dict[str, CellEntry] = {}
    for overrides, config in zip(batch, configs, strict=True):
        run_id = study.run_id(config)
        label = _label(overrides, swept, config, run_id)
        if twin := entries.get(run_id):
            raise ConfigError("sweep", label, f"the same cell as {twin.label}; name it once")
        entries[run_id] = CellEntry(run_id=run_id, label=label, overrides=tuple(overrides))
    command = shlex.join(["python", "-m", "ftsuite", *arguments])
    return StudyManifest(study=names.pop(), command=command, cells=tuple(entries.values()))


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
