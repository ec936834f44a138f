"""From Hydra's untyped configuration to a validated `RunConfig`."""

from __future__ import annotations

import difflib
import re
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftsuite.config import RunConfig, to_plain
from ftsuite.errors import ConfigError, FtsuiteError
from ftsuite.resources import conf_dir
from ftsuite.secrets import refuse_settings
from ftsuite.study import UNNAMED
from ftsuite.validate import validate


def register() -> None:
    """Put the schema where Hydra finds it, as `schema` in the defaults list."""
    ConfigStore.instance().store(name="schema", node=RunConfig)


def from_hydra(config: DictConfig, sweep: str | None) -> RunConfig:
    """Return the typed configuration of one cell, validated.

    Args:
        config: what Hydra composed.
        sweep: Hydra's choice of the group `sweep`: a name, a list of names, or None.

    Raises:
        ConfigError: a value cannot work.
    """
    # An interpolation may only refer to settings, so the copy needs nothing of Hydra's node. Plain
    # values, because OmegaConf lets nodes keep keys that `+key=value` has added.
    own = {key: value for key, value in _plain(config).items() if key != "hydra"}
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), own))
    except OmegaConfBaseException as error:
        raise readable(error, own) from error
    assert isinstance(typed, RunConfig)
    if typed.study is None:
        typed.study = _sweep_name(sweep)
    refuse_settings(to_plain(typed))
    validate(typed)
    return typed


def _plain(config: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(config)
    return {str(key): value for key, value in plain.items()}


def chosen_sweep(hydra: Any) -> str | None:
    """Return what `+sweep=` chose, one name or a list of names, from Hydra's own node."""
    if (choice := hydra.runtime.choices.get("sweep")) is not None:
        return str(choice)
    # Hydra names no choice where a group is given several: two crossed sweeps.
    crossed = (re.fullmatch(r"\+*sweep=(.*)", line) for line in hydra.overrides.task)
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


def readable(error: Exception, config: dict[str, Any] | None = None) -> FtsuiteError:
    """Put an error of Hydra or OmegaConf into one line that names field, value and remedy.

    Args:
        error: what Hydra or OmegaConf raised.
        config: the configuration it was raised for, where the message does not tell the value.
    """
    text = str(error)
    if error.__cause__ is not None:
        text += "\n" + str(error.__cause__)
    said = re.search(r"(?:merging override|config use|list use) [+~]*([^\s=]+)=(.*)", text)
    key = re.search(r"full_key: (\S+)", text)
    field = key[1] if key else said[1] if said else str(getattr(error, "full_key", None) or "")
    value: Any = said[2] if said else OmegaConf.select(OmegaConf.create(config or {}), field)
    if isinstance(error.__cause__ or error, OverrideParseException):
        return _unparsed(error)
    if missing := re.search(r"Key '(\w+)' (?:is )?not in", text):
        parent = field.rpartition(".")[0]
        return ConfigError(field, value, f"no such setting{_near(missing[1], _known(parent))}")
    if group := re.search(r"Could not (?:find|load) '([\w/-]+)/([\w.-]+)'", text):
        options = re.search(r"Available options in '.*?':\n((?:\t.*\n?)+)", text)
        names = options[1].split() if options else _choices(group[1])
        return ConfigError(group[1], group[2], f"no such choice; there are: {', '.join(names)}")
    if "No match in the defaults list" in text:
        return ConfigError(field, value, f"write +{field}={value}")
    if must := _must(text):
        wrong = re.search(r"[Vv]alue '(.*?)'", text)
        value = wrong[1] if wrong else value
        return ConfigError(field, value, must) if field else FtsuiteError(must)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    summary = "; ".join(dict.fromkeys(lines))
    return ConfigError(field, value, summary) if field else FtsuiteError(summary)


def _must(text: str) -> str:
    """What a value of the wrong type has to be; empty where the message is about something else."""
    patterns = {
        r"could not be converted to Integer": "must be a whole number",
        r"could not be converted to Float": "must be a number",
        r"not a valid bool": "must be true or false",
        r"could not be converted to (\w+)": "must be of type {}",
        r"expected one of (\[.*?\])": "choose one of {}",
        r"is not Optional": "may not be null",
        r"is not a ListConfig|Cannot assign \w+ to List": "must be a list, such as [a,b]",
        r"Cannot assign \w+ to Dict": "must be a mapping, such as {{a:1}}",
        r"does not support deletion": "a setting cannot be taken away, only changed",
        r"group override must be a string": "a group takes the name of a choice, such as lora=qv",
    }
    found = ((re.search(pattern, text), words) for pattern, words in patterns.items())
    return next((words.format(*match.groups()) for match, words in found if match), "")


def _unparsed(error: Exception) -> FtsuiteError:
    cause = error.__cause__ or error
    key, _, value = str(getattr(cause, "override", "")).partition("=")
    reason = next(line for line in str(cause).splitlines() if not line.startswith("Error parsing"))
    return ConfigError(key, value, f"not KEY=VALUE ({reason}); quote values with special signs")


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _known(parent: str) -> list[str]:
    node: Any = OmegaConf.structured(RunConfig)
    if parent:
        node = OmegaConf.select(node, parent, default={})
    return [str(name) for name in node]


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=2)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are: {', '.join(known)}"


COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)
"""What Hydra raises while it composes, a few bare ValueErrors apart."""
