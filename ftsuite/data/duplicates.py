"""Rows whose texts are equal or nearly equal, found without comparing every row with every other.

Two texts are equal when they are after `normalise`. They are nearly equal when the sets of their
shingles (runs of `minhash.SHINGLE` characters) have a Jaccard similarity, shared ones by all ones,
of at least the threshold. MinHash signatures cut into bands propose pairs (Leskovec, Rajaraman,
Ullman, Mining of Massive Datasets, 2020, section 3.4), and each pair is then compared by its
shingles, so no chance can join two rows. Groups are transitive: where A is like B and B like C, all
three are one group, though A may be less like C.

Questions are compared; where most rows share theirs, the row's own system message and the question
together (a text to classify may stand in either); where most share these too, equal rows alone are
joined, since two rows with the same answer need not be alike. A conversation is also joined to one
that it is the beginning of, up to an answer: a chat that is logged after each turn holds itself.
Where very many go on from it in different ways, it is a greeting, which would join unlike chats.

What a threshold of 0.8 finds depends on the length, since one changed word is 4 to 8 shingles. Of
planted pairs, one question with a random word changed was found in 0.49 of short shop messages
(evals/intent, 13 words in the median), 0.51 of Dolly's (11), 0.97 of GSM8K's (44) and 0.38 of
TruthfulQA's (9); with a sentence of six words added, in 0.13, 0.17, 0.83 and 0.10; with other case
and punctuation always (300 and 30 pairs a set, tests/test_duplicates.py, `measured_rates`). Five
templates with 15 names each ("What is the capital of France?") were joined nowhere. Names that
share most of their letters (Niger, Nigeria) are.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import regex

from ftsuite.data import minhash, shapes
from ftsuite.data.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from ftsuite.data.shapes import Conversation

FEWEST_SHINGLES = 10
"""A text with fewer is compared by equality alone: one word more would decide."""
COMMON_SHARE, COMMON_ROWS = 0.05, 5
"""A shingle does not count where it is in more than this share and number of texts: an instruction
around each question says nothing about the question."""
SAMPLE_TEXTS, SAMPLE_CHARACTERS = 10_000, 4_000_000
"""Most texts and characters that are looked at for common shingles."""
CONSTANT_SHARE, CONSTANT_ROWS = 0.01, 2
"""A question in more than this share and number of rows is an instruction, not a question."""

Compared = Literal[
    "questions",
    "system messages and questions",
    "system messages, questions and answers",
]
"""What tells rows apart, in words."""
_PARTS: dict[Compared, slice] = {
    "questions": slice(1, 2),
    "system messages and questions": slice(0, 2),
    "system messages, questions and answers": slice(0, 3),
}
"""Which of system message, question and answer are compared."""

# Signs that change what a sum or a name means are kept; a hyphen is, in front of a digit.
_SEPARATORS = regex.compile(r"(?V1)(?:[\p{P}\p{Z}\p{C}--[%&#@*/\\\-]]|-(?!\s*\d))+")


def normalise(text: str) -> str:
    """Return a text without case, punctuation and repeated white space (NFKC, casefolded).

    Accents, combining marks, symbols such as + and emoji stay. A text of nothing else but
    punctuation stays as it is.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_SEPARATORS.sub(" ", folded).split()) or " ".join(folded.split())


def question(conversation: Conversation) -> str:
    """Text of all user turns, normalised; of a plain text row, its text."""
    asked = ("user", shapes.TEXT_ROLE)
    return normalise(" ".join(m["content"] for m in conversation if m["role"] in asked))


def system(conversation: Conversation) -> str:
    """Text of the row's own system message, normalised; empty where it has none."""
    return normalise(" ".join(m["content"] for m in conversation if m["role"] == "system"))


