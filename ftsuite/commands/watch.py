"""`ftsuite watch`: a study while it runs, from another terminal or another machine."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live

from ftsuite.commands.selection import store_root
from ftsuite.commands.watched import Watched
from ftsuite.display import is_terminal, say_above, terminal

if TYPE_CHECKING:
    from argparse import Namespace

POLL_SECONDS = 0.5
"""Between two looks at the store."""
MOST_HINTS = 3
"""Lines below the study's on a terminal."""


def watch(options: Namespace) -> int:
    """Show a study until it is over; with `--once` as it is now."""
    root, out = store_root(), sys.stdout
    if options.once:
        _once(Watched(root, options.study, print))
    elif is_terminal(out):
        console = terminal(out)
        _drawn(Watched(root, options.study, lambda text: say_above(console, text)), console)
    else:
        _told(Watched(root, options.study, lambda text: print(text, flush=True)))
    return 0


def _once(watched: Watched) -> None:
    watched.look()
    width = Console(file=sys.stdout).width
    for line in watched.board.lines(width, watched.elapsed, with_details=True):
        print(line.plain)
    for text in watched.hints():
        watched.board.say(text)


def _drawn(watched: Watched, console: Console) -> None:
    """Lines that are drawn anew until the study is over."""

    def draw() -> Group:
        hints = watched.hints()[-MOST_HINTS:]
        height = console.height - len(hints)
        lines = watched.board.lines(
            console.width, watched.elapsed, height=height, with_details=True
        )
        return Group(*lines, *map(watched.board.line, hints))

    watched.look()
    with Live(console=console, get_renderable=draw, auto_refresh=False, transient=True) as live:
        while not watched.is_over:
            live.refresh()
            time.sleep(POLL_SECONDS)
            watched.look()
    _close(watched)


def _told(watched: Watched) -> None:
    """Plain lines until the study is over."""
    watched.look()
    watched.board.is_plain = True
    said: object = None
    while not watched.is_over:
        counts = watched.board.counts
        if said != (said := (counts.done, counts.failed, bool(counts.running))):
            watched.board.say(watched.study_line())
            for text in watched.hints():
                watched.board.say(text)
        time.sleep(POLL_SECONDS)
        watched.look()
    _close(watched)


def _close(watched: Watched) -> None:
    for text in (*watched.hints(), watched.study_line()):
        watched.board.say(text)
