"""Hydra's loader with rules of its own for what a command line and a YAML file may say.

- A mapping on the command line (`evals.limits={mmlu: 4}`) replaces the old one whole, and its
  entries need no `+`; `+evals.limits={mmlu: 4}` adds to the old one.
- A setting or a group can be changed, not taken away; an entry of a mapping can (`~`).
- `???` in a file has to be given by something later, also where the schema has a default.
- A file that cannot be read is named.

Only Hydra's launchers and its flags load one cell at a time; `Loader.cells` composes what cells
share only once.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import typing
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ftsuite import yamlfile
from ftsuite.config import RunConfig
from ftsuite.errors import ConfigError, FtsuiteError, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
    from hydra.core.default_element import ResultDefault
    from hydra.core.override_parser.types import Override
    from hydra.plugins.config_source import ConfigResult, ConfigSource

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


def parse(lines: Iterable[str], loader: Loader) -> list[Override]:
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


class Loader(ConfigLoaderImpl):
    """What takes the place of Hydra's loader, in the command and in its launchers' workers."""

    def __init__(self, config_search_path: Any) -> None:
        """Read from `config_search_path`, a search path of Hydra's."""
        super().__init__(config_search_path)
        self.repository = Files(config_search_path)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose one configuration, with Hydra's own node.

        Raises:
            FtsuiteError: an override or a file cannot be used.
            HydraException: likewise, in Hydra's words.
        """
        parsed = parse(overrides, self)
        if run_mode is RunMode.RUN and (swept := next(filter(_is_sweep, parsed), None)):
            text = swept.get_value_string()
            raise ConfigError(swept.key_or_group, text, "one value, for this shows a single cell")
        hydra_lines = [_line(one) for one in parsed if one.is_hydra_override()]
        groups, settings = split(parsed, self._repository(config_name, hydra_lines))
        config = super().load_configuration(
            config_name, [_line(one) for one in groups], run_mode, from_shell
        )
        change(config, settings)
        task = [_line(one) for one in parsed if not one.is_hydra_override()]
        with open_dict(config.hydra):
            config.hydra.overrides.task = task
        return config

    def cells(self, shared: DictConfig, batch: list[list[str]]) -> Iterator[DictConfig]:
        """Compose each cell of a sweep as `load_sweep_config` does, without Hydra's own node.

        Args:
            shared: what was composed before the swept overrides.
            batch: the overrides of each cell.
        """
        hydra_lines = unresolved(shared.hydra.overrides.hydra)
        repository = self._repository(shared.hydra.job.config_name, hydra_lines)
        parsed: dict[str, Override] = {}
        composed: dict[tuple[str, ...], DictConfig] = {}
        for lines in batch:
            for line in lines:
                if line not in parsed:
                    (parsed[line],) = parse([line], self)
            groups, settings = split([parsed[line] for line in lines], repository)
            choices = tuple(_line(one) for one in groups)
            if choices not in composed:
                composed[choices] = _without_hydra(self.load_sweep_config(shared, list(choices)))
            cell = copy.deepcopy(composed[choices])
            change(cell, settings)
            yield cell

    def _repository(self, config_name: str | None, lines: list[str]) -> CachingConfigRepository:
        """The files that can be chosen from, those of `hydra.searchpath` among them."""
        return self._parse_overrides_and_create_caching_repo(config_name, lines)[1]

    def _process_config_searchpath(
        self, config_name: str | None, parsed: list[Override], repo: CachingConfigRepository
    ) -> None:
        with warnings.catch_warnings():
            # Hydra warns of a folder that is not there, and goes on without it.
            warnings.simplefilter("ignore")
            super()._process_config_searchpath(config_name, parsed, repo)
        for source in repo.get_sources():
            if is_users(source) and not source.available():
                raise ConfigError("hydra.searchpath", source.full_path(), "no such folder")
            for name in ("config", "schema"):
                if is_users(source) and source.is_config(name):
                    raise FtsuiteError(
                        f"{source.path}/{name}.yaml: it would not be read; put settings into a "
                        "group's folder, such as lora/mine.yaml, and choose lora=mine"
                    )

    def _compose_config_from_defaults_list(
        self, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        config = super()._compose_config_from_defaults_list(defaults, repo)
        for key in self._left_open(defaults, repo):
            OmegaConf.update(config, key, MISSING)
        _open(config)
        return config

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        try:
            return super()._load_single_config(default, repo)
        except IndexError as error:
            path = f"{default.config_path}.yaml"
            raise FtsuiteError(f"{path}: malformed # @package line; mend the file") from error

    def _left_open(self, defaults: list[ResultDefault], repo: IConfigRepository) -> list[str]:
        """Settings that a file gives as `???`, and no later one gives.

        OmegaConf's merge would keep what was there before.
        """
        found: dict[str, None] = {}
        for default in defaults:
            path = str(default.config_path)
            if path == "schema" or path.startswith("hydra/"):
                continue
            content = self._load_single_config(default, repo).config
            for key, value in _leaves(OmegaConf.to_container(content)):
                found.pop(key, None)
                if value == MISSING and not key.startswith("hydra."):
                    found[key] = None
        return list(found)


class Files(ConfigRepository):
    """Hydra's YAML files; one that cannot be read is named."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Read a file, or a schema of the config store.

        Raises:
            FtsuiteError: not YAML, not text, or no mapping.
        """
        self._refuse_hidden(config_path)
        try:
            self._check_aliases(config_path)
            result = super().load_config(config_path)
        except HydraException:
            raise
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = f", line {mark.line + 1}" if mark else ""
            raise self._unreadable(
                config_path, f"malformed YAML ({error.problem})", place
            ) from error
        except yaml.YAMLError as error:
            raise self._unreadable(config_path, "signs that YAML does not allow") from error
        except UnicodeDecodeError as error:
            raise self._unreadable(config_path, f"not UTF-8 text (byte {error.start})") from error
        except RecursionError as error:
            raise self._unreadable(config_path, "nested too deeply") from error
        except (ValueError, OSError, OmegaConfBaseException) as error:
            raise self._unreadable(config_path, str(error).partition(";")[0]) from error
        if result is not None and not isinstance(result.config, DictConfig):
            raise self._unreadable(config_path, "not a mapping of settings")
        return result

    def _refuse_hidden(self, config_path: str) -> None:
        """A file of the user's that has the name of one of ours would silently not be read."""
        own = [source for source in self.sources if is_users(source)]
        found = [source for source in self.sources if source.is_config(config_path)]
        if found and not is_users(found[0]) and (hidden := [s for s in own if s in found]):
            raise FtsuiteError(
                f"{hidden[0].path}/{config_path}.yaml: the suite has a file of this name, which "
                "goes before it; give yours another name"
            )

    def _check_aliases(self, config_path: str) -> None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is not None and source.scheme() == "file":
            path = Path(source.path, f"{config_path.removesuffix('.yaml')}.yaml")
            yamlfile.check_aliases(path.read_text(encoding="utf-8"))

    def _unreadable(self, config_path: str, what: str, place: str = "") -> FtsuiteError:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        folder = source.path if source else ""
        return FtsuiteError(f"{folder}/{config_path}.yaml{place}: {what}; mend the file")


