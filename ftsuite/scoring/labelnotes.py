"""What is to be said of a closed set of answers, once rows are held out."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftsuite.data.shapes import Conversation
    from ftsuite.data.splits import Conversations, SplitName

FIRST_ROWS = 5
"""Prompts that are looked at for the labels' names."""
MOST_NAMED = 5
"""Labels that a note names."""
MISSING = ("na", "n/a", "nan", "null", "none", "nil", "missing", "unknown", "?", "-")
"""What files write for a value that is not there."""


def notes(splits: dict[SplitName, Conversations], labels: tuple[str, ...]) -> Iterator[str]:
    """What is to be said of labels: unknown to the base, never trained, or no labels at all."""
    if not any(_names_labels(row, labels) for row in splits["test"][:FIRST_ROWS]):
        yield (
            "nothing in the rows tells the base model what is asked or what the labels are; "
            'data.system="…" puts it in front of every row, in training and in scoring'
        )
    trained = {row[-1]["content"].strip() for row in splits["train"]}
    for name in ("validation", "test"):
        unknown = Counter(
            answer for row in splits[name] if (answer := row[-1]["content"].strip()) not in trained
        )
        if unknown:
            yield (
                f"{unknown.total():,} of {len(splits[name]):,} {name} rows have a label that no "
                f"training row has ({', '.join(map(repr, sorted(unknown)[:MOST_NAMED]))})"
            )
    if missing := [label for label in labels if label.casefold() in MISSING]:
        yield (
            f"the labels {', '.join(map(repr, missing))} look like missing values; take such rows "
            "out unless they are meant"
        )


def _names_labels(conversation: Conversation, labels: tuple[str, ...]) -> bool:
    """Whether a prompt speaks of the labels: at least half of them stand in it as words."""
    prompt = " ".join(message["content"] for message in conversation[:-1])
    found = (re.search(rf"(?<!\w){re.escape(label)}(?!\w)", prompt, re.I) for label in labels)
    return 2 * sum(match is not None for match in found) >= len(labels)
