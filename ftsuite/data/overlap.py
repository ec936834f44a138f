"""Rows that two splits would share: kept on one side of a cut, and counted between given files.

Copies within a split that is held out are left out of it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftsuite.data import duplicates
from ftsuite.data.splits import Pool, SplitName, cut, to_cut
from ftsuite.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from ftsuite.config import DataConfig
    from ftsuite.data.splits import Conversations

MUCH_COMMON = 0.05
"""Share of the rows that common text may leave too short without a note."""
_OR_BEGINNING = ", or of which one is the beginning of the other"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kin:
    """Which rows of which sources are equal or nearly equal."""

    of: dict[SplitName, Any]
    """The number of each row's group, in the order of the source's pool (int64 arrays)."""
    like: str
    """What rows of a group have in common, in words."""
    beginnings: int
    """Rows that are the beginning of another row."""
    notes: tuple[str, ...]


def divide(
    whole: dict[SplitName, Pool], data: DataConfig, scratch: Path | None
) -> tuple[dict[SplitName, Conversations], list[str]]:
    """Return the splits, cut where they have no file of their own, and what is to be said.

    Args:
        whole: conversations of each given source, as they were read.
        data: fractions, the seed, `near_duplicate` and `max_overlap`.
        scratch: folder for temporary files.

    Raises:
        DataError: a split ends empty, or two given files share too many rows.
    """
    parts = to_cut(whole, data)
    if len(whole) == 1 and not parts:
        return {"train": whole["train"].ordered()}, []
    kin = _find(whole, data, scratch)
    pairs = itertools.combinations(whole, 2)
    notes = [note for one, other in pairs if (note := _overlap(whole, data, kin, one, other))]
    splits = cut(whole, data, kin.of["train"])
    if parts:
        notes += _kept_notes(kin)
    for name in [name for name in splits if name != "train"]:
        splits[name], said = _independent(splits[name], name, kin)
        notes += said
    return splits, [*notes, *kin.notes]


def _independent(
    rows: Conversations, name: SplitName, kin: _Kin
) -> tuple[Conversations, list[str]]:
    """Leave copies out of a split that is held out, and say how many, and how many are still alike.

    Scores are compared as means over independent documents: copies would make intervals too narrow.
    """
    import numpy as np

    kept, notes = rows.without_copies(), list[str]()
    if copies := len(rows) - len(kept):
        notes.append(
            f"{copies:,} of {len(rows):,} {name} rows are copies of others and were left out: "
            "documents must be independent"
        )
    # A split without a source of its own was cut from the training rows.
    groups = kept.values(kin.of[name if name in kin.of else "train"])
    _, counts = np.unique(groups, return_counts=True)
    if alike := int(counts[counts > 1].sum()):
        how = "are nearly equal to others of the split"
        if kin.beginnings:
            how = "are nearly equal to others of the split, or begin like them"
        notes.append(f"{alike:,} {name} rows {how}, so intervals are narrower than they should be")
    return kept, notes


def _find(whole: dict[SplitName, Pool], data: DataConfig, scratch: Path | None) -> _Kin:
    rows = itertools.chain.from_iterable(map(Pool.conversations, whole.values()))
    found = duplicates.find(rows, data.near_duplicate, scratch)
    of, start, notes = dict[SplitName, Any](), 0, list[str]()
    for name, pool in whole.items():
        of[name], start = found.of[start : start + len(pool)], start + len(pool)
    match found.compared:
        case "questions":
            like = "equal or nearly equal questions"
        case "system messages and questions":
            like = "equal or nearly equal system messages and questions"
            notes.append(
                "the questions are mostly the same, so system messages and questions together were "
                "compared for equal and nearly equal rows"
            )
        case "system messages, questions and answers":
            like = "equal system messages, questions and answers"
            notes.append(
                "the questions are mostly the same, with the system messages too, so only rows "
                "equal in system message, question and answer were looked for, not nearly equal "
                "ones"
            )
    if found.unlike > MUCH_COMMON * start:
        notes.append(
            f"{_counted(found.unlike, 'row')} of {start:,} were compared for equality alone, since "
            "all but a few characters of each are in many rows"
        )
    if found.greetings:
        notes.append(
            f"{_counted(found.greetings, 'row')} of {start:,} begin so many other rows that they "
            "were not taken for parts of them"
        )
    return _Kin(of=of, like=like, beginnings=found.beginnings, notes=tuple(notes))


def _kept_notes(kin: _Kin) -> list[str]:
    """Say how many rows were kept together by the cut; nothing where none were."""
    import numpy as np

    _, counts = np.unique(kin.of["train"], return_counts=True)
    several = counts[counts > 1]
    if not len(several):
        return []
    like = f"{kin.like}{_OR_BEGINNING if kin.beginnings else ''}"
    return [
        f"{several.sum():,} rows in {_counted(len(several), 'group')} of {like} were kept on one "
        "side of the cut"
    ]


def _overlap(
    whole: dict[SplitName, Pool], data: DataConfig, kin: _Kin, one: SplitName, other: SplitName
) -> str:
    """Say how many rows of `other` are in `one`, word for word and nearly; nothing where none is.

    Raises:
        DataError: all are there word for word, or more than `data.max_overlap`.
    """
    import numpy as np

    rows, there = whole[other], set(whole[one].digests())
    equal = np.fromiter((digest in there for digest in rows.digests()), bool, len(rows))
    alike = np.isin(kin.of[other], kin.of[one]) & ~equal
    source, words, near = f"data.{other} = {getattr(data, other)!r}", equal.sum(), alike.sum()
    both = int(words + near)
    if words == len(rows):
        raise DataError(
            f"{source}: all its {words:,} rows are in data.{one} as well, so it would measure "
            "what was learned by heart; give other rows, or null to cut the split from data.train"
        )
    if not both:
        return ""
    like = f"with {kin.like}{_OR_BEGINNING if kin.beginnings else ''}"
    how = f"{words:,} word for word, {near:,} {like}" if words and near else like
    how = how if near else "word for word"
    if both > data.max_overlap * len(rows):
        raise DataError(
            f"{source}: {both:,} of its {len(rows):,} rows ({100 * both / len(rows):.3g} %) are in "
            f"data.{one} as well ({how}), more than data.max_overlap = "
            f"{data.max_overlap:g}; remove them, or raise data.max_overlap"
        )
    return f"{both:,} of {len(rows):,} {other} rows are in data.{one} as well, {how}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
