"""Rows of the given sources as conversations, each one usable or counted as dropped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite import progress, readers, shapes
from ftsuite.choices import Shape
from ftsuite.errors import DataError
from ftsuite.splits import Pool, SplitName

if TYPE_CHECKING:
    from ftsuite.config import ColumnsConfig, DataConfig
    from ftsuite.shapes import Conversation

WRONG_TURNS = "turns do not alternate user and assistant"
EMPTY = "an answer, or the text, is empty or white space"
"""Reasons for dropping a row."""
READ_NOTE_ROWS = 200_000
"""How often reading says how far it is."""


def sources(data: DataConfig) -> list[tuple[SplitName, str]]:
    """Return the sources that are given, with the splits that they are for."""
    named: list[tuple[SplitName, str | None]] = [
        ("train", data.train),
        ("validation", data.validation),
        ("test", data.test),
    ]
    return [(name, source) for name, source in named if source is not None]


def read(
    data: DataConfig, dropped: Counter[str], scratch: Path | None, cell: str | None
) -> tuple[dict[SplitName, Pool], Shape]:
    """Return the conversations of each given source, and the shape of the training rows.

    Args:
        data: where rows come from and which columns hold what.
        dropped: counts the rows that are left out, by reason.
        scratch: folder for temporary files.
        cell: the cell's place in the sweep, for the display; None shows nothing.

    Raises:
        DataError: a file or a row cannot be used, or no row is left.
    """
    whole: dict[SplitName, Pool] = {}
    shape_of: dict[SplitName, Shape] = {}
    for name, source in sources(data):
        pool, shape, reasons = Pool(data.split_seed, scratch), data.shape, Counter[str]()
        for number, row in enumerate(readers.iter_rows(source, split=name), start=1):
            if number == 1:
                if shape == Shape.auto:
                    shape = shapes.detect_shape(row, data.columns, source)
                _require_two_columns(shape, data.columns)
            where = f"{source}, row {number}"
            messages = shapes.to_messages(row, shape, data.columns, where)
            if reason := _unusable(messages):
                reasons[reason] += 1
            else:
                pool.append(messages)
            if cell and number % READ_NOTE_ROWS == 0:
                progress.note(cell, f"read {number:,} rows of {public_name(source)}")
        if not pool:
            raise DataError(
                f"{source}: the {name} split is empty, since all {sum(reasons.values())} rows were "
                f"dropped ({'; '.join(reasons)}); check data.shape and data.columns"
            )
        dropped += reasons
        whole[name], shape_of[name] = pool, shape
    return whole, shape_of["train"]


def _require_two_columns(shape: Shape, columns: ColumnsConfig) -> None:
    """Refuse a prompt and a completion from one column: the answer would be in its own prompt."""
    pairs = {
        Shape.prompt_completion: ("prompt", "completion"),
        Shape.question_answer: ("question", "answer"),
        Shape.dolly: ("instruction", "response"),
    }
    for one, other in [pairs[shape]] if shape in pairs else []:
        if getattr(columns, one) == getattr(columns, other):
            raise DataError(
                f"data.columns.{one} and data.columns.{other} are both "
                f"{getattr(columns, one)!r}: the answer would stand in its own prompt; name two "
                "columns"
            )


def _unusable(messages: Conversation) -> str | None:
    """The reason to drop a row, or None."""
    if not shapes.alternates(messages):
        return WRONG_TURNS
    spoken = ("assistant", shapes.TEXT_ROLE)
    if any(m["role"] in spoken and not m["content"].strip() for m in messages):
        return EMPTY
    return None


def public_name(source: str) -> str:
    """Return the source without a folder that would tell where on this machine it lies."""
    path = Path(source).expanduser()
    return path.name if path.is_absolute() or ".." in path.parts else source