def answer(conversation: Conversation) -> str:
    """Text of all answers, normalised."""
    return normalise(" ".join(m["content"] for m in conversation if m["role"] == "assistant"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Which rows are equal or nearly equal."""

    of: Any
    """int64 array, one a row: the number of its group."""
    compared: Compared
    """What was compared; with the answers, only equal rows were joined, not nearly equal ones."""
    unlike: int
    """Rows that were compared by equality alone, since all but a few characters of theirs are
    in many rows."""
    beginnings: int
    """Rows that are the beginning of another row, up to one of its answers, and in its group."""
    greetings: int
    """Rows that are the beginning of so many others that they were not joined to them."""


def find(rows: Iterable[Conversation], threshold: float, folder: Path | None = None) -> Groups:
    """Return the groups of equal and nearly equal rows, whatever their order.

    Args:
        rows: conversations.
        threshold: Jaccard similarity above 0 from which on two texts are nearly equal; 1 leaves
            equal ones alone, and conversations with their beginnings.
        folder: where a temporary file with the normalised texts lies.
    """
    import numpy as np

    texts, openings = Spool(folder), _Openings()
    hashes = {name: array("Q") for name in _PARTS}
    for row in rows:
        parts = system(row), question(row), answer(row)
        for name, which in _PARTS.items():
            hashes[name].append(_hash64("\n".join(parts[which])))
        texts.append("\n".join(parts).encode())
        openings.add(row)
    compared = _told_apart_by({name: np.asarray(found) for name, found in hashes.items()})
    # Sorted by their hashes, so that nothing depends on the order of the rows.
    keys = np.asarray(hashes[compared])
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)

    def text(number: int) -> str:
        parts = texts[int(first[number])].decode().split("\n")
        return " ".join(parts[_PARTS[compared]])

    labels, unlike = np.arange(len(first)), np.zeros(len(first), bool)
    if threshold < 1 and compared != "system messages, questions and answers":
        labels, unlike = _join(text, len(first), threshold)
    inside, held, beginnings, greetings = openings.pairs()
    edges = np.stack((labels[inverse[inside]], labels[inverse[held]]), axis=1)
    labels = minhash.components(edges, len(first))[labels]
    return Groups(
        of=labels[inverse],
        compared=compared,
        unlike=int(np.sum(unlike[inverse])),
        beginnings=beginnings,
        greetings=greetings,
    )


def _told_apart_by(hashes: dict[Compared, Any]) -> Compared:
    """The fewest parts of a row that tell most different rows apart."""
    *fewer, whole = hashes
    for name in fewer:
        if not _mostly_constant(hashes[name], hashes[whole]):
            return name
    return whole


class _Openings:
    """Hashes of conversations up to each of their answers, in time linear in their turns."""

    def __init__(self) -> None:
        self._wholes, self._owners = array("Q"), array("Q")
        self._openings, self._next = array("Q"), array("Q")

    def add(self, row: Conversation) -> None:
        """Take the next row."""
        running, up_to = hashlib.blake2b(digest_size=8), list[int]()
        for message in row:
            running.update(json.dumps([message["role"], message["content"]]).encode())
            up_to.append(int.from_bytes(running.digest(), "big"))
        for message, opening, following in zip(row, up_to, up_to[1:], strict=False):
            if message["role"] == "assistant":
                self._owners.append(len(self._wholes))
                self._openings.append(opening)
                self._next.append(following)
        self._wholes.append(up_to[-1])

    def pairs(self) -> tuple[Any, Any, int, int]:
        """Numbers of rows, and of the rows that they begin with, in pairs.

        Of equal rows that another begins with, one is named.

        Returns:
            int64 arrays of both; how many rows begin another; how many begin too many to count.
        """
        import numpy as np

        rows = np.asarray(self._wholes)
        wholes, first = np.unique(rows, return_index=True)
        found = np.stack((self._openings, self._next, self._owners), axis=1)
        found = found[minhash.among(found[:, 0], wholes)]
        opening, ways = np.unique(np.unique(found[:, :2], axis=0)[:, 0], return_counts=True)
        many = opening[ways > max(COMMON_ROWS, COMMON_SHARE * len(rows))]
        found = found[~minhash.among(found[:, 0], many)]
        begun = first[np.searchsorted(wholes, found[:, 0])]
        beginnings, greetings = np.isin(rows, found[:, 0]).sum(), np.isin(rows, many).sum()
        return found[:, 2].astype(np.int64), begun, int(beginnings), int(greetings)


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _mostly_constant(asked: Any, whole: Any) -> bool:
    """Whether most different rows share their question with many: it cannot tell rows apart."""
    import numpy as np

    _, first = np.unique(whole, return_index=True)
    _, counts = np.unique(asked[first], return_counts=True)
    rows = len(first)
    shared = counts[counts > max(CONSTANT_ROWS, CONSTANT_SHARE * rows)]
    return bool(len(counts) < rows / 2 and np.sum(shared) > rows / 2)


def _join(text: Callable[[int], str], count: int, threshold: float) -> tuple[Any, Any]:
    """Label different texts by their group, and say which ones common text has left too short."""
    import numpy as np

    common = _common(text, count)
    kept, sizes, sketches, keys = [], [], [], []
    unlike = np.zeros(count, bool)
    for numbers in minhash.chunks(text, range(count)):
        hashes, ends, before = minhash.shingles([text(n) for n in numbers], common)
        size = np.diff(ends)
        enough = size >= FEWEST_SHINGLES
        unlike[numbers] = ~enough & (before >= FEWEST_SHINGLES)
        if not enough.any():
            continue
        signature = minhash.signatures(hashes[np.repeat(enough, size)], size[enough])
        kept.append(np.asarray(numbers)[enough])
        sizes.append(size[enough])
        sketches.append(signature.astype(np.uint8))
        keys.append(minhash.band_keys(signature, threshold))
    labels = np.arange(count)
    if kept:
        nodes = np.concatenate(kept)
        found = minhash.Candidates(
            sizes=np.concatenate(sizes),
            sketches=np.concatenate(sketches),
            bands=np.concatenate(keys),
            threshold=threshold,
        )
        joined = found.joined(lambda n: text(int(nodes[n])), common)
        labels[nodes] = nodes[joined]
    return labels, unlike


def _common(text: Callable[[int], str], count: int) -> Any:
    """Sorted hashes of the shingles that do not count.

    The sample is the first texts by their hashes: even over the texts, and the same each time.
    """
    import numpy as np

    found, looked_at, characters = [], 0, 0
    for numbers in minhash.chunks(text, range(min(count, SAMPLE_TEXTS))):
        texts = [text(n) for n in numbers]
        found.append(minhash.shingles(texts)[0])
        looked_at += len(texts)
        characters += sum(map(len, texts))
        if characters >= SAMPLE_CHARACTERS:
            break
    hashes, counts = np.unique(np.concatenate(found), return_counts=True)
    return hashes[counts > max(COMMON_ROWS, COMMON_SHARE * looked_at)]
