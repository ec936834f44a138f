"""What single overrides of a command line may say, and what they do to a configuration."""

from __future__ import annotations

import dataclasses
import re
import typing
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftsuite.config import RunConfig
from ftsuite.errors import ConfigError, FtsuiteError, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hydra._internal.config_repository import IConfigRepository
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override

MISSING = "???"
"""OmegaConf's word for a value that has to be given."""
KEY = re.compile(r"[\w$-]+([./@:][\w$-]+)*", re.ASCII)
LONGEST_KEY = 200
DEEPEST = 100
"""Brackets inside brackets; a chat template on the command line has a few."""


def mappings(section: Any = RunConfig, prefix: str = "") -> list[str]:
    """Names of the settings that are mappings, such as `evals.limits`."""
    found = []
    for name, kind in typing.get_type_hints(section).items():
        if dataclasses.is_dataclass(kind):
            found += mappings(kind, f"{prefix}{name}.")
        elif typing.get_origin(kind) is dict:
            found.append(prefix + name)
    return found


MAPPINGS = mappings()


def parse(lines: Iterable[str], loader: ConfigLoader) -> list[Override]:
    """Parse overrides.

    Raises:
        ConfigError: names the one that is none.
    """
    parser = OverridesParser.create(config_loader=loader)
    return [_parse_one(line, parser) for line in lines]


def _parse_one(line: str, parser: OverridesParser) -> Override:
    key, equals, value = line.partition("=")
    bare = key.lstrip("+~")
    if not bare or (not equals and not key.startswith("~")):
        raise ConfigError(key, value, "not KEY=VALUE, such as lora.r=8")
    if _depth(line) > DEEPEST:
        raise ConfigError(key, value, "nested too deeply; write it flatter")
    inside = next((name for name in MAPPINGS if bare.startswith(f"{name}.")), None)
    if inside and "/" in bare:
        entry = bare.removeprefix(f"{inside}.")
        raise ConfigError(key, value, f"write +{inside}={{{entry}: {value}}}")
    if len(bare) > LONGEST_KEY or not KEY.fullmatch(bare):
        remedy = "no setting has such a name; --cfg job shows those there are"
        raise ConfigError(shorten(key), value, remedy)
    try:
        return parser.parse_overrides([line])[0]
    except RecursionError as error:
        raise ConfigError(key, value, "nested too deeply; write it flatter") from error
    except (HydraException, ValueError, ArithmeticError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0].partition(" expecting")[0]
        reason = reason.partition(";")[0]
        reason = f" ({reason})" if reason and "Exception" not in reason else ""
        reason = "" if reason.startswith(" (Error parsing") else reason
        remedy = f"not a value{reason}; put special signs in quotes: '{key}=\"…\"'"
        raise ConfigError(key, value, remedy) from error


def _depth(line: str) -> int:
    """How deep brackets are nested; the parser takes minutes over thousands."""
    depth = deepest = 0
    for sign in line:
        depth += (sign in "[{(") - (sign in ")}]")
        deepest = max(deepest, depth)
    return deepest


def unresolved(node: Any) -> Any:
    """Return a node as plain values, with its interpolations as they were written."""
    return None if node is None else OmegaConf.to_container(node)


def split(
    overrides: Iterable[Override], repository: IConfigRepository
) -> tuple[list[Override], list[Override]]:
    """Part the overrides that Hydra composes files by, from those that change single settings.

    Raises:
        ConfigError: a group is to be taken away, or does not get the name of a choice.
    """
    groups: list[Override] = []
    settings: list[Override] = []
    for one in overrides:
        is_swept = one.is_sweep_override()
        is_group = repository.group_exists(one.key_or_group) and not isinstance(one.value(), dict)
        if is_group and not is_swept and not one.is_hydra_override():
            _check_choice(one, repository)
        hydras = is_group or is_swept or one.is_hydra_override() or one.package
        (groups if hydras else settings).append(one)
    return groups, settings


