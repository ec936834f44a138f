"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import sys
import unicodedata
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from ftsuite.errors import redact
from ftsuite.jsonfile import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType


WIDEST_UNBROKEN = 32
"""Characters of a cell that are kept on one line where its column asks for it."""
MOST_ROWS = 40
"""Rows of a list of cells or runs that are printed without --all."""
NARROWEST = 6
"""Characters of a column that may be folded, at least."""
WIDE_SCREEN = 100
"""Characters of a line from which on a table of scores needs no breaks."""


def write(*parts: RenderableType) -> None:
    """Print tables and lines; colours on a terminal only."""

    def draw(console: Console) -> None:
        for place, part in enumerate(parts):
            if isinstance(part, Table):
                _draw_table(console, part, is_first=place == 0)
            else:
                console.print(part)

    write_with(draw)


def _draw_table(console: Console, drawn: Table, *, is_first: bool) -> None:
    if not is_first:
        console.print()
    # A table's own title would be folded to the width of the table.
    title, drawn.title = drawn.title, None
    console.print(title, style="bold")
    width = console.width
    gaps = len(drawn.columns) - 1
    needed = sum(column.min_width or NARROWEST for column in drawn.columns) + 2 * gaps
    if needed > width:
        # Columns one space apart instead of two.
        drawn.padding = 0
        needed -= gaps
    # On a narrow terminal a line may run over, but no digit is cut.
    console.width = max(width, needed)
    console.print(drawn)
    console.width = width


def write_with(draw: Callable[[Console], None]) -> None:
    """Print what `draw` draws on a console."""
    # Square brackets in labels and failures are no markup.
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    # Captured first: rich has its own way with a broken pipe, which cli.main handles.
    with console.capture() as captured:
        draw(console)
    # Tables are padded to their width, which only a terminal's colours could show.
    lines = redact(captured.get()).splitlines()
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in lines)


def write_json(plain: Any) -> None:
    """Print JSON values, without secrets."""
    sys.stdout.write(dumps(plain))


def table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table that folds long cells instead of cutting them.

    Args:
        title: printed above.
        headers: one that starts with `>` sets its column right; that and `=` keep its cells on
            one line where they are of ordinary length. Empty headers are not printed.
        rows: one text a column.
    """
    drawn = Table(
        title=one_line(title),
        box=box.SIMPLE_HEAD,
        show_header=any(headers),
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for place, header in enumerate(headers):
        widest = max((len(line) for row in rows for line in row[place].split("\n")), default=0)
        unbroken = header.startswith((">", "=")) and widest <= WIDEST_UNBROKEN
        drawn.add_column(
            header.lstrip(">="),
            justify="right" if header.startswith(">") else "left",
            no_wrap=unbroken,
            # Without it rich would cut the cells of a narrow screen.
            min_width=max(widest, len(header) - 1) if unbroken else None,
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*("\n".join(map(one_line, cell.split("\n"))) for cell in row))
    return drawn


def left_out(there: int, most: int | None, noun: str) -> list[str]:
    """The line that says how many rows a list leaves out; none where it has all.

    Args:
        there: rows that there are.
        most: rows that are printed; None prints all.
        noun: what a row is, in the singular.
    """
    if most is None or there <= most:
        return []
    return [f"The first {most:,} of {there:,} {noun}s; --all prints all, --json too."]


def metric_name(name: str) -> str:
    """Return `task/metric`, on two lines where the screen has no room for one."""
    return name if Console(file=sys.stdout).width >= WIDE_SCREEN else name.replace("/", "/\n")


def one_line(text: str) -> str:
    """Return `text` on one line and without control characters, which terminals would obey."""
    visible = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)
    return " ".join(visible.split())
