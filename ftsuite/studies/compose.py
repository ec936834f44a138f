"""From Hydra's untyped configuration to a validated `RunConfig`."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from ftsuite.config import RunConfig, to_plain
from ftsuite.errors import ConfigError, FtsuiteError
from ftsuite.resources import conf_dir
from ftsuite.secrets import refuse_settings
from ftsuite.studies import suite
from ftsuite.studies.explain import readable, unknown
from ftsuite.studies.loader import Loader
from ftsuite.studies.overrides import MAPPINGS, unresolved
from ftsuite.studies.study import UNNAMED
from ftsuite.studies.validate import validate, validate_settings

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the cells of a sweep have in common: found out once, not once a cell."""

    passed: set[str] = field(default_factory=set)
    """Checks, with the sections of the configuration that have passed them (`validate`)."""
    resolved: dict[str, bytes] = field(default_factory=dict)
    """What lists the tasks → evals and gates with their tasks listed, pickled."""


def new_hydra() -> tuple[Hydra, Loader]:
    """Return Hydra and its loader, with this suite's schema and files."""
    ConfigStore.instance().store(name="schema", node=RunConfig)
    search = create_automatic_config_search_path(None, None, str(conf_dir()))
    GlobalHydra.instance().clear()
    loader = Loader(search)
    hydra = Hydra(task_name="ftsuite", config_loader=loader)
    GlobalHydra.instance().initialize(hydra)
    return hydra, loader


def search_in(folder: str | None) -> list[str]:
    """The override that lets Hydra find the groups' files of a folder too.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder:
        return []
    if not os.path.isdir(folder):
        raise ConfigError("--config-dir", folder, "no such folder")
    return [f"hydra.searchpath=[file://{os.path.abspath(folder)}]"]


def from_hydra(
    config: DictConfig,
    sweep: str | None,
    overrides: Iterable[str],
    known: Known | None = None,
) -> RunConfig:
    """Return the typed configuration of one cell, its tasks listed, validated.

    Rows that are held out for evaluation are read and stored the first time that they are asked
    for.

    Args:
        config: what Hydra composed, without its own node.
        sweep: Hydra's choice of the group `sweep`: a name, a list of names, or None.
        overrides: of the command line, as they were written.
        known: what was found out of earlier cells of the same sweep, which is added to.

    Raises:
        ConfigError: a value cannot work.
    """
    _refuse_unknown(config)
    try:
        typed = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise _culprit(config, error) from error
    assert isinstance(typed, RunConfig)
    if typed.study is None:
        typed.study = _sweep_name(sweep)
    known = Known() if known is None else known
    _refuse_secrets(typed, known.passed)
    typed.data.name = suite.data_name(typed.data)
    validate_settings(typed, known.passed)
    _resolve(typed, {line.partition("=")[0].lstrip("+~") for line in overrides}, known.resolved)
    validate(typed, known.passed)
    return typed


def _refuse_secrets(config: RunConfig, passed: set[str]) -> None:
    for name, value in to_plain(config).items():
        mark = f"no secrets in {name} {value!r}"
        if mark not in passed:
            refuse_settings({name: value})
            passed.add(mark)


def _resolve(config: RunConfig, typed: set[str], resolved: dict[str, bytes]) -> None:
    """List the tasks (`suite.resolve`), which equal settings give equally."""
    mark = repr((config.data, config.evals, config.gates, config.store.root, sorted(typed)))
    if mark not in resolved:
        suite.resolve(config, typed)
        resolved[mark] = pickle.dumps((config.evals, config.gates))
    # A cell's own copy: settings can be changed.
    config.evals, config.gates = pickle.loads(resolved[mark])


def _culprit(config: DictConfig, error: OmegaConfBaseException) -> FtsuiteError:
    """The error with the setting's name, which OmegaConf does not tell of an interpolation."""
    plain: Any = OmegaConf.to_container(config)
    for section in plain:
        for name in plain[section] if isinstance(plain[section], dict) else [""]:
            key = f"{section}.{name}".rstrip(".")
            try:
                OmegaConf.select(config, key)
            except InterpolationResolutionError as unresolved:
                said = str(unresolved).partition("\n")[0]
                return ConfigError(key, plain[section][name] if name else plain[section], said)
    return readable(error, plain)


def _refuse_unknown(config: DictConfig) -> None:
    """OmegaConf lets nodes keep keys that `+key=value` has added."""
    plain: Any = OmegaConf.to_container(config)
    _refuse_unknown_in(plain, RunConfig, "")


def _refuse_unknown_in(plain: dict[str, Any], schema: Any, prefix: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for key, value in plain.items():
        if key not in fields:
            raise unknown(f"{prefix}{key}", value)
        if isinstance(value, dict) and f"{prefix}{key}" not in MAPPINGS:
            _refuse_unknown_in(value, fields[key].default_factory, f"{prefix}{key}.")


def chosen_sweep(hydra: Any) -> str | None:
    """Return what `+sweep=` chose, one name or a list of names, from Hydra's own node."""
    if (choice := hydra.runtime.choices.get("sweep")) is not None:
        return str(choice)
    # Hydra names no choice where a group is given several: two crossed sweeps.
    crossed = (re.fullmatch(r"\+*sweep=(.*)", line) for line in unresolved(hydra.overrides.task))
    return next((match[1] for match in crossed if match), None)


def _sweep_name(sweep: str | None) -> str:
    return "-".join(re.findall(r"\w+", sweep)) if sweep else UNNAMED


def cross_sweeps(arguments: list[str]) -> list[str]:
    """Turn `+sweep=a,b` into the grid of both.

    Hydra would take it for a sweep over sweeps and silently run the parameters of neither.
    """
    return [
        f"+sweep=[{argument.partition('=')[2]}]"
        if re.fullmatch(r"\+?\+?sweep=\w+(,\w+)+", argument)
        else argument
        for argument in arguments
    ]
