"""Rows whose texts are equal or nearly equal, found without comparing every row with every other.

Two texts are equal when they are after `normalise`. They are nearly equal when the sets of their
shingles (runs of `minhash.SHINGLE` characters) have a Jaccard similarity, shared ones by all ones,
of at least the threshold. MinHash signatures cut into bands propose pairs (Leskovec, Rajaraman,
Ullman, Mining of Massive Datasets, 2020, section 3.4), and each pair is then compared by its
shingles, so no chance can join two rows. Groups are transitive: where A is like B and B like C, all
three are one group, though A may be less like C.

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
import unicodedata
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import regex

from ftsuite import minhash, shapes
from ftsuite.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from ftsuite.shapes import Conversation

FEWEST_SHINGLES = 10
"""A text with fewer is compared by equality alone: one word more would decide."""
COMMON_SHARE, COMMON_ROWS = 0.05, 5
"""A shingle does not count where it is in more than this share and number of texts: an instruction
around each question says nothing about the question."""
SAMPLE_TEXTS, SAMPLE_CHARACTERS = 10_000, 4_000_000
"""Most texts and characters that are looked at for common shingles."""
CONSTANT_SHARE, CONSTANT_ROWS = 0.01, 2
"""A question in more than this share and number of rows is an instruction, not a question."""

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


def answer(conversation: Conversation) -> str:
    """Text of all answers, normalised."""
    return normalise(" ".join(m["content"] for m in conversation if m["role"] == "assistant"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Which rows are equal or nearly equal."""

    of: Any
    """int64 array, one a row: the number of its group."""
    with_answers: bool
    """Whether questions and answers were compared, since the questions are mostly the same."""
    unlike: int
    """Rows that were compared by equality alone, since all but a few characters of theirs are
    in many rows."""


def find(rows: Iterable[Conversation], threshold: float, folder: Path | None = None) -> Groups:
    """Return the groups of equal and nearly equal rows, whatever their order.

    Args:
        rows: conversations.
        threshold: Jaccard similarity above 0 from which on two texts are nearly equal; 1 leaves
            equal ones alone.
        folder: where a temporary file with the normalised texts lies.
    """
    import numpy as np

    texts, asked, whole = Spool(folder), array("Q"), array("Q")
    for row in rows:
        one, other = question(row), answer(row)
        asked.append(_hash64(one))
        whole.append(_hash64(f"{one}\n{other}"))
        texts.append(f"{one}\n{other}".encode())
    with_answers = _mostly_constant(np.asarray(asked), np.asarray(whole))
    keys = np.asarray(whole if with_answers else asked)
    # Sorted by their hashes, so that nothing depends on the order of the rows.
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)

    def text(number: int) -> str:
        both = texts[int(first[number])].decode()
        return both if with_answers else both.partition("\n")[0]

    labels, unlike = np.arange(len(first)), np.zeros(len(first), bool)
    if threshold < 1:
        labels, unlike = _join(text, len(first), threshold)
    return Groups(
        of=labels[inverse], with_answers=with_answers, unlike=int(np.sum(unlike[inverse]))
    )


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
