"""What a person sees while a stage runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ftsuite.errors import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLAIN_LINE_SECONDS = 10.0
"""How often a plain line reports a long stage."""


def note(cell: str, text: str) -> None:
    """Print one line of cell `cell`."""
    print(redact(f"[{cell}] {text}"), flush=True)


@contextmanager
def stage(cell: str, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show the progress of one stage; call the value with what was done since the last call.

    Args:
        cell: which cell of how many, such as '2/4 lora.r=4'.
        name: the stage.
        total: how much there is to do, in `unit`.
        unit: tokens, rows, bytes, …
    """
    started = time.monotonic()
    show = _bar if sys.stdout.isatty() else _lines
    with show(cell, name, total, unit) as advance:
        yield advance
    note(cell, f"{name}: {total:,} {unit} in {_seconds(time.monotonic() - started)}")


@contextmanager
def _bar(cell: str, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    with Progress(*columns, transient=True) as progress:
        # Square brackets would be read as rich markup.
        task = progress.add_task(f"{cell} · {name}", total=max(total, 1), rate="")
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            rate = f"{done / max(time.monotonic() - started, 1e-9):,.0f} {unit}/s"
            progress.update(task, advance=amount, rate=rate)

        yield advance


@contextmanager
def _lines(cell: str, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    started = last = time.monotonic()
    done = 0

    def advance(amount: int) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last < PLAIN_LINE_SECONDS or not done:
            return
        last = now
        rate = done / (now - started)
        left = _seconds(max(total - done, 0) / rate)
        note(cell, f"{name}: {done / max(total, 1):.0%}, {rate:,.0f} {unit}/s, {left} left")

    yield advance


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
