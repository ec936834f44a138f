"""From Hydra's untyped configuration to a validated `RunConfig`."""

from __future__ import annotations

import difflib
import re
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftsuite.config import RunConfig
from ftsuite.errors import ConfigError, FtsuiteError
from ftsuite.validate import validate


def register() -> None:
    """Put the schema where Hydra finds it, as `schema` in the defaults list."""
    ConfigStore.instance().store(name="schema", node=RunConfig)


def from_hydra(config: DictConfig, sweep: object) -> RunConfig:
    """Return the typed configuration of one cell, validated.

    Args:
        config: what Hydra composed.
        sweep: Hydra's choice of the group `sweep`: a name, a list of names, or None.

    Raises:
        ConfigError: a value cannot work.
    """
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    # An interpolation may only refer to settings, so the copy needs nothing of Hydra's node.
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), own))
    except OmegaConfBaseException as error:
        raise readable(error) from error
    assert isinstance(typed, RunConfig)
    if typed.study is None:
        typed.study = _sweep_name(sweep)
    validate(typed)
    return typed


def _sweep_name(sweep: object) -> str:
    if sweep is None:
        return "single"
    # Two crossed sweeps are one choice with two names.
    return "-".join(re.findall(r"\w+", str(sweep)))


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


def readable(error: Exception) -> FtsuiteError:
    """Put an error of Hydra or OmegaConf into one line that names field, value and remedy."""
    text = str(error)
    if error.__cause__ is not None:
        text += "\n" + str(error.__cause__)
    key = re.search(r"full_key: (\S+)", text)
    if missing := re.search(r"Key '(\w+)' (?:is )?not in", text):
        field = key[1] if key else missing[1]
        parent = field.rpartition(".")[0]
        return ConfigError(field, "", f"no such setting{_near(missing[1], _known(parent))}")
    if wrong := re.search(r"Value '(.*?)'.* could not be converted to (\w+)", text):
        return ConfigError(key[1] if key else "?", wrong[1], f"must be of type {wrong[2]}")
    if wrong := re.search(r"Invalid value '(.*?)', expected one of (\[.*?\])", text):
        return ConfigError(key[1] if key else "?", wrong[1], f"choose one of {wrong[2]}")
    if group := re.search(r"Could not find '([\w/-]+)/([\w.-]+)'", text):
        options = re.search(r"Available options in '.*?':\n((?:\t.*\n?)+)", text)
        names = ", ".join(options[1].split()) if options else "none"
        return ConfigError(group[1], group[2], f"no such choice; there are: {names}")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return FtsuiteError("; ".join(dict.fromkeys(lines)))


def _known(parent: str) -> list[str]:
    node: Any = OmegaConf.structured(RunConfig)
    for part in parent.split(".") if parent else []:
        node = node[part]
    return [str(name) for name in node]


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=2)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are: {', '.join(known)}"


COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)
