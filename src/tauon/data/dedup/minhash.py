"""MinHash signatures by one permutation, with empty bins filled, and their keys for locality-sensitive hashing.

One hash per shingle instead of one per shingle and permutation (Li, Owen & Zhang 2012, arXiv:1208.1259): the shingles fall into bins by their
high bits, and a bin's value is its smallest. An empty bin copies another one that is drawn by its own sequence (optimal densification, Shrivastava
2017, arXiv:1703.04664). The chance that two documents agree in a bin is their Jaccard similarity, as with k permutations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tauon.data.dedup.words import mixed, ngrams

__all__ = ["SKETCH", "Bands", "Sketches", "choose_bands", "sketches"]

SKETCH = 1024
"""Most shingles that are kept of a document, the smallest hashes: the similarity of longer ones is estimated from these."""
_EMPTY = np.uint32(0xFFFFFFFF)
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
    values, whose = ngrams(words, counts, shingle)
    codes = np.sort((whose.astype(np.uint64) << np.uint64(32)) | (values >> np.uint64(32)))
    codes = codes[np.append(True, codes[1:] != codes[:-1])]
    whose, hashes = (codes >> np.uint64(32)).astype(np.int64), codes.astype(np.uint32)
    sizes = np.bincount(whose, minlength=len(counts))
    signatures = _signatures(hashes, whose, len(counts), bins)
    if int(sizes.max(initial=0)) > SKETCH:
        hashes = hashes[np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes) < SKETCH]
    return Sketches(_keys(signatures, bands), np.minimum(sizes, SKETCH), hashes)


def _signatures(hashes: NDArray[np.uint32], whose: NDArray[np.int64], documents: int, bins: int) -> NDArray[np.uint32]:
    """(bins, documents): the smallest hash of each bin, without the bits of the bin."""
    width = 32 - (bins.bit_length() - 1)
    flat = np.full(documents * bins, _EMPTY, np.uint32)
    np.minimum.at(flat, whose * bins + (hashes >> np.uint32(width)), hashes & np.uint32((1 << width) - 1))
    _fill(flat, bins)
    return np.ascontiguousarray(flat.reshape(documents, bins).T)


def _fill(flat: NDArray[np.uint32], bins: int) -> None:
    """Give each empty bin the value of the first bin of its own random sequence that was not empty. Every document has a bin that is not."""
    empty = np.flatnonzero(flat == _EMPTY)
    values = flat.copy()
    attempt = 0
    while len(empty):
        bin_ = empty % bins
        drawn = mixed(bin_.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64((attempt + 1) * 0xD1B54A32D192ED03 % 2**64))
        source = empty - bin_ + (drawn % np.uint64(bins)).astype(np.int64)
        found = values[source]
        flat[empty] = found
        empty = empty[found == _EMPTY]
        attempt += 1


def _keys(signatures: NDArray[np.uint32], bands: Bands) -> NDArray[np.uint64]:
    """Return one 64-bit key per band and document."""
    rows = signatures[: bands.bands * bands.rows].reshape(bands.bands, bands.rows, -1)
    keys = np.repeat(np.arange(1, bands.bands + 1, dtype=np.uint64)[:, None], rows.shape[2], axis=1)
    for row in range(bands.rows):
        keys ^= rows[:, row]
        keys *= np.uint64(0x9FB21C651E98DF25)
        keys ^= keys >> np.uint64(32)
    return mixed(keys)
