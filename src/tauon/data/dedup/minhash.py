"""MinHash signatures by one permutation, with empty bins filled, and their keys for locality-sensitive hashing.

One hash per shingle instead of one per shingle and permutation (Li, Owen & Zhang 2012, arXiv:1208.1259): the shingles fall into bins by their
high bits, and a bin's value is its smallest. An empty bin copies another one that is drawn by its own sequence (optimal densification, Shrivastava
2017, arXiv:1703.04664). The chance that two documents agree in a bin is their Jaccard similarity, as with k permutations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tauon.data.dedup.words import mixed, windows

__all__ = ["SKETCH", "Bands", "Sketches", "choose_bands", "sketches"]

SKETCH = 1024
"""Most shingles that are kept of a document, the smallest hashes: the similarity of longer ones is estimated from these."""
_EMPTY = np.uint32(0xFFFFFFFF)
_SINGLE, _ATTEMPTS = 2, 16
"""Draws of an empty bin that are looked up one by one, and at once after these."""
_WORDS = 1 << 15
"""Words whose shingles are made at once."""
_MISS = 0.99
"""Weight of missed pairs against needless candidates: a candidate is verified, a missed pair is lost."""


@dataclass(frozen=True)
class Bands:
    """Two documents are compared if they agree in all rows of at least one band."""

    bands: int
    rows: int

    def probability(self, similarity: float) -> float:
        """Return the chance that a pair of this similarity is compared: 1 - (1 - s^rows)^bands."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)


@cache
def choose_bands(threshold: float, bins: int) -> Bands:
    """Return the bands with the smallest weighted error: the chance of candidates below the threshold and of missed pairs above it, integrated
    over the similarity (Zhu et al. 2016, as in datasketch).

    >>> choose_bands(0.8, 128).probability(0.8) > 0.98
    True
    """
    below, above = np.linspace(0, threshold, 1001), np.linspace(threshold, 1, 1001)
    best, found = np.inf, Bands(bins, 1)
    for rows in range(1, bins + 1):
        bands = bins // rows
        if rows > 1 and bands == bins // (rows - 1):
            continue
        needless = float(np.mean(1 - (1 - below**rows) ** bands)) * threshold
        missed = float(np.mean((1 - above**rows) ** bands)) * (1 - threshold) + (1 - threshold**rows) ** bands * 1e-3
        error = (1 - _MISS) * needless + _MISS * missed
        if error < best:
            best, found = error, Bands(bands, rows)
    return found


@dataclass(frozen=True)
class Sketches:
    """What is kept of a batch of documents."""

    keys: NDArray[np.uint64]
    """(bands, documents): documents with an equal key in a band are compared."""
    counts: NDArray[np.int64]
    """Hashes kept of each document: fewer than `SKETCH`, or it has at least so many shingles."""
    hashes: NDArray[np.uint32]
    """Different hashes of the shingles of each document, ascending, in a row; of a document with more than `SKETCH`, the smallest."""


def sketches(words: NDArray[np.uint64], counts: NDArray[np.int64], shingle: int, bins: int, bands: Bands) -> Sketches:
    """Return what is kept of documents.

    Args:
        words: hashes of the words of all documents in a row.
        counts: words of each, at least 1.
        shingle: words per shingle.
        bins: length of a signature, a power of two.
        bands: how signatures become keys.
    """
    signatures = np.full((len(counts), bins), _EMPTY, np.uint32)
    sizes = np.empty(len(counts), np.int64)
    kept: list[NDArray[np.uint32]] = []
    ends = np.cumsum(counts)
    edges = np.searchsorted(ends, np.arange(_WORDS, int(ends[-1]) if len(ends) else 0, _WORDS)).tolist()
    for first, last in pairwise(sorted({0, *edges, len(counts)})):  # blocks that fit in a processor's cache
        mine = counts[first:last]
        values = _high(windows(words[ends[first] - counts[first] : ends[last - 1]], mine, shingle))
        hashes, sizes[first:last] = _distinct(values, mine, shingle)
        _bins(hashes, sizes[first:last], signatures[first:last])
        if int(sizes[first:last].max()) > SKETCH:
            hashes = hashes[
                np.arange(len(hashes)) - np.repeat(np.cumsum(sizes[first:last]) - sizes[first:last], sizes[first:last]) < SKETCH
            ]
        kept.append(hashes)
    _fill(signatures.reshape(-1), bins)
    keys = _keys(np.ascontiguousarray(signatures.T), bands)
    return Sketches(keys, np.minimum(sizes, SKETCH), np.concatenate(kept) if kept else np.empty(0, np.uint32))


