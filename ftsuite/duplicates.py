"""Rows whose texts are equal or nearly equal, found without comparing every row with every other.

Two texts are equal when they are after `normalise`. They are nearly equal when the sets of their
shingles (runs of `SHINGLE` characters) have a Jaccard similarity, shared ones by all ones, of at
least the threshold. MinHash signatures cut into bands propose pairs (Leskovec, Rajaraman, Ullman,
Mining of Massive Datasets, 2020, section 3.4), and each pair is then compared by its shingles, so
a hash can never join two rows. Groups are transitive: where A is like B and B like C, all three
are one group, though A may be less like C.

What a threshold of 0.8 finds depends on the length: one changed word is 4 to 8 shingles. Measured
with tests/test_duplicates.py (`measured_rates`).
"""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import regex

from ftsuite import shapes
from ftsuite.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from ftsuite.shapes import Conversation

SHINGLE = 4
"""Characters of a shingle. 3 and 5 find more and fewer changed words in short questions, and join
more and fewer questions that differ in a name alone."""
FEWEST_SHINGLES = 10
"""A text with fewer is compared by equality alone: one word more would decide."""
COMMON_SHARE, COMMON_ROWS = 0.05, 5
"""A shingle does not count where it is in more than this share and number of texts: an instruction
around each question says nothing about the question."""
SAMPLE_TEXTS, SAMPLE_CHARACTERS = 10_000, 4_000_000
"""Most texts and characters that are looked at for common shingles."""
PERMUTATIONS, SEED = 128, 1
MOST_MISSED = 1e-6
"""Largest probability that a pair exactly at the threshold is not proposed, at 0.1 and above."""
NEIGHBOURS = 16
"""Texts that each is compared with in a band. Groups of one more are compared in full; in larger
ones, texts stand beside those with which they share the next bands as well."""
SKETCH_MARGIN = 0.15
"""How far an estimate from `PERMUTATIONS` bytes may lie below the threshold: over four standard
errors of a pair at 0.8, so that of such pairs one in 100,000 is passed over."""
CHUNK_CHARACTERS, CHUNK_SHINGLES = 500_000, 1_000_000
"""Text that is in memory as arrays at once, and shingles that are as sets."""
CHUNK_PAIRS = 100_000
HASH_BITS = 44
"""Bits of a shingle's hash; the others of 64 number the texts of a chunk."""
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
    for numbers in _chunks(text, range(count)):
        hashes, ends, before = _shingles([text(n) for n in numbers], common)
        size = np.diff(ends)
        enough = size >= FEWEST_SHINGLES
        unlike[numbers] = ~enough & (before >= FEWEST_SHINGLES)
        if not enough.any():
            continue
        signature = _signatures(hashes[np.repeat(enough, size)], size[enough])
        kept.append(np.asarray(numbers)[enough])
        sizes.append(size[enough])
        sketches.append(signature.astype(np.uint8))
        keys.append(_bands(signature, threshold))
    labels = np.arange(count)
    if kept:
        nodes = np.concatenate(kept)
        found = _Candidates(
            sizes=np.concatenate(sizes),
            sketches=np.concatenate(sketches),
            bands=np.concatenate(keys),
            threshold=threshold,
        )
        joined = found.joined(lambda n: text(int(nodes[n])), common)
        labels[nodes] = nodes[joined]
    return labels, unlike


