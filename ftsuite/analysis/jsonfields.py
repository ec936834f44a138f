"""Answers that are JSON objects, field by field."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ftsuite.docrecords import label_row
from ftsuite.errors import shorten
from ftsuite.scoring import documents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftsuite.docrecords import LabelRow
    from ftsuite.scoring.documents import Pair

LONGEST_NAME = 100
"""Characters of a field's name in a record."""


def rows(pairs: Sequence[Pair], metric: str) -> list[LabelRow]:
    """Of each field at the top, how often each model has its value right; the most frequent first.

    Args:
        pairs: documents of one task whose answers are generated.
        metric: of which the filtered answer counts.

    Returns:
        Nothing unless every right answer is a JSON object.
    """
    expected = [_object(pair.base.expected[0]) if pair.base.expected else None for pair in pairs]
    if not pairs or any(one is None for one in expected):
        return []
    found: dict[str, list[tuple[bool, bool]]] = {}
    for pair, wanted in zip(pairs, expected, strict=True):
        sides = [
            _object(documents.filtered_answer(side, metric)) or {}
            for side in (pair.base, pair.tuned)
        ]
        for name, value in (wanted or {}).items():
            base, tuned = (name in side and _same(side[name], value) for side in sides)
            found.setdefault(name, []).append((base, tuned))
    order = sorted(found, key=lambda name: (-len(found[name]), name))
    return [label_row(shorten(name, LONGEST_NAME), found[name]) for name in order]


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
