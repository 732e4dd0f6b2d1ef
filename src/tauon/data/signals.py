"""Waveforms as training examples of one length, padded at the end; augmented in training.

No statistics are fitted: models normalise each recording by itself (`models/families/mel.py`).

Shape legend: B batch, T samples, U characters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tauon.data.audio_augment import AudioAugmentConfig
from tauon.data.augment import Draws
from tauon.data.sources.base import Signals
from tauon.errors import DataError
from tauon.types import Batch, DataSpec

__all__ = ["BLANK", "SignalDataset", "fitted", "inputs_from_waves"]

BLANK = "<blank>"
"""Name of output 0 if outputs are characters (CTC's blank). Output 1 is always the space."""


class SignalDataset:
    """Recordings of one length. Example `i` of epoch `e` is a pure function of (seed, e, i); safe to share between threads."""

    def __init__(
        self, signals: Signals, rows: NDArray[np.int64], targets: NDArray[np.int64], spec: DataSpec, *, spelled: bool, seed: int = 0,
        augments: Sequence[AudioAugmentConfig] = (),
    ) -> None:  # fmt: skip
        """`targets` of `rows`: classes (N), or characters (N, U)."""
        assert spec.input_shape is not None
        self._signals, self._rows, self._targets, self._seed, self._augments = signals, rows, targets, seed, tuple(augments)
        self._samples, self.spec = spec.input_shape[0], spec
        lengths = [len(signals.waves[i]) for i in rows]
        self.facts: dict[str, Any] = {"recordings": len(rows), "seconds": round(sum(lengths) / signals.rate, 3)}
        self.facts["cropped"] = sum(n > self._samples for n in lengths)
        if spelled:
            self.facts["characters"] = int((targets >= 0).sum())
        else:
            counts = np.bincount(targets, minlength=len(spec.labels)).tolist()
            self.facts["classes"] = dict(zip(spec.labels, counts, strict=True))

    def __len__(self) -> int:
        return len(self._rows)

    def without_augmentation(self) -> Self:
        """Return the same examples without augmentation."""
        shown = copy.copy(self)
        shown._augments = ()
        return shown

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Return the recordings `index`: inputs BT float32 in [-1, 1], targets B or BU int64, lengths B, weights B of 1."""
        import torch

        index = np.asarray(index, np.int64)
        waves = [self._signals.waves[self._rows[i]] for i in index]
        for place, step in enumerate(self._augments):
            waves = step.play(waves, self._signals.rate, Draws(self._seed, place, epoch, index))
        inputs, lengths = fitted(waves, self._samples)
        return Batch(
            torch.from_numpy(inputs), torch.from_numpy(self._targets[index]), torch.ones(len(index)), lengths=torch.from_numpy(lengths),
            index=torch.from_numpy(index.copy()),
        )  # fmt: skip


def fitted(waves: Sequence[NDArray[np.float32]], samples: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return (BT, lengths B): short ones are padded with zeros, long ones are cut at both ends."""
    out = np.zeros((len(waves), samples), np.float32)
    lengths = np.minimum([len(w) for w in waves], samples).astype(np.int64)
    for row, wave in enumerate(waves):
        start = max(0, (len(wave) - samples) // 2)
        out[row, : lengths[row]] = wave[start : start + lengths[row]]
    return out, lengths


def inputs_from_waves(
    preprocess: Mapping[str, Any], waves: Sequence[NDArray[np.float32]], rate: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return (inputs BT, lengths B) of new recordings, from a checkpoint's `preprocess`. Raises `DataError` for another sampling rate."""
    if rate != preprocess["sample_rate"]:
        raise DataError(
            f"sampling rate {rate:,} Hz, but the model was trained on {preprocess['sample_rate']:,} Hz. Convert the recording first"
        )
    return fitted(waves, preprocess["samples"])
