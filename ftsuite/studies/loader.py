"""Hydra's loader with rules of its own for what a command line and a YAML file may say.

- A mapping on the command line (`evals.limits={mmlu: 4}`) replaces the old one whole, and its
  entries need no `+`; `+evals.limits={mmlu: 4}` adds to the old one.
- A setting or a group can be changed, not taken away; an entry of a mapping can (`~`).
- `???` in a file has to be given by something later, also where the schema has a default.
- A file that cannot be read is named.

Only Hydra's flags load one cell at a time; `Loader.cells` composes what cells share only once.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ftsuite import yamlfile
from ftsuite.errors import ConfigError, FtsuiteError
from ftsuite.studies.overrides import (
    MISSING,
    change,
    leaves,
    line_of,
    open_mappings,
    parse,
    split,
    unresolved,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
    from hydra.core.default_element import ResultDefault
    from hydra.core.override_parser.types import Override
    from hydra.plugins.config_source import ConfigResult, ConfigSource


class Loader(ConfigLoaderImpl):
    """What takes the place of Hydra's loader."""

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
        hydra_lines = [line_of(one) for one in parsed if one.is_hydra_override()]
        groups, settings = split(parsed, self._repository(config_name, hydra_lines))
        config = super().load_configuration(
            config_name, [line_of(one) for one in groups], run_mode, from_shell
        )
        change(config, settings)
        task = [line_of(one) for one in parsed if not one.is_hydra_override()]
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
        composed: dict[tuple[str, ...], bytes] = {}
        for lines in batch:
            for line in lines:
                if line not in parsed:
                    (parsed[line],) = parse([line], self)
            groups, settings = split([parsed[line] for line in lines], repository)
            choices = tuple(line_of(one) for one in groups)
            if choices not in composed:
                whole = _without_hydra(self.load_sweep_config(shared, list(choices)))
                # A third of deepcopy's time, which is most of a cell's.
                composed[choices] = pickle.dumps(whole)
            cell: DictConfig = pickle.loads(composed[choices])
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
        for key in self._leftopen_mappings(defaults, repo):
            OmegaConf.update(config, key, MISSING)
        open_mappings(config)
        return config

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        try:
            return super()._load_single_config(default, repo)
        except IndexError as error:
            path = f"{default.config_path}.yaml"
            raise FtsuiteError(f"{path}: malformed # @package line; mend the file") from error

    def _leftopen_mappings(
        self, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> list[str]:
        """Settings that a file gives as `???`, and no later one gives.

        OmegaConf's merge would keep what was there before.
        """
        found: dict[str, None] = {}
        for default in defaults:
            path = str(default.config_path)
            if path == "schema" or path.startswith("hydra/"):
                continue
            content = self._load_single_config(default, repo).config
            for key, value in leaves(OmegaConf.to_container(content)):
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


def _without_hydra(config: DictConfig) -> DictConfig:
    """Take Hydra's own node out, in place."""
    with open_dict(config):
        config.pop("hydra")
    return config


def _is_sweep(override: Override) -> bool:
    return override.is_sweep_override()
