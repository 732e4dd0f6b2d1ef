"""Examples that occur again: equal ones of any kind, and images and recordings that nearly are, by perceptual hash.

Texts that are nearly equal, and what is in several sources, are another matter: there the whole corpus does not fit in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import register
from tauon.data.clean.base import RowFilter, RowVerdicts
from tauon.data.sources.base import Arrays, LabelledTexts, Signals, Table

__all__ = ["DuplicatesConfig", "NearDuplicatesConfig", "difference_hashes"]


@register("duplicates")
class DuplicatesConfig(RowFilter):
    """Reject examples whose features and target are those of an example before. The same features with another target are reported."""

    looks_at_others: ClassVar[bool] = True
    cleans: ClassVar[tuple[str, ...]] = ("labelled-text", "table", "images", "signals")

    def apply(self, data: Any) -> RowVerdicts:
        verdicts, first = RowVerdicts(), dict[bytes, tuple[int, Any]]()
        targets, conflicts = _targets(data), 0
        for row, digest in enumerate(_digests(data)):
            before, target = first.setdefault(digest, (row, targets[row]))
            if before == row:
                continue
            if target == targets[row]:
                verdicts.reject([row], "duplicate", f"equal to example {before}")
            else:
                conflicts += 1
        if conflicts:
            verdicts.notes.append(f"{conflicts:,} examples have the features of another one and another target: one of each two is wrong")
        return verdicts


@register("near-duplicates")
class NearDuplicatesConfig(RowFilter):
    """Reject images that differ in few bits of their difference hash (dHash, Krawetz 2013) from one before, whatever their targets.

    Small images of one kind (handwritten digits) have few different hashes: look at what is rejected.
    """

    distance: int = Field(default=2, ge=0, le=16)
    """Largest number of different bits, of 64."""
    looks_at_others: ClassVar[bool] = True
    cleans: ClassVar[tuple[str, ...]] = ("images",)

    def apply(self, data: Arrays) -> RowVerdicts:
        verdicts = RowVerdicts()
        for row, before, bits in _near(difference_hashes(data.features).tolist(), self.distance):
            verdicts.reject([row], "near_duplicate", f"{bits} of 64 bits from example {before}, no more than {self.distance}")
        return verdicts


def difference_hashes(images_NCHW: NDArray[Any]) -> NDArray[np.uint64]:
    """Return 64 bits of each image: whether each of 8 x 8 fields is darker than its right neighbour, in the grey image shrunk to 9 x 8."""
    rows = _shrink(images_NCHW.shape[2], 8)
    columns = _shrink(images_NCHW.shape[3], 9)
    bits = np.empty((len(images_NCHW), 64), np.uint8)
    for a in range(0, len(images_NCHW), 1024):
        grey_NHW = images_NCHW[a : a + 1024].mean(axis=1, dtype=np.float32)
        small_N89 = rows @ grey_NHW @ columns.T
        bits[a : a + 1024] = (small_N89[:, :, 1:] > small_N89[:, :, :-1] + 1e-3).reshape(-1, 64)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


def _shrink(before: int, after: int) -> NDArray[np.float32]:
    """Return the matrix (after, before) of means over equal intervals."""
    edges = np.linspace(0, before, after + 1)
    cells = np.arange(before)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    weights = np.clip(overlap, 0, None)
    means: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return means


def _near(hashes: Sequence[int], distance: int) -> Iterator[tuple[int, int, int]]:
    """Yield (row, a row before that is kept, different bits). Hashes within `distance` bits have one of distance + 1 bands in common."""
    edges = np.linspace(0, 64, distance + 2).astype(int).tolist()
    bands: list[dict[int, list[int]]] = [{} for _ in range(distance + 1)]
    for row, value in enumerate(hashes):
        keys = [value >> a & ((1 << (b - a)) - 1) for a, b in pairwise(edges)]
        found = {k for band, key in zip(bands, keys, strict=True) for k in band.get(key, ())}
        bits, before = min((((value ^ hashes[k]).bit_count(), k) for k in found), default=(64, row))
        if found and bits <= distance:
            yield row, before, bits
            continue
        for band, key in zip(bands, keys, strict=True):
            band.setdefault(key, []).append(row)


def _targets(data: Any) -> Sequence[Any]:
    if isinstance(data, Signals) and data.targets is None:
        return data.transcripts
    listed: list[Any] = data.targets.tolist()
    return [tuple(v) if isinstance(v, list) else v for v in listed]


def _digests(data: Any) -> Iterator[bytes]:
    if isinstance(data, LabelledTexts):
        for text in data.texts:
            yield hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).digest()
    elif isinstance(data, Table):
        for values in zip(*data.columns.values(), strict=True):
            yield hashlib.sha256(repr(values).encode("utf-8", "surrogatepass")).digest()
    else:
        for example in data.waves if isinstance(data, Signals) else data.features:
            array = np.ascontiguousarray(example)
            yield hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).digest()
