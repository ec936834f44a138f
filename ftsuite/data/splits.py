"""Train, validation and test rows: cut from one source, and cut down to subsets.

The split of a row depends on its content and the seed alone, not on where it stands in the file,
and equal or nearly equal rows (overlap.py) never land on both sides of a cut. Of equal rows, a
split that is held out keeps one; training rows keep their copies, as a repeated row is a weight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from ftsuite.data import shapes
from ftsuite.data.spool import Spool
from ftsuite.errors import DataError
from ftsuite.records import SplitSummary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ftsuite.config import DataConfig
    from ftsuite.data.shapes import Conversation
    from ftsuite.data.tokenrows import PackedRows, TokenRows

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
DIGEST_BYTES = 32


@dataclass(slots=True, kw_only=True)
class Split:
    """One split on its way: conversations, then tokenised rows, then sequences."""

    name: SplitName
    conversations: Conversations
    available: int
    rows: TokenRows
    """One document each, before packing."""
    sequences: PackedRows = field(init=False)
    truncated: int = 0
    rewritten: int = 0
    """Conversations, where they became more rows than they are."""
    source: str = ""
    """Name of the file or Hub data set that the rows came from, without its folder."""

    def summary(self) -> SplitSummary:
        """Return the split's counts."""
        return SplitSummary(
            name=self.name,
            rows=len(self.rows),
            available=self.available,
            tokens=sum(self.rows.lengths),
            trained_tokens=sum(self.sequences.trained),
            truncated=self.truncated,
            sequences=len(self.sequences),
            conversations=self.rewritten,
            sha256=self.rows.sha256(),
            source=self.source,
        )


