"""What a person sees while a stage runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ftsuite.errors import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLAIN_LINE_SECONDS = 10.0
"""How often a plain line reports a long stage."""


BAR_SWITCHES = (
    ("huggingface_hub.utils", "disable_progress_bars"),
    ("datasets.utils", "disable_progress_bars"),
    ("transformers.utils.logging", "disable_progress_bar"),
)
"""Module and function that switch a library's bars off."""


def quiet_libraries() -> None:
    """Keep the libraries' own bars and warnings out of the display; their errors still show."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)
    # Libraries read these variables when they are imported; some may be there already.
    for module, function in BAR_SWITCHES:
        if module in sys.modules:
            getattr(sys.modules[module], function)()
    for library in ("lm_eval", "transformers", "datasets", "trl", "peft", "accelerate"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category)


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