def _chunks(text: Callable[[int], str], numbers: Iterable[int]) -> Iterator[list[int]]:
    """Cut numbers of texts into runs whose texts have about `CHUNK_CHARACTERS` together."""
    chunk, held = list[int](), 0
    for number in numbers:
        chunk.append(number)
        held += len(text(number)) + 2
        if held >= CHUNK_CHARACTERS:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _shingles(texts: list[str], common: Any | None = None) -> tuple[Any, Any, Any]:
    """Hashes of the different shingles of each text, without the common ones.

    Returns:
        uint64 hashes of `HASH_BITS`, sorted within each text; int64 ends of the texts in them, from
        0 on; int64 numbers of different shingles that each text had before.
    """
    import numpy as np

    # White space at both ends makes a shingle of a whole first and last word.
    padded = [f" {text} " for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le"), np.uint32).astype(np.uint64)
    lengths = np.fromiter(map(len, padded), np.int64, len(padded))
    windows = max(len(codes) - SHINGLE + 1, 0)
    hashes = np.zeros(windows, np.uint64)
    for place in range(SHINGLE):
        hashes = _mix(hashes ^ codes[place : place + windows])
    owner = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths)[:windows]
    left = np.repeat(np.cumsum(lengths), lengths)[:windows] - np.arange(windows)
    # One number for text and hash sorts several times as fast as two.
    both = (owner << HASH_BITS) | (hashes >> (np.uint64(64) - HASH_BITS))
    both = np.sort(both[left >= SHINGLE])
    both = both[np.flatnonzero(np.diff(both, prepend=~both[:1]))]
    text, kept = (both >> HASH_BITS).astype(np.int64), both & ((np.uint64(1) << HASH_BITS) - 1)
    before = np.bincount(text, minlength=len(texts))
    if common is not None:
        rare = ~_among(kept, common)
        text, kept = text[rare], kept[rare]
    sizes = np.bincount(text, minlength=len(texts))
    return kept, np.concatenate(([0], np.cumsum(sizes))), before


def _mix(values: Any) -> Any:
    """Scramble uint64 numbers, one to one (splitmix64, Steele et al. 2014, with its constants)."""
    import numpy as np

    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _common(text: Callable[[int], str], count: int) -> Any:
    """Sorted hashes of the shingles that do not count.

    The sample is the first texts by their hashes: even over the texts, and the same each time.
    """
    import numpy as np

    found, looked_at, characters = [], 0, 0
    for numbers in _chunks(text, range(min(count, SAMPLE_TEXTS))):
        texts = [text(n) for n in numbers]
        found.append(_shingles(texts)[0])
        looked_at += len(texts)
        characters += sum(map(len, texts))
        if characters >= SAMPLE_CHARACTERS:
            break
    hashes, counts = np.unique(np.concatenate(found), return_counts=True)
    return hashes[counts > max(COMMON_ROWS, COMMON_SHARE * looked_at)]


def _signatures(hashes: Any, sizes: Any) -> Any:
    """MinHash signatures, uint32 of (texts, PERMUTATIONS)."""
    import numpy as np
    import rensa

    ends = np.concatenate(([0], np.cumsum(sizes))).astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        np.ascontiguousarray(hashes), ends, PERMUTATIONS, SEED
    )
    return np.array(matrix.to_rows(), np.uint32)


