"""Records that are nearly equal: edited texts, images with another exposure or a little noise, recordings with another level.

Equal records are the matter of `equal.py`, and are not named again here. Does not find parts of records (crops, quotations).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.dedup.config import DedupConfig
from tauon.data.dedup.find import find_duplicates
from tauon.data.dedup.images import near_pairs
from tauon.data.quality.base import DataView, Finding, QualityCheck, counted, examples_of, show
from tauon.data.quality.equal import groups_of_equal

__all__ = ["NearDuplicates"]

TEXTS = DedupConfig(threshold=0.6, shingle=2)
"""Edited texts: 60% of their pairs of words in common."""
WORDS = 8
"""Shorter texts are not compared: two of them are alike by chance."""
FEW_WORDS, ALIKE_IF_FEW = 20, 0.8
"""Texts shorter than this must have more in common: two sentences of one pattern are no copies."""
MOST = 30_000
"""Images or recordings that are compared; of more, a sample."""
ALIKE, SECONDS = 0.995, 0.02
"""Least correlation of two recordings' spectrograms, and most difference of their lengths, as a share."""
_BANDS, _TIMES = 24, 24


@register("near-duplicates")
class NearDuplicates(QualityCheck):
    """Records that are nearly the same as another: edited texts, copies of images and recordings."""

    kinds = ("texts", "images", "recordings")
    title = "Near-duplicates"

    def find(self, view: DataView) -> Iterator[Finding]:
        rows = _representatives(view)
        total = len(rows)
        if view.kind != "texts" and total > MOST:
            rows = rows[np.linspace(0, total - 1, MOST).astype(np.int64)]
        sample = f" ({len(rows):,} of {total:,} were compared)" if len(rows) < total else ""
        leaks, repeats = [], []
        for group in groups_of_near(view, rows):
            train = [i for i in group if view.part_N[i] == "train"]
            held = [i for i in group if view.part_N[i] != "train"]
            leaks += [(h, train[0]) for h in held] if train else []
            repeats += [(a, b) for mine in (train, held) for a, b in pairwise(mine)]
        if leaks:
            message = (
                f"{counted(len(leaks), 'held-out record')} nearly the same as a training record{sample}: results on such records may be too good. Remove "
                "the copies from training, or split by group"
            )
            yield Finding("near leaks", "warn", message, tuple(leaks), examples_of(view, leaks, lambda i: show(view, i)))
        if repeats:
            message = f"{counted(len(repeats), 'record')} nearly the same as another of the same part{sample}"
            yield Finding("near duplicates", "note", message, tuple(repeats), examples_of(view, repeats, lambda i: show(view, i)))


def _representatives(view: DataView) -> NDArray[np.int64]:
    """Return the records without those that equal an earlier one of the same side (training or held-out)."""
    again = set()
    for group in view.once("equal", lambda: groups_of_equal(view)):
        for side in (True, False):
            again.update([i for i in group if (view.part_N[i] == "train") == side][1:])
        again.update(i for i in group if view.part_N[i] != "train" and any(view.part_N[j] == "train" for j in group))
    return np.array([i for i in range(len(view)) if i not in again], np.int64)


def groups_of_near(view: DataView, rows: NDArray[np.int64]) -> list[list[int]]:
    """Return records that are nearly the same as the first of their group, each group in order."""
    if view.kind == "texts":
        pairs = _texts(view, rows)
    elif view.images is not None:
        pairs = near_pairs(view.images[rows])
    else:
        pairs = _recordings(view, rows)
    first: dict[int, int] = {}
    groups: dict[int, list[int]] = {}
    for a, b in sorted((int(rows[i]), int(rows[j])) for i, j in pairs):
        head = first.setdefault(a, a)
        if b not in first:
            first[b] = head
            groups.setdefault(head, [head]).append(b)
    return [sorted(group) for group in groups.values()]


def _texts(view: DataView, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    long = np.array([k for k, i in enumerate(rows.tolist()) if len(view.texts[i].split()) >= WORDS], np.int64)
    with tempfile.TemporaryDirectory() as folder:
        found = find_duplicates(lambda: (view.texts[int(rows[k])] for k in long), TEXTS, Path(folder))
    words = np.array([len(view.texts[int(rows[k])].split()) for k in long], np.int64)
    shorter = np.minimum(words[found.of], words[found.removed])
    real = found.similarity >= np.where(shorter < FEW_WORDS, ALIKE_IF_FEW, TEXTS.threshold)
    return np.stack([long[found.of[real]], long[found.removed[real]]], 1) if real.any() else np.empty((0, 2), np.int64)


def _recordings(view: DataView, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(rows):
        return np.empty((0, 2), np.int64)
    prints = np.stack([fingerprint(view.waves[i], view.rate) for i in rows.tolist()])
    seconds = np.array([len(view.waves[i]) for i in rows.tolist()], np.float64)
    pairs = []
    for a in range(0, len(rows), 2048):
        left, right = np.nonzero(prints[a : a + 2048] @ prints[a:].T >= ALIKE)
        near = (right > left) & (np.abs(seconds[left + a] - seconds[right + a]) <= SECONDS * seconds[left + a])
        pairs.append(np.stack([left[near] + a, right[near] + a], 1))
    return np.concatenate(pairs)


def fingerprint(wave: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Return what a recording sounds like, whatever its level: the logarithm of the energy in 24 bands of frequency at 24 times, as a unit vector."""
    out = np.zeros((_TIMES, _BANDS), np.float32)
    size = 2 ** max(6, round(np.log2(0.032 * max(rate, 2000))))
    if len(wave) >= size:
        starts = np.linspace(0, len(wave) - size, 4 * _TIMES).astype(np.int64)
        frames = wave[starts[:, None] + np.arange(size)] * np.hanning(size).astype(np.float32)
        power = np.abs(np.fft.rfft(frames)) ** 2
        edges = np.unique(np.geomspace(1, power.shape[1], _BANDS + 1).astype(np.int64))
        bands = np.add.reduceat(power, edges[:-1], axis=1)
        at_times = bands.reshape(_TIMES, 4, -1).mean(1)
        out[:, : at_times.shape[1]] = np.log(at_times + 1e-4 * at_times.max() + 1e-20)
        out[:, : at_times.shape[1]] -= out[:, : at_times.shape[1]].mean()
    norm = float(np.linalg.norm(out))
    unit: NDArray[np.float32] = out.ravel() / norm if norm > 0 else out.ravel()
    return unit
