"""The data stage: rows to conversations, splits, tokens and packed sequences, all counted.

No row's text is logged.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.choices import Loss, Packing, Shape
from ftsuite.data import conversations, overlap, readers, shapes, specialtext, tokenrows
from ftsuite.data.packing import Sequence, single
from ftsuite.data.splits import Conversations, Split, SplitName, subset_note, take_subsets
from ftsuite.data.tokenise import tokenise
from ftsuite.data.tokenrows import PackedRows, StoredRows, TokenRows
from ftsuite.errors import DataError
from ftsuite.events import silent
from ftsuite.models import loading, sources, templates, turns
from ftsuite.records import DataSummary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from ftsuite.config import DataConfig, PackingConfig
    from ftsuite.data.shapes import Conversation
    from ftsuite.data.tokenise import Tokens
    from ftsuite.events import Events
    from ftsuite.stages import PrepareData
    from ftsuite.store.stage import Folders

TOO_LONG = "longer than data.max_length"
NOTHING_TRAINED = "no token to train on within data.max_length"
"""Reasons for dropping a row."""
MUCH_TRUNCATED = 0.05
"""Share of a split's rows that may be cut short without a note."""
SHOWN_ROWS = 100
"""Rows between two looks at the display."""


def digest_of_system(text: str | None) -> str:
    """12 hex digits that identify a system message, white space and all; '' where there is none."""
    return "" if text is None else hashlib.sha256(text.encode()).hexdigest()[:12]