def band_rows(threshold: float) -> int:
    """Signature rows a band: as many as miss few enough pairs that are exactly at the threshold.

    b bands of r rows miss a pair of similarity s with probability (1 - s^r)^b.
    """
    fitting = [
        rows
        for rows in range(1, PERMUTATIONS // 8)
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MOST_MISSED
    ]
    return max(fitting, default=1)


def _bands(signature: Any, threshold: float) -> Any:
    """One key a band, uint32 of (texts, bands); equal keys propose a pair."""
    import numpy as np

    rows = band_rows(threshold)
    bands = PERMUTATIONS // rows
    parts = signature[:, : bands * rows].astype(np.uint64).reshape(len(signature), bands, rows)
    keys = np.zeros(parts.shape[:2], np.uint64)
    for row in range(rows):
        keys = _mix(keys ^ parts[:, :, row])
    return (keys >> np.uint64(32)).astype(np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """Texts that are long enough, by number, and what proposes pairs of them."""

    sizes: Any
    sketches: Any
    bands: Any
    threshold: float

    def joined(self, text: Callable[[int], str], common: Any) -> Any:
        """For each text the lowest number in its group, int64."""
        import numpy as np

        count = len(self.sizes)
        labels, edges = np.arange(count), np.empty((0, 2), np.int64)
        refused = np.empty(0, np.int64)
        for pairs in self._proposed():
            apart = labels[pairs[:, 0]] != labels[pairs[:, 1]]
            pairs = pairs[apart & self._may_be_alike(pairs)]
            names = pairs[:, 0] * count + pairs[:, 1]
            pairs, names = pairs[(new := ~_among(names, refused))], names[new]
            if not len(pairs):
                continue
            alike = self._alike(pairs, text, common)
            refused = np.sort(np.concatenate((refused, names[~alike])), kind="stable")
            if alike.any():
                edges = np.concatenate((edges, pairs[alike]))
                labels = _components(edges, count)
        return labels

    def _proposed(self) -> Iterator[Any]:
        """Pairs of texts with an equal key, of each band in turn: int64 arrays of (pairs, 2)."""
        import numpy as np

        bands = self.bands.shape[1]
        for band in range(bands):
            following = [self.bands[:, (band + after) % bands] for after in (2, 1, 0)]
            order = np.lexsort(following)
            key, places = self.bands[order, band], [np.empty((0, 2), np.int64)]
            for distance in range(1, NEIGHBOURS + 1):
                start = np.flatnonzero(key[distance:] == key[:-distance])
                if not len(start):
                    break
                places.append(np.stack((start, start + distance), axis=1))
            pairs = np.concatenate(places)
            # In the order of the band, so that a text's pairs are compared together.
            yield np.sort(order[pairs[np.argsort(pairs[:, 0], kind="stable")]], axis=1)

    def _may_be_alike(self, pairs: Any) -> Any:
        """Which pairs their sizes and a byte of each signature row do not rule out."""
        import numpy as np

        one, other = self.sizes[pairs[:, 0]], self.sizes[pairs[:, 1]]
        may = np.minimum(one, other) >= self.threshold * np.maximum(one, other)
        # Of different numbers, one in 256 agrees in its last byte: the estimate is never too low.
        least = (self.threshold - SKETCH_MARGIN) * PERMUTATIONS
        for start in range(0, len(pairs), CHUNK_PAIRS):
            part = pairs[start : start + CHUNK_PAIRS]
            equal = self.sketches[part[:, 0]] == self.sketches[part[:, 1]]
            may[start : start + len(part)] &= np.count_nonzero(equal, axis=1) >= least
        return may

    def _alike(self, pairs: Any, text: Callable[[int], str], common: Any) -> Any:
        """Which pairs of texts have a Jaccard similarity of at least the threshold."""
        import numpy as np

        alike = np.zeros(len(pairs), bool)
        held = np.cumsum(self.sizes[pairs].sum(axis=1)) // CHUNK_SHINGLES
        for places in np.split(np.arange(len(pairs)), np.flatnonzero(np.diff(held)) + 1):
            sets = dict[int, set[int]]()
            for numbers in _chunks(text, np.unique(pairs[places]).tolist()):
                hashes, ends, _ = _shingles([text(n) for n in numbers], common)
                parts = np.split(hashes, ends[1:-1])
                sets.update((n, set(p.tolist())) for n, p in zip(numbers, parts, strict=True))
            for place in places.tolist():
                one, other = (sets[n] for n in pairs[place].tolist())
                shared = len(one & other)
                alike[place] = shared >= self.threshold * (len(one) + len(other) - shared)
        return alike


def _among(values: Any, ordered: Any) -> Any:
    """Which values an array holds that is sorted."""
    import numpy as np

    if not len(ordered):
        return np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[place] == values


def _components(edges: Any, count: int) -> Any:
    """For each of `count` nodes the lowest number that edges lead to."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    weights = np.ones(len(edges), bool)
    graph = coo_array((weights, (edges[:, 0], edges[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, lowest = np.unique(labels, return_index=True)
    return lowest[labels]