class Pool:
    """The conversations of one source, as they were read, in a temporary file."""

    def __init__(self, seed: int, folder: Path | None = None) -> None:
        """Make it empty.

        Args:
            seed: of the order in which `ordered` gives the conversations.
            folder: where the temporary file lies.
        """
        self._seed = seed
        self.spool = Spool(folder)
        self._digests = bytearray()

    def append(self, messages: Conversation, group: str = "") -> None:
        """Add a conversation, and the value of `data.group` in its row."""
        text = f"{self._seed} {json.dumps(messages, sort_keys=True)}"
        self._digests += hashlib.sha256(text.encode()).digest()
        self.spool.append(json.dumps([messages, group]).encode())

    def __len__(self) -> int:
        return len(self.spool)

    def digest(self, number: int) -> bytes:
        """Hash of a conversation's content and the seed."""
        return bytes(self._digests[DIGEST_BYTES * number : DIGEST_BYTES * (number + 1)])

    def digests(self) -> Iterator[bytes]:
        """Hashes of all conversations, as they were read."""
        return map(self.digest, range(len(self)))

    def row(self, number: int) -> tuple[Conversation, str]:
        """Return a conversation and the value of `data.group` in its row."""
        messages, group = json.loads(self.spool[number])
        return messages, group

    def conversations(self) -> Iterator[Conversation]:
        """All conversations, as they were read."""
        return (self.row(number)[0] for number in range(len(self)))

    def ordered(self) -> Conversations:
        """Return all conversations in an order that depends on their content and the seed."""
        import numpy as np

        # A digest as four numbers: bytes compare as numpy's text would lose zeros at the end.
        parts = np.frombuffer(self._digests, ">u8").reshape(-1, DIGEST_BYTES // 8)
        return Conversations(self, np.lexsort(parts.T[::-1]))


class Conversations(Rows["Conversation"]):
    """Conversations of a pool, read from its file when they are asked for."""

    def __init__(self, pool: Pool, numbers: Any, system: str | None = None) -> None:
        """Take those with these numbers, and put the system message in front where there is none.

        Args:
            pool: where they are.
            numbers: int64 array of their places in the pool.
            system: text of the system message.
        """
        self._pool, self._numbers, self._system = pool, numbers, system

    def with_system(self, system: str | None) -> Conversations:
        """Return the same with a system message in front of those that have none."""
        return Conversations(self._pool, self._numbers, system)

    def values(self, of_pool: Any) -> Any:
        """Return what an array has for these conversations, whose rows are those of the pool."""
        return of_pool[self._numbers]

    def where(self, wanted: Any) -> Conversations:
        """Return those for which a bool array says so, or at the places of an int64 array."""
        return Conversations(self._pool, self._numbers[wanted], self._system)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> Conversation: ...
    @overload
    def __getitem__(self, number: slice) -> Conversations: ...
    def __getitem__(self, number: int | slice) -> Conversation | Conversations:
        if isinstance(number, slice):
            return Conversations(self._pool, self._numbers[number], self._system)
        messages, _ = self._pool.row(int(self._numbers[number]))
        return shapes.inject_system(messages, self._system)

    def group(self, number: int) -> str:
        """The value of `data.group` in the row; empty where no such column is named."""
        return self._pool.row(int(self._numbers[number]))[1]

    def without_copies(self) -> Conversations:
        """Return one of each set of equal conversations: system message, turns and answer.

        Of copies in several groups of `data.group`, the one whose group is first by its name is
        kept, so that nothing depends on the order of the file.
        """
        import numpy as np

        kept = dict[bytes, int]()
        for place, number in enumerate(self._numbers.tolist()):
            other = kept.setdefault(self._pool.digest(number), place)
            if other != place and self._rank(place) < self._rank(other):
                kept[self._pool.digest(number)] = place
        return self.where(np.sort(np.fromiter(kept.values(), np.int64, len(kept))))

    def _rank(self, number: int) -> tuple[bool, str]:
        group = self.group(number)
        return not group, group


def to_cut(whole: dict[SplitName, Pool], data: DataConfig) -> list[tuple[SplitName, float]]:
    """The splits that are cut from the training rows, with their shares."""
    fractions: list[tuple[SplitName, float]] = [
        ("validation", data.validation_fraction),
        ("test", data.test_fraction),
    ]
    return [(name, part) for name, part in fractions if name not in whole and part > 0]


def cut(
    whole: dict[SplitName, Pool], data: DataConfig, groups: Any
) -> dict[SplitName, Conversations]:
    """Cut the splits that have no file of their own from the training rows.

    Every split comes out in an order that depends on content and seed only. Groups are taken
    whole, in the order of their first rows, each that still fits: one that is larger than the part
    stays in train. Without groups of several rows, a part is the first rows of the order.

    Args:
        whole: conversations of each given source, as they were read.
        data: fractions and the seed.
        groups: int64 array with the number of each training row's group, in the pool's order.

    Raises:
        DataError: a split ends empty.
    """
    ordered = {name: pool.ordered() for name, pool in whole.items()}
    rest = ordered["train"]
    total = len(rest)
    for name, fraction in to_cut(whole, data):
        size = round(total * fraction)
        taken = _whole_groups(rest.values(groups), size)
        ordered[name], rest = rest.where(taken), rest.where(~taken)
        if not ordered[name]:
            many = ", and each group of equal or nearly equal rows has more" if size else ""
            raise DataError(
                f"{data.train}: the {name} split is empty ({fraction:g} of {total} rows{many}); "
                f"raise data.{name}_fraction or give data.{name}"
            )
    if not rest:
        raise DataError(
            f"{data.train}: the train split is empty after the cut of {total} rows; lower "
            "data.validation_fraction and data.test_fraction, or give data.validation"
        )
    ordered["train"] = rest
    return {name: ordered[name] for name in SPLITS if name in ordered}


def _whole_groups(groups: Any, size: int) -> Any:
    """Which rows to take, at most `size`, so that groups of rows stay whole: a bool array."""
    import numpy as np

    _, first, group, counts = np.unique(
        groups, return_index=True, return_inverse=True, return_counts=True
    )
    taken, left = np.zeros(len(counts), bool), size
    for number in np.argsort(first).tolist():
        if not left:
            break
        if counts[number] <= left:
            taken[number] = True
            left -= int(counts[number])
    return taken[group]


def take_subsets(
    splits: dict[SplitName, Conversations], data: DataConfig
) -> dict[SplitName, Conversations]:
    """Take the first so many training rows of the seeded order.

    Smaller subsets lie inside larger ones. Of the other splits, whoever scores takes a subset.
    """
    return {**splits, "train": splits["train"][: data.train_limit]}


def subset_note(splits: list[Split], data: DataConfig) -> str:
    """Say which splits are seeded subsets, as in "160 of 640 training rows (seed 0)"."""
    names = {"train": "training", "validation": "validation", "test": "test"}
    notes = [
        f"{len(split.conversations)} of {split.available} {names[split.name]} rows"
        for split in splits
        if len(split.conversations) < split.available
    ]
    return f"{', '.join(notes)} (seed {data.split_seed})" if notes else ""
