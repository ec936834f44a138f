"""The embedded intent set: counts, uniqueness, and no near-duplicates across splits."""

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "evals" / "intent"
MINIMUM = {"train": 60, "validation": 15, "test": 25}
MAX_WORD_JACCARD = 0.6
MAX_CHAR_JACCARD = 0.5


class Message(NamedTuple):
    id: str
    text: str
    label: str
    split: str


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; an apostrophe joins."""
    return re.findall(r"[^\W_]+", re.sub(r"['’]", "", text.lower()))


def word_set(text: str) -> frozenset[str]:
    return frozenset(words(text))


def char_grams(text: str, size: int = 5) -> frozenset[str]:
    joined = " ".join(words(text))
    return frozenset(joined[i : i + size] for i in range(max(1, len(joined) - size + 1)))


def jaccard_at_least(a: frozenset[str], b: frozenset[str], limit: float) -> bool:
    if min(len(a), len(b)) < limit * max(len(a), len(b)):
        return False  # the sizes alone rule it out
    shared = len(a & b)
    return shared >= limit * (len(a) + len(b) - shared)


def read_split(split: str) -> list[Message]:
    lines = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(set(row) == {"id", "text", "label"} for row in rows)
    return [Message(**row, split=split) for row in rows]


MESSAGES = [message for split in MINIMUM for message in read_split(split)]
LABELS = sorted({message.label for message in MESSAGES})


def test_label_names_are_single_lower_case_words() -> None:
    assert 8 <= len(LABELS) <= 12
    assert all(re.fullmatch("[a-z]+", label) for label in LABELS)


@pytest.mark.parametrize("split", MINIMUM)
def test_every_label_has_enough_messages(split: str) -> None:
    counts = Counter(message.label for message in MESSAGES if message.split == split)
    assert sorted(counts) == LABELS
    assert min(counts.values()) >= MINIMUM[split]
    assert len(set(counts.values())) == 1  # balanced: chance is 1 / len(LABELS)


def test_ids_and_texts_are_unique() -> None:
    assert len({message.id for message in MESSAGES}) == len(MESSAGES)
    normalised = {" ".join(words(message.text)) for message in MESSAGES}
    assert len(normalised) == len(MESSAGES)


def test_texts_are_clean_single_lines() -> None:
    for message in MESSAGES:
        assert message.text == message.text.strip()
        assert "\n" not in message.text
        assert 4 <= len(message.text.split()) <= 35, message


@pytest.mark.parametrize(
    ("features", "limit"), [(word_set, MAX_WORD_JACCARD), (char_grams, MAX_CHAR_JACCARD)]
)
def test_no_near_duplicates_across_splits(
    features: Callable[[str], frozenset[str]], limit: float
) -> None:
    rows = [(message, features(message.text)) for message in MESSAGES]
    offenders = [
        (a.id, b.id)
        for (a, left), (b, right) in combinations(rows, 2)
        if a.split != b.split and jaccard_at_least(left, right, limit)
    ]
    assert offenders == []


@pytest.mark.parametrize(
    ("left", "right", "found"),
    [
        ("Where is my parcel?", "where is MY parcel", True),
        ("Where is my parcel now?", "Where is my red parcel?", True),
        ("Where is my parcel?", "Do you sell blue teapots?", False),
    ],
)
def test_the_rule_itself(left: str, right: str, found: bool) -> None:
    assert jaccard_at_least(word_set(left), word_set(right), MAX_WORD_JACCARD) is found


@pytest.mark.parametrize("label", LABELS)
def test_lengths_vary(label: str) -> None:
    lengths = {len(words(message.text)) for message in MESSAGES if message.label == label}
    assert len(lengths) >= 10


@pytest.mark.parametrize("label", LABELS)
def test_label_word_does_not_give_the_answer_away(label: str) -> None:
    own = [message for message in MESSAGES if message.label == label]
    named = sum(label in words(message.text) for message in own)
    assert named < len(own) / 2


def test_some_messages_hold_another_labels_word() -> None:
    distracting = [m for m in MESSAGES if (set(LABELS) - {m.label}) & set(words(m.text))]
    assert len(distracting) >= 40
