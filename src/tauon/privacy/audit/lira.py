"""Likelihood-ratio attack (LiRA; Carlini et al. 2022, arXiv:2112.03570): reference models give the distributions of an example's loss with and
without training on it; an example that fits the first better is classified as a member.

Also simpler attacks: the loss alone (Yeom et al. 2018, arXiv:1709.01604), and the loss less its mean over reference models (Watson et
al. 2022, arXiv:2111.08440). Trains nothing: it works on the outputs of reference models.

Shapes: N examples, R reference models.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["LiraMode", "difficulty_calibrated", "lira"]

LiraMode = Literal["online", "offline"]
_FEW = 16
"""With fewer reference models of a kind, one variance is used for all examples (the paper uses 64 of each kind)."""


def _spread(values_NR: NDArray[np.float64], mask_NR: NDArray[np.bool_], own: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean N, standard deviation N) over the selected reference models of each example."""
    count = mask_NR.sum(1)
    held = np.where(mask_NR, values_NR, 0.0)
    mean = held.sum(1) / np.maximum(count, 1)
    square = np.where(mask_NR, (values_NR - mean[:, None]) ** 2, 0.0).sum(1)
    if own:
        deviation = np.sqrt(square / np.maximum(count - 1, 1))
    else:
        deviation = np.full(len(mean), np.sqrt(square.sum() / max(1, int((count - 1).clip(min=0).sum()))))
    floor = 1e-6 * (1 + np.abs(mean).mean())  # reference models with equal outputs
    return mean, np.maximum(deviation, floor)


def lira(
    target_N: NDArray[np.float64], reference_NR: NDArray[np.float64], included_NR: NDArray[np.bool_], *, mode: LiraMode = "online",
    own_variance: bool | None = None,
) -> NDArray[np.float64]:  # fmt: skip
    """Return scores N, larger for members.

    Args:
        target_N: statistic of each example under the attacked model (logit of the true class, or minus the loss), larger for a better fit.
        reference_NR: the same of each reference model.
        included_NR: whether a reference model was trained on the example.
        mode: online: log-likelihood ratio of two normal distributions, with and without; needs reference models of both kinds for each
            example. offline: distance above the models without it, in their standard deviations.
        own_variance: one variance per example (None: with at least 16 reference models of a kind).

    Raises ValueError if an example has no reference model of a required kind.
    """
    without = ~included_NR
    least_out, least_in = int(without.sum(1).min()), int(included_NR.sum(1).min())
    if least_out < 1 or (mode == "online" and least_in < 1):
        raise ValueError(
            f"an example has {least_in} reference models trained with it and {least_out} without it; mode {mode} needs at least one"
        )
    own = own_variance if own_variance is not None else min(least_out, least_in if mode == "online" else least_out) >= _FEW
    mean_out, std_out = _spread(reference_NR, without, own)
    z_out = (target_N - mean_out) / std_out
    if mode == "offline":
        return z_out
    mean_in, std_in = _spread(reference_NR, included_NR, own)
    z_in = (target_N - mean_in) / std_in
    ratio: NDArray[np.float64] = (-0.5 * z_in**2 - np.log(std_in)) - (-0.5 * z_out**2 - np.log(std_out))
    return ratio


def difficulty_calibrated(
    target_N: NDArray[np.float64], reference_NR: NDArray[np.float64], included_NR: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The statistic minus its mean over reference models that were not trained on the example: a few models suffice."""
    return target_N - _spread(reference_NR, ~included_NR, False)[0]
