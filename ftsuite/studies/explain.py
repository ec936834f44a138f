"""Errors of Hydra and OmegaConf in one line that names field, value and remedy."""

from __future__ import annotations

import difflib
import re
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftsuite.config import RunConfig
from ftsuite.errors import ConfigError, FtsuiteError
from ftsuite.resources import conf_dir

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)
"""What Hydra raises while it composes, a few bare ValueErrors apart."""


def readable(error: Exception, config: Any = None) -> FtsuiteError:
    """Put an error of Hydra or OmegaConf into one line that names field, value and remedy.

    Args:
        error: what Hydra or OmegaConf raised.
        config: the configuration it was raised for, where the message does not tell the value.
    """
    if isinstance(error, FtsuiteError):
        return error
    if isinstance(error, RecursionError):
        return FtsuiteError("nested too deeply, or a defaults list that has its own file in it")
    text = str(error)
    if error.__cause__ is not None:
        text += "\n" + str(error.__cause__)
    said = re.search(r"(?:merging override|config use|list use) [+~]*([^\s=]+)=(.*)", text)
    key = re.search(r"full_key: (\S+)", text)
    field = key[1] if key else said[1] if said else str(getattr(error, "full_key", None) or "")
    value: Any = said[2] if said else _value(config, field)
    file = re.search(r"In '(\S+)':", text)
    if file and "not in" in text:
        return FtsuiteError(f"{file[1]}.yaml: {unknown(field)}")
    if missing := re.search(r"Key '(.+?)' (?:is )?not in", text):
        return unknown(field or missing[1], value)
    if group := re.search(r"Could not (?:find|load) '([\w/-]+)/([^']*)'", text):
        options = re.search(r"Available options in '.*?':\n((?:\t.*\n?)+)", text)
        names = options[1].split() if options else _choices(group[1])
        return ConfigError(group[1], group[2], f"no such choice; there are: {', '.join(names)}")
    if "No match in the defaults list" in text:
        return ConfigError(field, value, f"write +{field}={value}")
    if "already at" in text:
        field = text.partition("already at '")[2].partition("'")[0]
        return FtsuiteError(f"+{field}: it has a value already; write {field}=VALUE")
    if "MissingMandatoryValue" in type(error).__name__:
        return ConfigError(field, "???", f"has to be given: {field}=VALUE")
    if must := _must(text):
        must += f"; in {file[1]}.yaml" if file else ""
        wrong = re.search(r"[Vv]alue '(.*?)'", text)
        # A value inside a mapping or list; the override shows the whole.
        if wrong and not (said and said[1] == field):
            value = wrong[1]
        return ConfigError(field, value, must) if field else FtsuiteError(must)
    summary = "a value of the wrong kind" if isinstance(error, AttributeError) else _summary(text)
    return ConfigError(field, value, summary) if field else FtsuiteError(summary)


def unknown(field: str, value: object = None) -> FtsuiteError:
    """Say that there is no such setting, and which there are.

    Args:
        field: its full name.
        value: what it was to be, where that is known.
    """
    remedy = _instead(field, value)
    if value is None:
        return FtsuiteError(f"{field}: {remedy}")
    return ConfigError(field, value, remedy)


def _instead(field: str, value: object) -> str:
    if field == "sweep":
        return "a sweep's file begins with # @package _global_"
    if field.startswith("hydra."):
        return "Hydra has no such setting; see --cfg hydra"
    dotted = field.replace("/", ".")
    if dotted != field and OmegaConf.select(OmegaConf.structured(RunConfig), dotted) is not None:
        return f"no such group; write {dotted}={value}"
    parent, _, name = field.rpartition(".")
    node: Any = OmegaConf.structured(RunConfig)
    # Up to what there is: the first wrong name is the one to be told.
    while parent and not OmegaConf.is_dict(OmegaConf.select(node, parent)):
        parent, _, name = parent.rpartition(".")
    known = [str(key) for key in (OmegaConf.select(node, parent) if parent else node)]
    close = difflib.get_close_matches(name, known, n=2)
    if close:
        return f"no such setting; did you mean {' or '.join(close)}?"
    return f"no such setting; there are: {', '.join(known)}"


def _must(text: str) -> str:
    """What a value of the wrong type has to be; empty where the message is about something else."""
    patterns = {
        r"could not be converted to Integer": "must be a whole number",
        r"could not be converted to Float": "must be a number",
        r"not a valid bool": "must be true or false",
        r"could not be converted to (\w+)": "must be of type {}",
        r"Cannot convert '\w+' to string": "must be one text",
        r"expected one of (\[.*?\])": "choose one of {}",
        r"is not Optional": "may not be null",
        r"is not a ListConfig|Cannot assign \w+ to List": "must be a list, such as [a,b]",
        r"Cannot assign \w+ to Dict": "must be a mapping, such as {{a: 1}}",
        r"Key \S+ \(\w+\) is incompatible with": "its keys must be words",
        r"searchpath must be a list": "must be a list of folders, such as [file://DIR]",
    }
    found = ((re.search(pattern, text), words) for pattern, words in patterns.items())
    return next((words.format(*match.groups()) for match, words in found if match), "")


def _summary(text: str) -> str:
    """What is not known here, on one line, without OmegaConf's own names for places."""
    own = ("full_key:", "object_type=", "reference_type=")
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith(own)]
    return "; ".join(dict.fromkeys(kept))


def _value(config: Any, field: str) -> Any:
    try:
        return OmegaConf.select(OmegaConf.create(config or {}), field)
    except OmegaConfBaseException:
        # The very value that cannot be read.
        return ""


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