def _high(values: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Return the high halves."""
    return np.ascontiguousarray(values.astype("<u8", copy=False).view("<u4")[1::2])


def _distinct(values: NDArray[np.uint32], counts: NDArray[np.int64], shingle: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return (different hashes of the shingles of each document, ascending, in a row; how many of each). Sorts `values` in place.

    Args:
        values: hashes by word, those of the last words of a document without meaning.
        counts: words of each document.
        shingle: words per shingle.
    """
    ends = np.cumsum(counts)
    starts = ends - counts
    used = starts + np.maximum(counts - shingle + 1, 1)
    new = np.ones(len(values), bool)
    for start, end in zip(starts.tolist(), used.tolist(), strict=True):
        values[start:end].sort()
    np.not_equal(values[1:], values[:-1], out=new[1:])
    new[starts] = True
    for shift in range(1, shingle):
        at = ends - shift
        new[at[at >= used]] = False
    kept = np.flatnonzero(new)
    return values.take(kept), np.diff(np.searchsorted(kept, np.append(starts, len(values))))


def _bins(hashes: NDArray[np.uint32], sizes: NDArray[np.int64], to: NDArray[np.uint32]) -> None:
    """Write the smallest hash of each bin, without the bits of the bin, to (documents, bins). The hashes of a document are ascending: it is the bin's first."""
    bins = to.shape[1]
    width = np.uint32(32 - (bins.bit_length() - 1))
    bin_ = hashes >> width
    new = np.ones(len(hashes), bool)
    np.not_equal(bin_[1:], bin_[:-1], out=new[1:])
    starts = np.cumsum(sizes) - sizes
    new[starts] = True
    at = np.flatnonzero(new)
    place = bin_.take(at).astype(np.int64)
    place += np.repeat(np.arange(0, len(sizes) * bins, bins), np.diff(np.searchsorted(at, np.append(starts, len(hashes)))))
    to.reshape(-1)[place] = hashes.take(at) & ((np.uint32(1) << width) - np.uint32(1))


def _fill(flat: NDArray[np.uint32], bins: int) -> None:
    """Give each empty bin the value of the first bin of its own random sequence that was not empty. Every document has a bin that is not."""
    empty = np.flatnonzero(flat == _EMPTY)
    bin_ = empty & (bins - 1)
    first = empty - bin_  # of the document's bins
    values = flat.copy()
    attempt = 0
    while len(empty):
        at_once = 1 if attempt < _SINGLE else _ATTEMPTS  # most are found by the first, and few are left for the others
        found = values.take(_drawn(bins, attempt, at_once).take(bin_, axis=1) + first)
        found = found[(found != _EMPTY).argmax(axis=0), np.arange(len(empty))]
        flat[empty] = found
        left = np.flatnonzero(found == _EMPTY)
        empty, bin_, first = empty.take(left), bin_.take(left), first.take(left)
        attempt += at_once


@lru_cache(256)
def _drawn(bins: int, attempt: int, attempts: int) -> NDArray[np.int64]:
    """(attempts, bins): which bin each bin copies at this attempt and the next ones."""
    numbers = np.arange(bins, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    shifts = np.array([(a + 1) * 0xD1B54A32D192ED03 % 2**64 for a in range(attempt, attempt + attempts)], np.uint64)
    return (mixed(numbers + shifts[:, None]) % np.uint64(bins)).astype(np.int64)


def _keys(signatures: NDArray[np.uint32], bands: Bands) -> NDArray[np.uint64]:
    """Return one 64-bit key per band and document."""
    rows = signatures[: bands.bands * bands.rows].reshape(bands.bands, bands.rows, -1)
    keys = np.repeat(np.arange(1, bands.bands + 1, dtype=np.uint64)[:, None], rows.shape[2], axis=1)
    for row in range(bands.rows):
        keys ^= rows[:, row]
        keys *= np.uint64(0x9FB21C651E98DF25)
        keys ^= keys >> np.uint64(32)
    return mixed(keys)