def is_users(source: ConfigSource) -> bool:
    """Say whether a source of files comes from --config-dir or hydra.searchpath."""
    return source.provider.startswith("hydra.searchpath")


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
        text = _line(one).partition("=")[2]
        if MISSING in (inner for _, inner in _leaves(value)):
            raise ConfigError(key, text, "??? stands for a value that has to be given; give one")
        if one.is_delete():
            _check_deletion(key, config)
        try:
            if key in MAPPINGS and not isinstance(value, dict):
                raise ConfigError(key, text, "must be a mapping, such as {a: 1}")
            if key in MAPPINGS and not (one.is_add() or one.is_force_add()):
                OmegaConf.update(config, key, value, merge=False)
                _open(config)
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


def _without_hydra(config: DictConfig) -> DictConfig:
    """Take Hydra's own node out, in place."""
    with open_dict(config):
        config.pop("hydra")
    return config


def _open(config: DictConfig) -> None:
    # The struct flag at the root closes mappings too, which are there to be filled.
    for name in MAPPINGS:
        if isinstance(node := OmegaConf.select(config, name), DictConfig):
            OmegaConf.set_struct(node, False)


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))


def _line(override: Override) -> str:
    assert override.input_line is not None
    return override.input_line


def _is_sweep(override: Override) -> bool:
    return override.is_sweep_override()
