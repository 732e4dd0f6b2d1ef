"""Examples that occur again: equal ones of any kind, and images and recordings that nearly are, by perceptual hash.

Texts that are nearly equal, and what is in several sources, are another matter: there the whole corpus does not fit in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from tauon.config import register
from tauon.data.clean.base import RowFilter, RowVerdicts
from tauon.data.dedup.images import hashes_of
from tauon.data.sources.base import Arrays, LabelledTexts, Signals, Table

__all__ = ["DuplicatesConfig", "NearDuplicatesConfig"]


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
        for row, before, bits in _near(hashes_of(data.features).tolist(), self.distance):
            verdicts.reject([row], "near_duplicate", f"{bits} of 64 bits from example {before}, no more than {self.distance}")
        return verdicts


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
