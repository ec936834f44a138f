"""Rows into sequences of bounded length, and sequences into batches.

A sequence remembers the lengths of its documents. `collate` turns them into position ids that
restart at 0 with each document and gives no attention mask: transformers 5 then builds a
block-diagonal causal mask (masking_utils.find_packed_sequence_indices; sdpa and eager, flash at
batch 1), so that packed documents cannot see each other. It does so only without a cache: call the
model with `use_cache=False`, as TRL's trainer does. Not every architecture has such a mask, or
nothing but attention: isolation.py measures it before each training that packs.
"""

from __future__ import annotations

import bisect
import itertools
from array import array
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.choices import Packing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Sequence as Rows

Piece = tuple[int, int, int]
"""Row number, first token, and the token after the last."""
IGNORED = -100
"""Label that the cross-entropy of torch and transformers leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """Token ids that go through the model as one line of a batch."""

    input_ids: list[int]
    loss_mask: list[int]
    """1 where the token enters the loss."""
    lengths: list[int]
    """Tokens of each document; they add up to len(input_ids)."""


def single(input_ids: list[int], loss_mask: list[int]) -> Sequence:
    """Return a sequence of one document."""
    return Sequence(input_ids=input_ids, loss_mask=loss_mask, lengths=[len(input_ids)])


def trained_tokens(sequence: Sequence) -> int:
    """Return how many labels `collate` makes: not for the first token of a document."""
    starts = set(itertools.accumulate(sequence.lengths, initial=0))
    return sum(
        kept for place, kept in enumerate(sequence.loss_mask) if kept and place not in starts
    )


def pack(rows: Rows[Sequence], strategy: Packing, max_length: int) -> list[Sequence]:
    """Put rows into sequences of at most `max_length` tokens; the same rows give the same result.

    Args:
        rows: sequences of one document each; none longer than max_length unless wrapped.
        strategy: off: a row a sequence; bfd: best-fit decreasing, no row is cut; wrapped:
            concatenated in order and cut every max_length tokens.
        max_length: in tokens.
    """
    lengths = [len(row.input_ids) for row in rows]
    return [_join(rows, pieces) for pieces in plan(lengths, strategy, max_length)]


def plan(lengths: Rows[int], strategy: Packing, max_length: int) -> Iterator[list[Piece]]:
    """Say which pieces of which rows each sequence holds, from the rows' lengths alone (`pack`)."""
    match strategy:
        case Packing.off:
            return ([(row, 0, length)] for row, length in enumerate(lengths))
        case Packing.bfd:
            bins = _best_fit(lengths, max_length)
            return ([(row, 0, lengths[row]) for row in members] for members in bins)
        case Packing.wrapped:
            return _wrap(lengths, max_length)


class Plan:
    """The pieces of many sequences in 24 bytes a piece."""

    def __init__(self) -> None:
        """Make it empty."""
        self._numbers = array("q")
        self._ends = array("q", [0])

    def append(self, pieces: list[Piece]) -> None:
        """Add the pieces of one sequence."""
        self._numbers.extend(itertools.chain.from_iterable(pieces))
        self._ends.append(len(self._numbers))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> list[Piece]:
        flat = iter(self._numbers[self._ends[number] : self._ends[number + 1]])
        return list(zip(flat, flat, flat, strict=True))


def _best_fit(lengths: Rows[int], max_length: int) -> list[list[int]]:
    """Row numbers of each bin: longest rows first, each into the fullest bin that holds it."""
    bins: list[list[int]] = []
    free_bins: dict[int, deque[int]] = {}
    frees: list[int] = []  # sorted keys of free_bins that have bins: at most max_length entries
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        assert lengths[row] <= max_length, "prepare() truncates or drops longer rows"
        place = bisect.bisect_left(frees, lengths[row])
        if place == len(frees):
            bins.append([])
            chosen, free = len(bins) - 1, max_length
        else:
            free = frees[place]
            chosen = free_bins[free].popleft()
            if not free_bins[free]:
                frees.pop(place)
        bins[chosen].append(row)
        free -= lengths[row]
        if not free_bins.setdefault(free, deque()):
            bisect.insort(frees, free)
        free_bins[free].append(chosen)
    return bins


def _join(rows: Rows[Sequence], pieces: list[Piece]) -> Sequence:
    ids, mask = list[int](), list[int]()
    for row, start, end in pieces:
        ids += rows[row].input_ids[start:end]
        mask += rows[row].loss_mask[start:end]
    lengths = [end - start for _, start, end in pieces]
    return Sequence(input_ids=ids, loss_mask=mask, lengths=lengths)


def _wrap(lengths: Rows[int], max_length: int) -> Iterator[list[Piece]]:
    pieces, free = list[Piece](), max_length
    for row, length in enumerate(lengths):
        start = 0
        while start < length:
            end = min(start + free, length)
            pieces.append((row, start, end))
            free -= end - start
            start = end
            if free == 0:
                yield pieces
                pieces, free = [], max_length
    if pieces:
        yield pieces


def collate(sequences: Rows[Sequence], pad_token_id: int) -> dict[str, Any]:
    """Return a batch of long tensors of shape (sequences, longest sequence).

    `input_ids`, `labels` and `position_ids`, without `attention_mask`. Labels are -100 outside the
    loss mask, on padding, and on the first token of each document, which must not be predicted from
    the document before it. Padding follows on the right as a document of its own. Labels come from
    the loss mask, never from the pad token's id, so an end token that also pads is still trained.
    """
    import torch

    width = max(len(sequence.input_ids) for sequence in sequences)
    ids, labels, positions = list[list[int]](), list[list[int]](), list[list[int]]()
    for sequence in sequences:
        padding = width - len(sequence.input_ids)
        places = [place for length in [*sequence.lengths, padding] for place in range(length)]
        trained = [
            token if kept and place > 0 else IGNORED
            for token, kept, place in zip(
                sequence.input_ids, sequence.loss_mask, places, strict=False
            )
        ]
        ids.append(sequence.input_ids + [pad_token_id] * padding)
        labels.append(trained + [IGNORED] * padding)
        positions.append(places)
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "position_ids": torch.tensor(positions),
    }
