"""Clusters of similar documents from their sketches: documents with an equal key in a band are compared, and those that are similar enough are
joined. A cluster is what is connected by such pairs; its first document represents it.

Memory: 8 bytes per document for the clusters, and the keys of one band, in portions of a given size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tauon.data.dedup.minhash import SKETCH
from tauon.data.dedup.sketch_files import SketchFiles
from tauon.data.progress import report

__all__ = ["Remembered", "clusters", "jaccard"]

_NEIGHBOURS = 8
"""How far apart two documents of one bucket may be (in order of their numbers) to be compared; each is compared with the first, too."""
_AT_ONCE = 1 << 17
"""Hashes that are compared at once."""
_PAIRS = 1 << 16
"""Pairs after which the clusters are looked at again: those that are in one by then need no comparison."""
_REMEMBERED = 1 << 22

Similarity = Callable[[SketchFiles, NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]


def clusters(files: SketchFiles, folder: Path, threshold: float, similarity: Similarity, memory: int) -> NDArray[np.int64]:
    """Return the first document of each document's cluster. Continues after the last band whose result is in `folder`.

    Args:
        files: the sketches.
        folder: where the state is kept after each band.
        threshold: documents from this similarity are joined.
        similarity: of pairs of documents.
        memory: bytes of keys that are sorted at once.
    """
    bands, n = files.bands, len(files)
    parent, start = np.arange(n), 0
    unlike = _Unlike(n)
    for path in sorted(folder.glob("clusters-*.npy")):
        parent, start = np.load(path, allow_pickle=False), int(path.stem.rpartition("-")[2])
    portions = max(1, -(-n * 24 // memory))
    for band in range(start, bands):
        report("compare documents", band, bands)
        for portion in range(portions):
            keys, documents = _portion(files, band, portion, portions)
            for a, b in _candidates(keys, documents):
                _join(parent, a, b, unlike, lambda x, y: similarity(files, x, y) >= threshold)
        temporary = folder / ".clusters.npy"
        np.save(temporary, parent, allow_pickle=False)
        temporary.replace(folder / f"clusters-{band + 1:04d}.npy")
        (folder / f"clusters-{band:04d}.npy").unlink(missing_ok=True)
    return _roots(parent, np.arange(n))


def _portion(files: SketchFiles, band: int, portion: int, portions: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return (sorted keys, document of each) of one range of keys; documents with an equal key are in order."""
    low, high = portion * 2**64 // portions, (portion + 1) * 2**64 // portions - 1
    keys, documents = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for first, mine in files.keys(band):
        at = np.arange(len(mine)) if portions == 1 else np.flatnonzero((mine >= np.uint64(low)) & (mine <= np.uint64(high)))
        keys.append(mine[at])
        documents.append(first + at)
    whole, numbers = np.concatenate(keys), np.concatenate(documents)
    order = np.argsort(whole)
    whole = whole.take(order)
    same = whole[1:] == whole[:-1]
    twice = np.zeros(len(whole), bool)
    twice[1:] |= same
    twice[:-1] |= same
    at = np.flatnonzero(twice)
    whole, numbers = whole.take(at), numbers.take(order.take(at))
    new = np.ones(len(whole), np.int64)
    new[1:] = whole[1:] != whole[:-1]
    rank = np.cumsum(new) * len(files)
    numbers += rank
    numbers.sort()
    return whole, numbers - rank


