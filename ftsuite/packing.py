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
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.choices import Packing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as Rows

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
    match strategy:
        case Packing.off:
            return list(rows)
        case Packing.bfd:
            lengths = [len(row.input_ids) for row in rows]
            return [_join(rows[i] for i in members) for members in _best_fit(lengths, max_length)]
        case Packing.wrapped:
            return _wrap(rows, max_length)


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


def _join(rows: Iterable[Sequence]) -> Sequence:
    ids, mask, lengths = list[int](), list[int](), list[int]()
    for row in rows:
        ids += row.input_ids
        mask += row.loss_mask
        lengths += row.lengths
    return Sequence(input_ids=ids, loss_mask=mask, lengths=lengths)


def _wrap(rows: Rows[Sequence], max_length: int) -> list[Sequence]:
    sequences, parts, free = list[Sequence](), list[Sequence](), max_length
    for row in rows:
        start = 0
        while start < len(row.input_ids):
            piece = slice(start, start + free)
            parts.append(single(row.input_ids[piece], row.loss_mask[piece]))
            start += len(parts[-1].input_ids)
            free -= len(parts[-1].input_ids)
            if free == 0:
                sequences.append(_join(parts))
                parts, free = [], max_length
    if parts:
        sequences.append(_join(parts))
    return sequences


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
