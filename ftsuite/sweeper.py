"""The sweep as one job: compose and validate every cell, run them, then report and track.

Hydra's sweeper is the one place that sees all cells, so the study is begun and finished here.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from ftsuite import study
from ftsuite.compose import COMPOSITION_ERRORS, from_hydra, readable
from ftsuite.errors import ConfigError
from ftsuite.finish import finish
from ftsuite.records import CellEntry, StudyManifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig

    from ftsuite.config import RunConfig


class StudySweeper(BasicSweeper):
    """Grid sweeper whose cells belong to one study."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the study.

        Raises:
            ConfigError: a cell cannot work; then none has started.
            CellsFailed: some cells failed; the others are done and reported.
        """
        assert self.hydra_context is not None and self.launcher is not None
        batch, configs, manifest = self.plan(arguments)
        root = Path(configs[0].store.root)
        study.write_manifest(root, manifest)
        results = self.launcher.launch(batch, initial_job_idx=0)
        for result in results:
            # Cells keep their failures as records; an exception here is a bug in ftsuite.
            _ = result.return_value
        finish(configs[0], manifest, root)
        return results

    def plan(
        self, arguments: list[str]
    ) -> tuple[Sequence[Sequence[str]], list[RunConfig], StudyManifest]:
        """Compose and validate every cell.

        Returns:
            Overrides and typed configuration of each cell, and the study's manifest.
        """
        assert self.hydra_context is not None and self.config is not None
        loader = self.hydra_context.config_loader
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(
            [*self._parse_config(), *arguments]
        )
        batch = self.split_arguments(parsed, None)[0]
        swept = set(self.params) | {o.get_key_element() for o in parsed if o.is_sweep_override()}
        configs: list[RunConfig] = []
        entries: list[CellEntry] = []
        for overrides in batch:
            config = self._compose(loader, overrides)
            label = _label(overrides, swept)
            run = study.run_id(config)
            if twin := next((e for e in entries if e.run_id == run), None):
                raise ConfigError("sweep", label, f"the same cell as {twin.label}; name it once")
            configs.append(config)
            entries.append(CellEntry(run_id=run, label=label, overrides=tuple(overrides)))
        names = {str(config.study) for config in configs}
        if len(names) > 1:
            raise ConfigError("study", sorted(names), "one sweep is one study; do not sweep it")
        command = shlex.join(["python", "-m", "ftsuite", *sys.argv[1:]])
        return batch, configs, StudyManifest(
            study=names.pop(), command=command, cells=tuple(entries)
        )

    def _compose(self, loader: Any, overrides: Sequence[str]) -> RunConfig:
        try:
            composed: DictConfig = loader.load_sweep_config(self.config, list(overrides))
        except COMPOSITION_ERRORS as error:
            raise readable(error) from error
        return from_hydra(composed)


def _label(overrides: Sequence[str], swept: set[str]) -> str:
    """What sets a cell apart: its swept settings, or else what the user set by hand."""
    mine = [o for o in overrides if o.partition("=")[0].lstrip("+") in swept]
    if not mine:
        hidden = ("sweep", "study", "hydra", "tracking", "store")
        mine = [o for o in overrides if not o.lstrip("+").startswith(hidden)]
    return ", ".join(o.lstrip("+") for o in mine) or "default"