def _candidates(keys: NDArray[np.uint64], documents: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs (earlier, later) of documents with equal keys: each with the first, then with its next neighbours."""
    if not len(keys):
        return
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    sizes = np.diff(np.append(starts, len(keys)))
    first = np.repeat(starts, sizes)
    others = np.flatnonzero(first != np.arange(len(keys)))
    yield documents[first[others]], documents[others]
    for step in range(1, min(_NEIGHBOURS, len(keys) - 1) + 1):
        at = np.flatnonzero(keys[step:] == keys[:-step])
        at = at[first[at] != at]  # pairs with the first were compared
        if len(at):
            yield documents[at], documents[at + step]


class _Unlike:
    """Pairs that were compared and are not alike: bands find them again. Only saves time: pairs that it forgets are compared again."""

    def __init__(self, documents: int) -> None:
        self.documents, self.codes = documents, np.empty(0, np.int64)

    def without(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of the pairs that are not in it."""
        codes = a * self.documents + b
        if not len(self.codes):
            return np.arange(len(codes))
        at = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.flatnonzero(self.codes[at] != codes)

    def add(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        """Remember pairs."""
        if len(self.codes) < _REMEMBERED and self.documents < 2**31:
            self.codes = np.union1d(self.codes, a * self.documents + b)


class Remembered:
    """A similarity whose values from a threshold on are kept: those of the pairs that connect a cluster are asked for again at the end. Only saves
    time: what it forgets is computed again, to the same value.
    """

    def __init__(self, similarity: Similarity, threshold: float) -> None:
        self._similarity, self._threshold = similarity, threshold
        self._codes, self._values = [np.empty(0, np.int64)], [np.empty(0)]
        self._size = 0

    def __call__(self, files: SketchFiles, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
        """Compare pairs, and keep what is alike."""
        found = self._similarity(files, a, b)
        alike = np.flatnonzero(found >= self._threshold)
        if self._size < _REMEMBERED and len(files) < 2**31:
            self._codes.append(a[alike] * len(files) + b[alike])
            self._values.append(found[alike])
            self._size += len(alike)
        return found

    def again(self, files: SketchFiles, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the similarity of each pair, earlier document first; those that were compared before are looked up."""
        codes, values = np.concatenate(self._codes), np.concatenate(self._values)
        order = np.argsort(codes, kind="stable")
        codes, values = np.append(codes[order], -1), np.append(values[order], 0.0)
        wanted = a * len(files) + b
        at = np.searchsorted(codes[:-1], wanted)
        new = np.flatnonzero(codes[at] != wanted)
        out: NDArray[np.float64] = values[at]
        out[new] = self._similarity(files, a[new], b[new])
        return out


def _join(
    parent: NDArray[np.int64],
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    unlike: _Unlike,
    alike: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]],
) -> None:
    """Join the clusters of those pairs that are alike."""
    apart = np.flatnonzero(_roots(parent, a) != _roots(parent, b))
    for at in range(0, len(apart), _PAIRS):
        x, y = a[apart[at : at + _PAIRS]], b[apart[at : at + _PAIRS]]
        fresh = _roots(parent, x) != _roots(parent, y)
        x, y = x[fresh], y[fresh]
        new = unlike.without(x, y)
        x, y = x[new], y[new]
        if len(x):
            same = alike(x, y)
            _unite(parent, x[same], y[same])
            unlike.add(x[~same], y[~same])


def _roots(parent: NDArray[np.int64], of: NDArray[np.int64]) -> NDArray[np.int64]:
    found = parent[of]
    while True:
        above = parent[found]
        if np.array_equal(above, found):
            parent[of] = found
            return found
        found = above


def _unite(parent: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
    """Join the clusters of each pair: every root points at the smallest root that it is paired with, until all pairs agree."""
    while len(a):
        x, y = _roots(parent, a), _roots(parent, b)
        apart = x != y
        a, b, x, y = a[apart], b[apart], x[apart], y[apart]
        np.minimum.at(parent, np.maximum(x, y), np.minimum(x, y))


def jaccard(files: SketchFiles, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the Jaccard similarity of the shingles of each pair; of documents with more than `SKETCH` shingles an estimate from the smallest
    hashes of both (bottom-k, Cohen & Kaplan 2007), whose standard error is at most 0.016.
    """
    out = np.empty(len(a))
    size = max(1, _AT_ONCE // (2 * SKETCH))
    for at in range(0, len(a), size):
        out[at : at + size] = _jaccard(files, a[at : at + size], b[at : at + size])
    return out


def _jaccard(files: SketchFiles, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    hashes, sizes = files.gather(np.column_stack([a, b]).ravel())  # of each pair in a row
    edges = np.append(0, np.cumsum(sizes[::2] + sizes[1::2]))
    for start, end in pairwise(edges.tolist()):
        hashes[start:end].sort(kind="stable")  # merges the two, which are ascending
    both = hashes[1:] == hashes[:-1]  # each document has a hash once
    both[edges[1:-1] - 1] = False
    shared = np.diff(np.searchsorted(np.flatnonzero(both), edges))
    union = sizes[::2] + sizes[1::2] - shared
    out: NDArray[np.float64] = shared / np.maximum(union, 1)
    for pair in np.flatnonzero((sizes[::2] >= SKETCH) | (sizes[1::2] >= SKETCH)).tolist():  # the smallest hashes of the union
        mine = hashes[edges[pair] : edges[pair + 1]]
        new = np.append(True, mine[1:] != mine[:-1])
        twice = np.append(~new[1:], False)[new]
        out[pair] = twice[:SKETCH].mean()
    return out
