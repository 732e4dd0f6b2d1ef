"""Images that are nearly equal: the same difference hash up to a few bits, and thumbnails whose pixels differ by little.

dHash (Krawetz 2013): whether each of 9 x 8 grey cells is brighter than the one to its left, 64 bits. It alone says that all handwritten ones are alike, so a
pair must also agree in a thumbnail of 16 x 16. Finds copies that were compressed, resized or changed slightly; not crops, flips or other exposures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BITS", "Repeats", "copies", "dhash", "near_copies", "thumbnails"]

BITS, RMS = 4, 0.02
"""Most different bits of the hashes, and most root mean square difference of the thumbnails, where 1 is black to white."""
_SIDE = 16
_BLOCK = 2048
_FAR = 1 << 18
_STEPS = np.array([1 << 40, 1 << 20, 1])
"""Number of a cell from its place in each direction, from 1 to 2 * `_FAR`."""


@dataclass(frozen=True)
class Repeats:
    """Training examples that repeat held-out ones."""

    train: NDArray[np.int64]
    """Place of each in the training part, ascending; one entry per training example."""
    held: NDArray[np.int64]
    """Place of one held-out example that it repeats."""


def copies(train: NDArray[Any], held: NDArray[Any]) -> Repeats:
    """Return the rows of `train` that equal a row of `held` in every number.

    >>> copies(np.array([[1, 2], [3, 4]]), np.array([[3, 4]])).train.tolist()
    [1]
    """
    kind = np.result_type(train, held)
    first: dict[bytes, int] = {}
    for i, row in enumerate(held):
        first.setdefault(np.ascontiguousarray(row, kind).tobytes(), i)
    found = [(i, first[key]) for i, row in enumerate(train) if (key := np.ascontiguousarray(row, kind).tobytes()) in first]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return Repeats(pairs[:, 0], pairs[:, 1])


def _cells(grey: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """(N, height, width): means over cells of (N, H, W), a pixel at a border counted in proportion."""

    def weights(size: int, cells: int) -> NDArray[Any]:
        edges = np.linspace(0, size, cells + 1)
        low, high = np.maximum(edges[:-1, None], np.arange(size)), np.minimum(edges[1:, None], np.arange(1, size + 1))
        overlap = np.clip(high - low, 0, None)
        return np.asarray(overlap / overlap.sum(1, keepdims=True), np.float32)

    narrow = grey.reshape(-1, grey.shape[2]) @ weights(grey.shape[2], width).T
    out: NDArray[Any] = np.einsum("hH,nHw->nhw", weights(grey.shape[1], height), narrow.reshape(len(grey), -1, width), optimize=True)
    return out


def _grey(images: NDArray[Any]) -> NDArray[Any]:
    """(N, H, W) from 0 to 1, from (N, C, H, W) with 0 to 255."""
    whole: NDArray[Any] = images.astype(np.float32) / 255
    if whole.shape[1] == 3:
        return np.asarray(np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), whole, axes=(0, 1)))
    return np.asarray(whole.mean(axis=1))


def dhash(images: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the 64-bit difference hash of each image, (N, C, H, W) with values from 0 to 255."""
    cells = _cells(_grey(images), 8, 9)
    bits = np.packbits((cells[:, :, 1:] > cells[:, :, :-1]).reshape(len(cells), 64), axis=1)
    return bits.view(">u8").reshape(-1).astype(np.uint64)


def thumbnails(images: NDArray[Any]) -> NDArray[Any]:
    """Return grey thumbnails from 0 to 1, (N, 256)."""
    return _cells(_grey(images), _SIDE, _SIDE).reshape(len(images), -1)


def _described(images: NDArray[Any]) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """Return (dHash, thumbnail) of each, some images at a time."""
    parts = [(dhash(some), thumbnails(some)) for some in (images[a : a + 4096] for a in range(0, len(images), 4096))]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def near_copies(train: NDArray[Any], held: NDArray[Any]) -> Repeats:
    """Return the images of `train` that are nearly equal to one of `held`; both (N, C, H, W) with values from 0 to 255. Images of one colour are
    not compared.
    """
    hash_t, small_t = _described(train)
    hash_h, small_h = _described(held)
    some_t, some_h = np.flatnonzero(small_t.std(1) > RMS), np.flatnonzero(small_h.std(1) > RMS)
    best: dict[int, tuple[float, int]] = {}
    for mine, others in _neighbours(small_t[some_t], small_h[some_h]):
        mine, others = some_h[mine], some_t[others]
        a, b = np.nonzero(np.bitwise_count(hash_h[mine][:, None] ^ hash_t[others]) <= BITS)
        difference = np.sqrt(((small_h[mine[a]] - small_t[others[b]]) ** 2).mean(1))
        for i in np.flatnonzero(difference <= RMS).tolist():
            place, found = int(others[b[i]]), (float(difference[i]), int(mine[a[i]]))
            best[place] = min(best.get(place, found), found)
    places = sorted(best)
    return Repeats(np.array(places, np.int64), np.array([best[p][1] for p in places], np.int64))


def _neighbours(train: NDArray[Any], held: NDArray[Any]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (held-out images, training images) that hold every pair of thumbnails whose difference is at most `RMS`: their projections on
    three directions are no farther apart than they are, so the images are in the same or adjacent cells of a grid.
    """
    if not len(train) or not len(held):
        return
    centre = train.mean(0)
    _, axes = np.linalg.eigh(np.cov((train - centre).T))
    size = RMS * _SIDE * 1.01
    cells_t, cells_h = (np.floor((x - centre) @ axes[:, -3:] / size).astype(np.int64) + _FAR for x in (train, held))
    keys_t, keys_h = (np.clip(c, 1, 2 * _FAR) @ _STEPS for c in (cells_t, cells_h))
    order = np.argsort(keys_t, kind="stable")
    keys_t = keys_t[order]
    order_h = np.argsort(keys_h, kind="stable")
    edges = np.flatnonzero(np.append(True, np.diff(keys_h[order_h]) != 0))
    around = np.array([[a, b, c] for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)]) @ _STEPS
    for start, end in zip(edges.tolist(), [*edges[1:].tolist(), len(order_h)], strict=True):
        wanted = keys_h[order_h[start]] + around
        low, high = np.searchsorted(keys_t, wanted), np.searchsorted(keys_t, wanted, side="right")
        others = np.concatenate([order[a:b] for a, b in zip(low.tolist(), high.tolist(), strict=True)])
        for at in range(0, len(others), _BLOCK):
            for begin in range(start, end, _BLOCK):
                yield order_h[begin : min(begin + _BLOCK, end)], others[at : at + _BLOCK]
