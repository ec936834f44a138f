"""The Hydra entry: `python -m ftsuite +sweep=lora_rank`."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

from ftsuite.errors import FtsuiteError, StageError, one_line

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run_cell(config: DictConfig) -> str:
    """Run one cell that Hydra composed, and return its status."""
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig

    from ftsuite.compose import chosen_sweep, from_hydra
    from ftsuite.run import run
    from ftsuite.study import cell_of

    typed = from_hydra(config, chosen_sweep(HydraConfig.get()))
    return run(cell_of(typed, Path(typed.store.root))).status


def main(arguments: list[str] | None = None) -> int:
    """Compose, validate and run; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments in (["--help"], ["-h"]):
        print(_help())
        return 0
    from ftsuite import compose
    from ftsuite.__main__ import run_cell as importable
    from ftsuite.secrets import redacted_output, refuse_arguments

    wants_traceback = os.environ.get("FTSUITE_TRACEBACK") == "1"
    try:
        refuse_arguments(arguments)
        with redacted_output():
            overrides = _answered_by_hydra(arguments)
        if overrides is not None:
            from ftsuite import sweeper

            sweeper.run(sweeper.compose(overrides), importable)
    except FtsuiteError as error:
        return _fail(error, wants_traceback)
    except compose.COMPOSITION_ERRORS as error:
        return _fail(compose.readable(error), wants_traceback)
    except OSError as error:
        # Not even the record that says so could be written.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        full = "no space left on the disk; free some, or set store.root or FTSUITE_STORE"
        return _fail(StageError(full), wants_traceback)
    except KeyboardInterrupt:
        print("ftsuite: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _help() -> str:
    """What Hydra's --help prints, without composing a configuration twice to print none of it."""
    import yaml

    from ftsuite.resources import conf_dir

    text = yaml.safe_load((conf_dir() / "hydra" / "help" / "ftsuite.yaml").read_text("utf-8"))
    groups = {
        folder.name: ", ".join(sorted(choice.stem for choice in folder.glob("*.yaml")))
        for folder in sorted(conf_dir().iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }
    filled: str = text["template"]
    for name in ("header", "footer"):
        filled = filled.replace(f"${{hydra.help.{name}}}", text[name])
    listing = "\n".join(f"{name}: {choices}" for name, choices in groups.items())
    return filled.replace("$APP_CONFIG_GROUPS", listing)


def _answered_by_hydra(arguments: list[str]) -> list[str] | None:
    """Let Hydra answer --help, --cfg, --info and the like; otherwise return the overrides.

    Raises:
        FtsuiteError: a flag of Hydra's that would run another program than this one.
    """
    if not any(argument.startswith("-") for argument in arguments):
        return arguments
    from hydra._internal.utils import get_args_parser

    flags = get_args_parser().parse_intermixed_args(arguments)
    if flags.help or flags.hydra_help or flags.cfg or flags.info or flags.shell_completion:
        _hydra_flags(arguments)
        return None
    for flag in ("config_name", "config_path", "experimental_rerun"):
        if getattr(flags, flag):
            raise FtsuiteError(f"--{flag.replace('_', '-')}: not supported; see --help")
    # --run and --multirun say nothing here: a single run is a sweep of one.
    overrides: list[str] = flags.overrides
    if flags.config_dir:
        overrides = [f"hydra.searchpath=[file://{os.path.abspath(flags.config_dir)}]", *overrides]
    return overrides


def _hydra_flags(arguments: list[str]) -> None:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from ftsuite import compose
    from ftsuite.resources import conf_dir

    compose.register()
    GlobalHydra.instance().clear()
    sys.argv[1:] = compose.cross_sweeps(arguments)
    # Otherwise Hydra prints its own several lines and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    try:
        main(run_cell)()
    except ValueError as error:
        raise compose.readable(error) from error


def _fail(error: FtsuiteError, wants_traceback: bool) -> int:
    if wants_traceback:
        raise error
    print(f"ftsuite: error: {one_line(error)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
