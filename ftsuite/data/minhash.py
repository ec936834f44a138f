"""Pairs of texts that share most of their shingles, proposed by MinHash and then compared.

Nothing depends on luck but which pairs are proposed: where no more than `NEIGHBOURS` + 1 texts have
a key in common, one of a million pairs at the threshold is not. In larger crowds (hundreds of
texts that are all about as similar as the threshold) it is more: 2 and 3 of 60,000 such pairs ended
apart in two sets of 6,000 rows, 60 long templates with a few words behind each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SHINGLE = 4
"""Characters of a shingle. 3 and 5 find more and fewer changed words in short questions, and join
more and fewer questions that differ in a name alone."""
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


def chunks(text: Callable[[int], str], numbers: Iterable[int]) -> Iterator[list[int]]:
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


def shingles(texts: list[str], common: Any | None = None) -> tuple[Any, Any, Any]:
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
        rare = ~among(kept, common)
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


def signatures(hashes: Any, sizes: Any) -> Any:
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


def band_keys(signature: Any, threshold: float) -> Any:
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
class Candidates:
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
            pairs, names = pairs[(new := ~among(names, refused))], names[new]
            if not len(pairs):
                continue
            alike = self._alike(pairs, text, common)
            refused = np.sort(np.concatenate((refused, names[~alike])), kind="stable")
            if alike.any():
                edges = np.concatenate((edges, pairs[alike]))
                labels = components(edges, count)
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
            for numbers in chunks(text, np.unique(pairs[places]).tolist()):
                hashes, ends, _ = shingles([text(n) for n in numbers], common)
                parts = np.split(hashes, ends[1:-1])
                sets.update((n, set(p.tolist())) for n, p in zip(numbers, parts, strict=True))
            for place in places.tolist():
                one, other = (sets[n] for n in pairs[place].tolist())
                shared = len(one & other)
                alike[place] = shared >= self.threshold * (len(one) + len(other) - shared)
        return alike


def among(values: Any, ordered: Any) -> Any:
    """Which values an array holds that is sorted."""
    import numpy as np

    if not len(ordered):
        return np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[place] == values


def components(edges: Any, count: int) -> Any:
    """For each of `count` nodes the lowest number that edges lead to."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    weights = np.ones(len(edges), bool)
    graph = coo_array((weights, (edges[:, 0], edges[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, lowest = np.unique(labels, return_index=True)
    return lowest[labels]
