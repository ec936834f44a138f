"""Train, validation and test rows: cut from one source, and cut down to subsets.

The split of a row depends on its content and the seed alone, not on where it stands in the file,
and equal conversations never land on both sides of a cut.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from ftsuite.errors import DataError
from ftsuite.packing import trained_tokens
from ftsuite.records import SplitSummary

if TYPE_CHECKING:
    from ftsuite.config import DataConfig
    from ftsuite.packing import Sequence
    from ftsuite.shapes import Conversation

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(slots=True, kw_only=True)
class Split:
    """One split on its way: conversations, then tokenised rows, then sequences."""

    name: SplitName
    conversations: list[Conversation]
    available: int
    rows: list[Sequence] = field(default_factory=list)
    """One document each, before packing."""
    sequences: list[Sequence] = field(default_factory=list)
    truncated: int = 0
    source: str = ""
    """Name of the file or Hub data set that the rows came from, without its folder."""

    def summary(self) -> SplitSummary:
        """Return the split's counts."""
        return SplitSummary(
            name=self.name,
            rows=len(self.rows),
            available=self.available,
            tokens=sum(len(row.input_ids) for row in self.rows),
            trained_tokens=sum(trained_tokens(sequence) for sequence in self.sequences),
            truncated=self.truncated,
            sequences=len(self.sequences),
            sha256=_rows_sha256(self.rows),
            source=self.source,
        )


def cut(whole: dict[SplitName, list[Conversation]], data: DataConfig) -> list[Split]:
    """Cut the splits that have no file of their own from the training rows.

    Every split comes out in an order that depends on content and seed only.

    Args:
        whole: conversations of each given source, as they were read.
        data: fractions and the seed.

    Raises:
        DataError: a split ends empty.
    """
    ordered = {name: _by_digest(rows, data.split_seed) for name, rows in whole.items()}
    rest = ordered["train"]
    fractions: list[tuple[SplitName, float]] = [
        ("validation", data.validation_fraction),
        ("test", data.test_fraction),
    ]
    total = len(rest)
    for name, fraction in fractions:
        if name in ordered or fraction <= 0:
            continue
        size = _end_of_equals(rest, round(total * fraction))
        ordered[name], rest = rest[:size], rest[size:]
        if not ordered[name]:
            raise DataError(
                f"{data.train}: the {name} split is empty ({fraction:g} of {total} rows); "
                f"raise data.{name}_fraction or give data.{name}"
            )
    if not rest:
        raise DataError(
            f"{data.train}: the train split is empty after the cut of {total} rows; lower "
            "data.validation_fraction and data.test_fraction, or give data.validation"
        )
    ordered["train"] = rest
    return [
        Split(
            name=name,
            conversations=[messages for _, messages in ordered[name]],
            available=len(ordered[name]),
        )
        for name in SPLITS
        if name in ordered
    ]


def _by_digest(rows: list[Conversation], seed: int) -> list[tuple[str, Conversation]]:
    pairs = [
        (hashlib.sha256(f"{seed} {json.dumps(row, sort_keys=True)}".encode()).hexdigest(), row)
        for row in rows
    ]
    return sorted(pairs, key=lambda pair: pair[0])


def _end_of_equals(rows: list[tuple[str, Conversation]], size: int) -> int:
    """The first cut at or after `size` that does not separate equal conversations."""
    while 0 < size < len(rows) and rows[size][0] == rows[size - 1][0]:
        size += 1
    return size


def take_subsets(splits: list[Split], data: DataConfig) -> list[Split]:
    """Take the first so many rows of the seeded order: smaller subsets lie inside larger ones."""
    limits = {"train": data.train_limit, "validation": data.validation_limit}
    for split in splits:
        split.conversations = split.conversations[: limits.get(split.name)]
    return splits


def subset_note(splits: list[Split], data: DataConfig) -> str:
    """Say which splits are seeded subsets, as in "160 of 640 training rows (seed 0)"."""
    names = {"train": "training", "validation": "validation", "test": "test"}
    notes = [
        f"{len(split.conversations)} of {split.available} {names[split.name]} rows"
        for split in splits
        if len(split.conversations) < split.available
    ]
    return f"{', '.join(notes)} (seed {data.split_seed})" if notes else ""


def _rows_sha256(rows: list[Sequence]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        for values in (row.lengths, row.input_ids, row.loss_mask):
            digest.update(array("q", values).tobytes())
    return digest.hexdigest()
