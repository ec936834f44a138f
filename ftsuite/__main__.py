"""The Hydra entry: `python -m ftsuite +sweep=lora_rank`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ftsuite.errors import FtsuiteError, one_line

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run_cell(config: DictConfig) -> str:
    """Run one cell that Hydra composed, and return its status."""
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig

    from ftsuite.compose import from_hydra
    from ftsuite.run import run
    from ftsuite.study import cell_of

    typed = from_hydra(config, HydraConfig.get().runtime.choices.get("sweep"))
    return run(cell_of(typed, Path(typed.store.root))).status


def main(arguments: list[str] | None = None) -> int:
    """Compose, validate and run; return the exit code."""
    from ftsuite import compose
    from ftsuite.__main__ import run_cell as importable

    arguments = sys.argv[1:] if arguments is None else arguments
    wants_traceback = os.environ.get("FTSUITE_TRACEBACK") == "1"
    try:
        if any(argument.startswith("-") for argument in arguments):
            _hydra_flags(arguments)
        else:
            from ftsuite import sweeper

            sweeper.run(sweeper.compose(arguments), importable)
    except FtsuiteError as error:
        return _fail(error, wants_traceback)
    except compose.COMPOSITION_ERRORS as error:
        return _fail(compose.readable(error), wants_traceback)
    except KeyboardInterrupt:
        print("ftsuite: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _hydra_flags(arguments: list[str]) -> None:
    """Let Hydra answer --help, --cfg, --info and the like."""
    import hydra

    from ftsuite import compose
    from ftsuite.resources import conf_dir

    compose.register()
    sys.argv[1:] = compose.cross_sweeps(arguments)
    # Otherwise Hydra prints its own several lines and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(run_cell)()


def _fail(error: FtsuiteError, wants_traceback: bool) -> int:
    if wants_traceback:
        raise error
    print(f"ftsuite: error: {one_line(error)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
