"""The data stage: rows to conversations, splits, tokens and packed sequences, all counted.

No row's text is logged.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite import readers, shapes, templates
from ftsuite.choices import Loss, Packing, Shape
from ftsuite.errors import DataError
from ftsuite.packing import Sequence, pack, single, trained_tokens
from ftsuite.records import DataSummary
from ftsuite.splits import Split, SplitName, cut, subset_note, take_subsets

if TYPE_CHECKING:
    from ftsuite.config import DataConfig, PackingConfig
    from ftsuite.shapes import Conversation

WRONG_TURNS = "turns do not alternate user and assistant"
TOO_LONG = "longer than data.max_length"
NOTHING_TRAINED = "no token to train on within data.max_length"
"""Reasons for dropping a row."""


def source_sha256(data: DataConfig) -> str:
    """Return the identity of the source's content, for store keys.

    A hash over the sha256 of each file, or the commit of a Hub data set. Imports neither torch nor
    transformers.

    Raises:
        DataError: a file is missing, or a Hub data set cannot be identified.
    """
    identities = [
        [name, readers.source_identity(source, split=name)] for name, source in _sources(data)
    ]
    return hashlib.sha256(json.dumps(identities).encode()).hexdigest()


def prepare(
    data: DataConfig, packing: PackingConfig, loss: Loss, tokenizer: Any, folder: Path
) -> DataSummary:
    """Read, shape, split, tokenise and pack the data into `folder/{train,validation,test}.parquet`.

    Args:
        data: where rows come from and how they are cut.
        packing: how training rows share sequences; validation and test rows are never packed.
        loss: which tokens are trained.
        tokenizer: with the template installed (`templates.install`).
        folder: an existing folder for the Parquet files.

    Raises:
        DataError: a file, row or split cannot be used.
    """
    splits, summary = build(data, packing, loss, tokenizer)
    for split in splits:
        _write(folder / f"{split.name}.parquet", split.sequences)
    return summary


def build(
    data: DataConfig, packing: PackingConfig, loss: Loss, tokenizer: Any
) -> tuple[list[Split], DataSummary]:
    """Do what `prepare` does, in memory.

    Raises:
        DataError: a file, row or split cannot be used.
    """
    dropped = Counter[str]()
    whole, shape = _read(data, dropped)
    splits = take_subsets(cut(whole, data), data)
    for split in splits:
        # After the cut: a system message must not move rows from one split to another.
        split.conversations = [
            shapes.inject_system(messages, data.system) for messages in split.conversations
        ]
        _tokenise(split, data, packing, loss, tokenizer, dropped)
        strategy = packing.strategy if split.name == "train" else Packing.off
        packed = pack(split.rows, strategy, data.max_length)
        # Wrapping may leave a piece of a long prompt alone in a sequence.
        split.sequences = [sequence for sequence in packed if trained_tokens(sequence)]
    # A split without a source of its own was cut from the training rows.
    sources = dict(_sources(data))
    for split in splits:
        split.source = _public_name(sources.get(split.name, data.train))
    return splits, DataSummary(
        source=_public_name(data.train),
        source_sha256=source_sha256(data),
        shape=shape.value,
        splits=tuple(split.summary() for split in splits),
        dropped=dict(dropped),
        packing=packing.strategy.value,
        # collate() restarts the position ids with each document, whatever the strategy.
        documents_isolated=True,
        subset_note=subset_note(splits, data),
    )


def load_split(folder: Path, name: SplitName) -> list[Sequence]:
    """Return the sequences that `prepare` wrote for a split.

    Raises:
        DataError: there is no such split in the folder.
    """
    import pyarrow.parquet

    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise DataError(f"{path}: no {name} split was prepared; set data.{name}, or a fraction")
    with path.open("rb") as file:
        columns = pyarrow.parquet.read_table(file).to_pydict()
    return [
        Sequence(input_ids=ids, loss_mask=mask, lengths=lengths)
        for ids, mask, lengths in zip(
            columns["input_ids"], columns["loss_mask"], columns["lengths"], strict=True
        )
    ]


def _sources(data: DataConfig) -> list[tuple[SplitName, str]]:
    named: list[tuple[SplitName, str | None]] = [
        ("train", data.train),
        ("validation", data.validation),
        ("test", data.test),
    ]
    return [(name, source) for name, source in named if source is not None]


def _read(
    data: DataConfig, dropped: Counter[str]
) -> tuple[dict[SplitName, list[Conversation]], Shape]:
    """Conversations of each given source, and the shape of the training rows."""
    whole: dict[SplitName, list[Conversation]] = {}
    shape_of: dict[SplitName, Shape] = {}
    for name, source in _sources(data):
        rows = readers.read_rows(source, split=name)
        shape = data.shape
        if shape == Shape.auto:
            shape = shapes.detect_shape(rows[0], data.columns, source)
        shape_of[name] = shape
        kept = []
        for number, row in enumerate(rows, start=1):
            messages = shapes.to_messages(row, shape, data.columns, f"{source}, row {number}")
            if shapes.alternates(messages):
                kept.append(messages)
            else:
                dropped[WRONG_TURNS] += 1
        if not kept:
            raise DataError(
                f"{source}: the {name} split is empty, since all {len(rows)} rows were dropped "
                f"({WRONG_TURNS}); check data.shape and data.columns"
            )
        whole[name] = kept
    return whole, shape_of["train"]


def _tokenise(
    split: Split,
    data: DataConfig,
    packing: PackingConfig,
    loss: Loss,
    tokenizer: Any,
    dropped: Counter[str],
) -> None:
    """Fill `split.rows` with tokenised rows no longer than they may be."""
    wrapped = packing.strategy == Packing.wrapped
    rows = [_tokenise_row(messages, loss, tokenizer) for messages in split.conversations]
    shortest = min((len(row.input_ids) for row in rows), default=0)
    if shortest > data.max_length and not wrapped:
        raise DataError(
            f"{data.train}: every row of the {split.name} split is longer than data.max_length = "
            f"{data.max_length} tokens (the shortest has {shortest}); raise data.max_length"
        )
    for row in rows:
        # Wrapped packing cuts the whole stream of training rows, so none is too long for it.
        fits = len(row.input_ids) <= data.max_length or (wrapped and split.name == "train")
        if not fits and not data.truncate:
            dropped[TOO_LONG] += 1
            continue
        kept = row if fits else _first_tokens(row, data.max_length)
        # A batch without any label would make the loss NaN.
        if not trained_tokens(kept):
            dropped[NOTHING_TRAINED] += 1
            continue
        split.rows.append(kept)
        split.truncated += not fits
    if not split.rows:
        raise DataError(
            f"{data.train}: the {split.name} split is empty, since none of its {len(rows)} rows "
            f"was kept (dropped: {dict(dropped)}); raise data.max_length or the split's limit"
        )


def _first_tokens(row: Sequence, count: int) -> Sequence:
    return single(row.input_ids[:count], row.loss_mask[:count])


def _tokenise_row(conversation: Conversation, loss: Loss, tokenizer: Any) -> Sequence:
    if conversation[0]["role"] == shapes.TEXT_ROLE:
        ids = templates.encode(tokenizer, conversation[0]["content"])
        # Documents end with the end token, so that the model learns where to stop.
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
        loss = Loss.all
        mask = list[int]()
    else:
        ids, mask = templates.render_split(tokenizer, conversation)
    if loss == Loss.all:
        # Nothing stands before the first token to predict it from.
        mask = [int(place > 0) for place in range(len(ids))]
    return single(ids, mask)


def _public_name(source: str) -> str:
    """The source without a folder that would tell where on this machine it lies."""
    path = Path(source).expanduser()
    return path.name if path.is_absolute() or ".." in path.parts else source


def _write(path: Path, sequences: list[Sequence]) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {
        "input_ids": pyarrow.int32(),
        "loss_mask": pyarrow.int8(),
        "lengths": pyarrow.int32(),
    }
    table = pyarrow.table(
        {
            name: pyarrow.array(
                [getattr(sequence, name) for sequence in sequences], pyarrow.list_(kind)
            )
            for name, kind in columns.items()
        }
    )
    pyarrow.parquet.write_table(table, path)