def _check_choice(one: Override, repository: IConfigRepository) -> None:
    group, value = one.key_or_group, one.value()
    options = repository.get_group_options(group)
    names = ", ".join(options)
    if one.is_delete():
        raise FtsuiteError(f"~{group}: a group cannot be taken away; choose one of {names}")
    if group == "sweep" and isinstance(value, list):
        chosen = [str(name) for name in value]
        if not chosen or len(set(chosen)) < len(chosen):
            raise ConfigError(group, chosen, f"name each sweep once; there are: {names}")
    elif isinstance(value, list):
        listed = ",".join(map(str, value))
        raise ConfigError(group, value, f"takes one choice; {group}={listed} sweeps over several")
    elif not isinstance(value, str) or value in ("", MISSING):
        raise ConfigError(
            group, value, f"a group takes the name of a choice, such as {group}={options[0]}"
        )


def change(config: DictConfig, settings: Iterable[Override]) -> None:
    """Change single settings of a composed configuration, in place and in order.

    Raises:
        ConfigError: a setting is to be taken away, or does not exist.
        ConfigCompositionException: a value does not fit, in Hydra's words.
    """
    for one in settings:
        key, value = one.key_or_group, one.value()
        text = line_of(one).partition("=")[2]
        if MISSING in (inner for _, inner in leaves(value)):
            raise ConfigError(key, text, "??? stands for a value that has to be given; give one")
        if one.is_delete():
            _check_deletion(key, config)
        try:
            if key in MAPPINGS and not isinstance(value, dict):
                raise ConfigError(key, text, "must be a mapping, such as {a: 1}")
            if key in MAPPINGS and not (one.is_add() or one.is_force_add()):
                OmegaConf.update(config, key, value, merge=False)
                open_mappings(config)
            else:
                _check_parents(config, key, text)
                ConfigLoaderImpl._apply_overrides_to_config([one], config)
        except OmegaConfBaseException as error:
            raise ConfigCompositionException(f"Error merging override {one.input_line}") from error
        except (OverflowError, RecursionError) as error:
            raise ConfigError(key, text, "too large, or nested too deeply") from error


def _check_deletion(key: str, config: DictConfig) -> None:
    inside = next((name for name in MAPPINGS if key.startswith(f"{name}.")), None)
    if inside is None:
        raise FtsuiteError(f"~{key}: {_cannot_go(key)}")
    entries = [str(entry) for entry in OmegaConf.select(config, inside)]
    if key.removeprefix(f"{inside}.").partition(".")[0] not in entries:
        listed = ", ".join(entries) or "none"
        raise FtsuiteError(f"~{key}: no such entry of {inside}; there are: {listed}")


def _check_parents(config: DictConfig, key: str, text: str) -> None:
    """Refuse `lora.r.x=1`: OmegaConf would put a mapping in place of the number."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        parent = ".".join(parts[:end])
        if parent in MAPPINGS:
            return
        if not isinstance(OmegaConf.select(config, parent, default={}), Container | dict):
            raise ConfigError(key, text, f"{parent} is one value and holds no settings")


def _cannot_go(key: str) -> str:
    """What to write instead of taking a setting away."""
    default: Any = RunConfig()
    for name in key.split("."):
        if name not in {field.name for field in dataclasses.fields(default)}:
            return "no such setting"
        default = getattr(default, name)
        if not dataclasses.is_dataclass(default):
            break
    if dataclasses.is_dataclass(default):
        return "settings cannot be taken away, only changed, one by one"
    if key in MAPPINGS:
        return f"a setting cannot be taken away; {key}={{}} empties it"
    text = "null" if default is None else str(default).replace("'", "")
    return f"a setting cannot be taken away, only changed; its default is {key}={text}"


def open_mappings(config: DictConfig) -> None:
    """Let mappings take new entries."""
    # The struct flag at the root closes mappings too, which are there to be filled.
    for name in MAPPINGS:
        if isinstance(node := OmegaConf.select(config, name), DictConfig):
            OmegaConf.set_struct(node, False)


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of everything in mappings of mappings."""
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from leaves(inner, f"{prefix}.{key}" if prefix else str(key))


def line_of(override: Override) -> str:
    """Return an override as it was written."""
    assert override.input_line is not None
    return override.input_line
