"""Overrides on the command line, `python -m ftsuite +sweep=lora_rank`: compose, validate, run."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TYPE_CHECKING

from ftsuite.errors import ConfigError, FtsuiteError, StageError, one_line

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable


def run(arguments: list[str]) -> int:
    """Compose, validate and run; return the exit code.

    Args:
        arguments: overrides, and flags of Hydra's.
    """
    from ftsuite.secrets import redacted_output, refuse_arguments
    from ftsuite.studies import explain

    wants_traceback = os.environ.get("FTSUITE_TRACEBACK") == "1"
    try:
        refuse_arguments(arguments)
        with redacted_output():
            overrides = _answered_by_hydra(arguments)
        if overrides is not None:
            from ftsuite.studies import sweeper

            sweeper.run(sweeper.compose(overrides))
    except FtsuiteError as error:
        return _fail(error, wants_traceback)
    except explain.COMPOSITION_ERRORS as error:
        return _fail(explain.readable(error), wants_traceback)
    except OSError as error:
        # Not even the record that says so could be written.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "no space left on the disk; free some" if full else f"{error}; check the path"
        where = "set store.root or FTSUITE_STORE"
        return _fail(StageError(f"{what}, or {where}"), wants_traceback)
    except KeyboardInterrupt:
        print("ftsuite: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def help_text(commands: Iterable[str]) -> str:
    """What `--help` prints, without composing a configuration twice to print none of it."""
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
    return filled.replace("$APP_CONFIG_GROUPS", listing).replace("$COMMANDS", " ".join(commands))


def _answered_by_hydra(arguments: list[str]) -> list[str] | None:
    """Let Hydra answer --help, --cfg, --info and the like; otherwise return the overrides.

    Raises:
        FtsuiteError: a flag of Hydra's that would run another program than this one.
    """
    if not any(argument.startswith("-") for argument in arguments):
        return arguments
    flags = _flags(arguments)
    for flag in ("config_name", "config_path", "experimental_rerun"):
        if getattr(flags, flag):
            raise FtsuiteError(f"--{flag.replace('_', '-')}: not supported; see --help")
    asked = ("help", "hydra_help", "cfg", "info", "shell_completion")
    told = [f"--{name.replace('_', '-')}" for name in asked if getattr(flags, name)]
    if len(told) > 1:
        raise FtsuiteError(f"{' and '.join(told)}: one at a time")
    if (flags.package or flags.resolve) and not flags.cfg:
        raise FtsuiteError("--package and --resolve go with --cfg, as in --cfg job --package lora")
    if flags.config_dir:
        from ftsuite.studies.compose import search_in

        flags.overrides = [*search_in(flags.config_dir), *flags.overrides]
    if told:
        _answer(flags)
        return None
    # --run and --multirun say nothing here: a single run is a sweep of one.
    overrides: list[str] = flags.overrides
    return overrides


def _flags(arguments: list[str]) -> Namespace:
    """Hydra's flags.

    Raises:
        FtsuiteError: there is no such flag.
    """
    from hydra._internal.utils import get_args_parser

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return get_args_parser().parse_intermixed_args(arguments)
    except SystemExit as end:
        # argparse prints its usage, and exits. After --version there is nothing more to do.
        if not end.code:
            raise
        raise FtsuiteError(
            f"{said.getvalue().rpartition('error: ')[2].strip()}; see --help"
        ) from end


def _answer(flags: Namespace) -> None:
    """Do what `hydra.main` does with these flags, without its traceback and hints."""
    from hydra._internal.utils import get_args_parser

    from ftsuite.studies import compose, explain

    flags.overrides = compose.cross_sweeps(flags.overrides)
    hydra, _ = compose.new_hydra()
    try:
        if flags.help:
            hydra.app_help("config", get_args_parser(), flags)
        elif flags.hydra_help:
            hydra.hydra_help("config", get_args_parser(), flags)
        elif flags.cfg:
            # It writes to stderr before it exits.
            with contextlib.redirect_stderr(io.StringIO()):
                hydra.show_cfg("config", flags.overrides, flags.cfg, flags.package, flags.resolve)
        elif flags.info:
            hydra.show_info(flags.info, "config", flags.overrides)
        else:
            hydra.shell_completion("config", flags.overrides)
    except SystemExit as end:
        raise ConfigError("--package", flags.package, "the configuration has no such part") from end
    except (*explain.COMPOSITION_ERRORS, ValueError, AttributeError, RecursionError) as error:
        raise explain.readable(error) from error


def _fail(error: FtsuiteError, wants_traceback: bool) -> int:
    if wants_traceback:
        raise error
    print(f"ftsuite: error: {one_line(error)}", file=sys.stderr)
    return 1