def source_sha256(data: DataConfig) -> str:
    """Return the identity of the source's content, for store keys.

    A hash over the sha256 of each file, or the commit of a Hub data set. Imports neither torch nor
    transformers.

    Raises:
        DataError: a file is missing, or a Hub data set cannot be identified.
    """
    identities = [
        [name, readers.source_identity(source, split=name)]
        for name, source in conversations.sources(data)
    ]
    return hashlib.sha256(json.dumps(identities).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRows:
    """The rows of each split, before any subset is taken."""

    splits: dict[SplitName, Conversations]
    """In a seeded order, with `data.system` in front where a row has no system message."""
    shape: Shape
    dropped: Counter[str]
    """Rows that were left out, by reason."""
    notes: tuple[str, ...]
    """What the columns were taken for, and which rows splits share or would have shared."""


def cut_rows(
    data: DataConfig, scratch: Path | None = None, events: Events | None = None
) -> CutRows:
    """Read the rows and cut them into splits, without tokenising.

    Args:
        data: where rows come from and how they are cut.
        scratch: folder for temporary files, which go with the result.
        events: told how far the work is.

    Raises:
        DataError: a file, row or split cannot be used, or two files share too many rows.
    """
    dropped = Counter[str]()
    read = conversations.read(data, dropped, scratch, events or silent())
    splits, notes = overlap.divide(read.pools, data, scratch)
    # After the cut: a system message must not move rows from one split to another.
    splits = {name: rows.with_system(data.system) for name, rows in splits.items()}
    return CutRows(
        splits=splits, shape=read.layout.shape, dropped=dropped, notes=(*read.notes, *notes)
    )


def prepare_data(stage: PrepareData, folders: Folders, out: Path, events: Events) -> DataSummary:
    """Compute the data stage.

    Raises:
        DataError: a file, row or split cannot be used, or a file has changed since it was planned.
    """
    tokenizer = loading.load_tokenizer(sources.locate(stage.base, folders), stage.settings)
    templates.install(tokenizer, stage.template)
    if source_sha256(stage.data) != stage.source_sha256:
        raise DataError(
            f"{stage.data.train}: the rows have changed since the study was planned; run the same "
            "command again"
        )
    return prepare(
        stage.data,
        stage.packing,
        Loss(stage.loss),
        tokenizer,
        out,
        events=events,
        processes=stage.processes,
    )


def prepare(
    data: DataConfig,
    packing: PackingConfig,
    loss: Loss,
    tokenizer: Any,
    folder: Path,
    *,
    events: Events | None = None,
    processes: int | None = None,
) -> DataSummary:
    """Read, shape, split, tokenise and pack the data into `folder/{train,validation,test}.arrow`.

    Args:
        data: where rows come from and how they are cut.
        packing: how training rows share sequences; validation and test rows are never packed.
        loss: which tokens are trained.
        tokenizer: with the template installed (`templates.install`).
        folder: an existing folder for the Arrow files, and for temporary ones.
        events: told how far the work is.
        processes: that tokenise many rows; None: one a core.

    Raises:
        DataError: a file, row or split cannot be used.
    """
    splits, summary = build(
        data, packing, loss, tokenizer, scratch=folder, events=events, processes=processes
    )
    for split in splits:
        tokenrows.write(folder / f"{split.name}.arrow", split.sequences)
    return summary


def build(
    data: DataConfig,
    packing: PackingConfig,
    loss: Loss,
    tokenizer: Any,
    *,
    scratch: Path | None = None,
    events: Events | None = None,
    processes: int | None = None,
) -> tuple[list[Split], DataSummary]:
    """Do what `prepare` does, without writing; `scratch` is for temporary files.

    Raises:
        DataError: a file, row or split cannot be used.
    """
    complete = cut_rows(data, scratch, events)
    dropped = Counter(complete.dropped)
    subsets = take_subsets(complete.splits, data)
    rows_of = functools.partial(_tokenise_conversation, loss=loss)
    processes = processes or _cores()
    given = dict(conversations.sources(data))
    total, splits = sum(map(len, subsets.values())), list[Split]()
    systems, made, special = Counter[str](), Counter[str](), Counter[str]()
    with (events or silent()).progress("tokenise", total, "rows") as advance:
        for name, kept in subsets.items():
            asked = specialtext.counted(kept, tokenizer, special)
            asked = _with_systems(asked, systems) if name == "train" else asked
            tokenised = tokenise(
                asked, len(kept), rows_of, tokenizer, processes=processes, scratch=scratch
            )
            split = Split(
                name=name,
                conversations=kept,
                available=len(complete.splits[name]),
                rows=TokenRows(scratch),
                # A split without a source of its own was cut from the training rows.
                source=conversations.public_name(given.get(name, data.train)),
            )
            _keep(split, _counted(tokenised, advance, name, made), data, packing, dropped)
            split.rewritten = len(kept) if made[name] > len(kept) else 0
            strategy = packing.strategy if name == "train" else Packing.off
            split.sequences = PackedRows(split.rows, strategy, data.max_length)
            splits.append(split)
    return splits, DataSummary(
        source=conversations.public_name(data.train),
        source_sha256=source_sha256(data),
        shape=complete.shape.value,
        splits=tuple(split.summary() for split in splits),
        dropped=dict(dropped),
        packing=packing.strategy.value,
        # collate() restarts the position ids with each document, whatever the strategy.
        documents_isolated=True,
        subset_note=subset_note(splits, data),
        notes=(
            *complete.notes,
            *specialtext.notes(special),
            *_truncation_notes(splits),
            *_rewritten_notes(splits, made),
        ),
        systems=dict(systems),
    )


def _cores() -> int:
    """Cores that this process may use; macOS tells only how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _counted(
    rows: Iterable[Tokens], advance: Callable[[int], None], split: str, made: Counter[str]
) -> Iterator[Tokens]:
    """Pass rows on, count them and show progress; each call of `advance` for many of them."""
    for row in rows:
        yield row
        made[split] += 1
        if made[split] % SHOWN_ROWS == 0:
            advance(SHOWN_ROWS)
    advance(made[split] % SHOWN_ROWS)


def _with_systems(
    conversations: Iterable[Conversation], systems: Counter[str]
) -> Iterator[Conversation]:
    """Pass conversations on and count their system messages; plain text has none to speak of."""
    for messages in conversations:
        first = messages[0]
        if first["role"] != shapes.TEXT_ROLE:
            text = first["content"] if first["role"] == "system" else None
            systems[digest_of_system(text)] += 1
        yield messages


def load_split(folder: Path, name: SplitName) -> StoredRows:
    """Return the sequences that `prepare` wrote for a split, memory-mapped.

    Raises:
        DataError: there is no such split in the folder.
    """
    path = folder / f"{name}.arrow"
    if not path.is_file():
        raise DataError(f"{path}: no {name} split was prepared; set data.{name}, or a fraction")
    return StoredRows(path)


def _keep(
    split: Split,
    tokenised: Iterable[Tokens],
    data: DataConfig,
    packing: PackingConfig,
    dropped: Counter[str],
) -> None:
    """Fill `split.rows` with tokenised rows no longer than they may be."""
    # Wrapped packing cuts the whole stream of training rows, so none is too long for it.
    wrapped = packing.strategy == Packing.wrapped
    unbounded = wrapped and split.name == "train"
    shortest = math.inf
    for ids, mask in tokenised:
        shortest = min(shortest, len(ids))
        fits = len(ids) <= data.max_length or unbounded
        if not fits and not data.truncate:
            dropped[TOO_LONG] += 1
        # A batch without any label would make the loss NaN.
        elif not split.rows.append(*((ids, mask) if fits else _first_tokens(ids, mask, data))):
            dropped[NOTHING_TRAINED] += 1
        else:
            split.truncated += not fits
    if data.max_length < shortest < math.inf and not wrapped:
        raise DataError(
            f"{data.train}: every row of the {split.name} split is longer than data.max_length = "
            f"{data.max_length} tokens (the shortest has {shortest}); raise data.max_length"
        )
    if not split.rows:
        raise DataError(
            f"{data.train}: the {split.name} split is empty, since none of its "
            f"{len(split.conversations)} rows was kept (dropped: {dict(dropped)}); raise "
            "data.max_length or the split's limit"
        )


def _first_tokens(ids: Any, mask: Any, data: DataConfig) -> Tokens:
    return ids[: data.max_length], mask[: data.max_length]


def _tokenise_conversation(
    conversation: Conversation, loss: Loss, tokenizer: Any
) -> list[Sequence]:
    """One row, or several where the template writes earlier turns anew (turns.rows)."""
    if conversation[0]["role"] == shapes.TEXT_ROLE:
        ids = templates.encode(tokenizer, conversation[0]["content"])
        # Documents end with the end token, so that the model learns where to stop.
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
        return [_all_trained(ids)]
    rows = turns.rows(tokenizer, conversation)
    if loss == Loss.all:
        # The last row holds the whole conversation.
        return [_all_trained(rows[-1].ids)]
    return [single(row.ids, row.mask) for row in rows]


def _all_trained(ids: list[int]) -> Sequence:
    # Nothing stands before the first token to predict it from.
    return single(ids, [int(place > 0) for place in range(len(ids))])


def _rewritten_notes(splits: list[Split], made: Counter[str]) -> list[str]:
    return [
        f"{len(split.conversations):,} {split.name} conversations became {made[split.name]:,} "
        "rows: the template writes earlier turns otherwise than the last one, so each answer is "
        "trained where it is the last"
        for split in splits
        if made[split.name] > len(split.conversations)
    ]


def _truncation_notes(splits: list[Split]) -> list[str]:
    return [
        f"{split.truncated:,} of {len(split.rows):,} {split.name} rows were cut to "
        "data.max_length: their answers have no end"
        for split in splits
        if split.truncated > MUCH_TRUNCATED * len(split.rows)
    ]
