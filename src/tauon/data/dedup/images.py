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

__all__ = ["BITS", "RMS", "Repeats", "cells", "copies", "dhash", "grey", "hashes_of", "near_copies", "near_pairs", "thumbnails"]

BITS, RMS = 4, 0.02
"""Most different bits of the hashes, and most root mean square difference of the thumbnails, where 1 is black to white."""
_SIDE = 16
_ALIKE, _NOISE = 0.99, 0.03
"""Least correlation of thumbnails, and most noise in the pixels, of images that are equal up to exposure."""
_BLOCK = 2048
_ROUNDING = 4e-6
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


def cells(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """(N, height, width): means over cells of (N, H, W), a pixel at a border counted in proportion."""

    def weights(size: int, cells: int) -> NDArray[Any]:
        edges = np.linspace(0, size, cells + 1)
        low, high = np.maximum(edges[:-1, None], np.arange(size)), np.minimum(edges[1:, None], np.arange(1, size + 1))
        overlap = np.clip(high - low, 0, None)
        return np.asarray(overlap / overlap.sum(1, keepdims=True), np.float32)

    narrow = pixels.reshape(-1, pixels.shape[2]) @ weights(pixels.shape[2], width).T
    out: NDArray[Any] = np.einsum("hH,nHw->nhw", weights(pixels.shape[1], height), narrow.reshape(len(pixels), -1, width), optimize=True)
    return out


def grey(images: NDArray[Any]) -> NDArray[Any]:
    """(N, H, W) from 0 to 1, from (N, C, H, W) with 0 to 255."""
    whole: NDArray[Any] = images.astype(np.float32) / 255
    if whole.shape[1] == 3:
        return np.asarray(np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), whole, axes=(0, 1)))
    return np.asarray(whole.mean(axis=1))


def dhash(images: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the 64-bit difference hash of each image, (N, C, H, W) with values from 0 to 255. Cells that differ by rounding alone are equal."""
    small = cells(grey(images), 8, 9)
    bits = np.packbits((small[:, :, 1:] > small[:, :, :-1] + _ROUNDING).reshape(len(small), 64), axis=1)
    return bits.view(">u8").reshape(-1).astype(np.uint64)


def thumbnails(images: NDArray[Any]) -> NDArray[Any]:
    """Return grey thumbnails from 0 to 1, (N, 256)."""
    return cells(grey(images), _SIDE, _SIDE).reshape(len(images), -1)


def _described(images: NDArray[Any]) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """Return (dHash, thumbnail) of each, some images at a time."""
    parts = [(dhash(some), thumbnails(some)) for some in (images[a : a + 4096] for a in range(0, len(images), 4096))]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def hashes_of(images: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the difference hashes of any number of images, some at a time."""
    parts = [dhash(images[a : a + 4096]) for a in range(0, len(images), 4096)]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


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


def near_pairs(images: NDArray[Any]) -> NDArray[np.int64]:
    """Return the pairs of images, (M, 2) with the earlier one first, that are equal up to exposure and a little noise.

    Every pair is compared: thumbnails must correlate by `_ALIKE`, and after the best change of brightness and contrast the pixels of both may differ by
    `_NOISE` on average (root mean square, 1 is black to white). Images of one colour are not compared. Equal images are pairs, too.

    Args:
        images: (N, C, H, W) with values from 0 to 255. Takes N^2 * 512 operations.
    """
    parts = [thumbnails(images[a : a + 4096]) for a in range(0, len(images), 4096)]
    small = np.concatenate(parts) if parts else np.empty((0, _SIDE**2), np.float32)
    some = np.flatnonzero(small.std(1) > RMS)
    unit = small[some] - small[some].mean(1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    pairs = []
    for a in range(0, len(some), _BLOCK):
        left, right = np.nonzero(unit[a : a + _BLOCK] @ unit[a:].T >= _ALIKE)
        later = right > left
        pairs.append(np.stack([some[left[later] + a], some[right[later] + a]], 1))
    found = np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)
    kept = [_equal_up_to_exposure(images, found[a : a + _BLOCK]) for a in range(0, len(found), _BLOCK)]
    return found[np.concatenate(kept)] if kept else found


def _equal_up_to_exposure(images: NDArray[Any], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    a, b = (images[pairs[:, side]].reshape(len(pairs), -1).astype(np.float32) / 255 for side in (0, 1))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    square_a, square_b, both = (a * a).mean(1), (b * b).mean(1), (a * b).mean(1)
    correlation = both / np.sqrt(square_a * square_b + 1e-12)
    left = np.maximum(square_a, square_b) * np.maximum(0, 1 - correlation**2)
    contrast = np.sqrt(square_a / (square_b + 1e-12))
    near: NDArray[np.bool_] = (left <= _NOISE**2) & (contrast > 0.5) & (contrast < 2) & (correlation > 0)
    return near
