"""Baseline of recordings: logistic regression on cepstral coefficients (MFCC), their means and deviations over time.

The features of speaker and word recognition before neural networks: log energies of 40 mel bands, a cosine transform over the bands (Davis &
Mermelstein 1980), 20 coefficients; of each the mean in four quarters of the recording and the deviation over all of it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tauon.evaluate.baselines.base import MOST_ROWS, Baseline, Training
from tauon.evaluate.baselines.linear import class_scores, fitted_logistic, has_sklearn
from tauon.models.families.mel import mel_filters
from tauon.types import Batch

__all__ = ["mfcc", "mfcc_logistic_regression"]

_MELS, _COEFFICIENTS, _QUARTERS = 40, 20, 4
_MOST_SAMPLES = 100_000_000
"""Samples of all recordings that it is fitted to at most."""


def mfcc(x_BT: Tensor, lengths_B: Tensor, rate: int) -> np.ndarray:
    """Return B x 100: means of the coefficients in each quarter, then their deviations.

    Args:
        x_BT: waveforms, padded at the end.
        lengths_B: samples of each.
        rate: samples a second.
    """
    window, hop = max(16, round(0.025 * rate)), max(8, round(0.01 * rate))
    fft = 1 << (window - 1).bit_length()
    power = torch.stft(
        x_BT.float(), fft, hop, window, torch.hann_window(window), center=True, pad_mode="constant", return_complex=True
    ).abs().square().transpose(1, 2)  # fmt: skip
    mel_BSM = torch.log(power @ mel_filters(fft // 2 + 1, _MELS, rate) + 1e-6)
    band, k = torch.arange(_MELS) + 0.5, torch.arange(_COEFFICIENTS)
    cepstrum_BSK = mel_BSM @ torch.cos(math.pi / _MELS * band[:, None] * k)
    rows = []
    for cepstrum_SK, length in zip(cepstrum_BSK, lengths_B.tolist(), strict=True):
        valid = cepstrum_SK[: max(_QUARTERS, length // hop + 1)]
        means = [part.mean(0) for part in valid.tensor_split(_QUARTERS)]
        rows.append(torch.cat([*means, valid.std(0, correction=0)]))
    return torch.stack(rows).double().numpy()


def mfcc_logistic_regression(training: Training) -> Baseline | None:
    """Logistic regression on `mfcc`; None where scikit-learn is missing or the sample has one class."""
    spec = training.spec
    if not has_sklearn() or spec.sample_rate is None or spec.input_shape is None:
        return None
    rate, rows = spec.sample_rate, min(MOST_ROWS, _MOST_SAMPLES // max(1, spec.input_shape[0]))

    def features(batch: Batch) -> np.ndarray:
        lengths = batch.lengths if batch.lengths is not None else torch.full((len(batch),), batch.inputs.shape[1])
        return np.concatenate([mfcc(batch.inputs[i : i + 64], lengths[i : i + 64], rate) for i in range(0, len(batch), 64)])

    batch = training.batch(rows)
    targets = batch.targets.numpy()
    if len(np.unique(targets)) < 2:
        return None
    fitted = fitted_logistic(features(batch), targets)

    def predict(batch: Batch) -> dict[str, Tensor]:
        return class_scores(fitted, features(batch), batch, spec.outputs or 0)

    about = f"scikit-learn's LogisticRegression of {_COEFFICIENTS} cepstral coefficients in four quarters, on {len(targets):,} training recordings."
    return Baseline("MFCC and logistic regression", about, predict)
