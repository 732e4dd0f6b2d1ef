"""Clipping of a site's vector, noise of the central and local kind, and a clipping norm that follows a quantile (Andrew et al. 2021, arXiv:1905.03871)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tauon.errors import DataError
from tauon.federated.private.settings import UpdatePrivacy
from tauon.federated.secagg import Contribution, Total
from tauon.privacy.noise import NoiseSource

__all__ = ["WITHIN", "AdaptiveClip", "add_central_noise", "add_local_noise", "clip_contribution", "clip_update", "private_mean"]

WITHIN = "#within"
"""Number that says whether an update was within the clipping norm: +1/2, else -1/2."""


def clip_update(update: Mapping[str, Tensor], norm: float) -> tuple[dict[str, Tensor], float]:
    """Return the update, scaled so that its L2 norm over all tensors is at most `norm`, and the norm that it had: u min(1, C / ||u||).

    Raises `DataError` if it is not finite.

    >>> clip_update({"w": torch.tensor([3.0, 4.0])}, 1.0)
    ({'w': tensor([0.6000, 0.8000])}, 5.0)
    """
    each = [torch.linalg.vector_norm(t.detach(), dtype=torch.float64) for t in update.values()]
    had = float(torch.stack(each).norm()) if each else 0.0
    if not math.isfinite(had):
        raise DataError("the update is not finite: it is not sent. Lower the learning rate, or look for bad values in the data.")
    factor = min(1.0, norm / had) if had > 0 else 1.0
    return {name: t.detach() * factor if factor < 1 else t.detach().clone() for name, t in update.items()}, had


def clip_contribution(
    update: Mapping[str, Tensor], numbers: Mapping[str, float], privacy: UpdatePrivacy, *, weight: float = 1.0
) -> Contribution:
    """Return a site's vector: the clipped update times its weight in [0, 1], and the numbers within their bounds.

    `WITHIN` is filled in, if the settings have it. Raises `DataError` for values that are not finite.
    """
    if not 0 <= weight <= 1:
        raise DataError(f"the weight of a site is {weight:g}, expected from 0 to 1: what one site can change is measured for a weight of 1")
    clipped, had = clip_update(update, privacy.clip_norm)
    known = {**numbers, WITHIN: 0.5 if had <= privacy.clip_norm else -0.5}
    bounded = {}
    for name, bound in privacy.numbers.items():
        if name not in known:
            raise DataError(f"this site does not measure {name}, which is among the private numbers. Remove it from them, or measure it.")
        value = float(known[name])
        if not math.isfinite(value):
            raise DataError(f"{name} is {value}: it is not sent")
        bounded[name] = min(bound, max(-bound, value))
    return Contribution({name: t * weight for name, t in clipped.items()}, bounded)


def add_central_noise(total: Total, privacy: UpdatePrivacy, source: NoiseSource, round: int) -> Total:
    """At the coordinator: return the sum with Gaussian noise of z S in each scale.

    The same noise on two different sums reveals their difference: `source` has a new key in each process (`NoiseSource.secure()`), and a round that
    is done again is another release.
    """
    return replace(total, **_noised(total.tensors, total.numbers, privacy, source, round))


def add_local_noise(contribution: Contribution, privacy: UpdatePrivacy, source: NoiseSource, round: int) -> Contribution:
    """At the site: return its clipped vector with Gaussian noise of z S in each scale."""
    return replace(contribution, **_noised(contribution.tensors, contribution.numbers, privacy, source, round))


def _noised(
    tensors: Mapping[str, Tensor], numbers: Mapping[str, float], privacy: UpdatePrivacy, source: NoiseSource, round: int
) -> dict[str, Any]:
    source.claim(f"round/{round}", f"the noise of round {round} was already drawn", "the round")
    noised = {name: t + privacy.noise_std() * source.normal(round, f"tensor/{name}", t.shape) for name, t in tensors.items()}
    return {
        "tensors": noised,
        "numbers": {n: v + privacy.noise_std(n) * float(source.normal(round, f"number/{n}", (1,))[0]) for n, v in numbers.items()},
    }


def private_mean(total: Total, privacy: UpdatePrivacy, divisor: float | None = None) -> dict[str, Tensor]:
    """The noised sum divided by the expected number of sites, or by `divisor` (their expected weight): fixed and public."""
    return {name: t / (privacy.divisor if divisor is None else divisor) for name, t in total.tensors.items()}


@dataclass(frozen=True)
class AdaptiveClip:
    """A clipping norm that moves towards a quantile of the norms of updates: C <- C exp(-eta (b - gamma)), b the noised share of updates within C.

    Needs `WITHIN: 0.5` in `UpdatePrivacy.numbers`; its cost is in the guarantee, as the noise of all numbers is.
    """

    quantile: float = 0.5
    """gamma: share of the updates that should be within the norm."""
    rate: float = 0.2
    """eta."""
    least: float = 1e-6
    most: float = 1e6

    def moved(self, privacy: UpdatePrivacy, total: Total, expected: float | None = None) -> UpdatePrivacy:
        """Return the settings of the next round, from the noised sum of this one. `expected`: sites in it, on average; None: `UpdatePrivacy.divisor`.

        >>> p = UpdatePrivacy("central", 1.0, 1.0, sites=10, numbers={WITHIN: 0.5})
        >>> AdaptiveClip().moved(p, Total({}, {WITHIN: -5.0}, ())).clip_norm > 1  # all were clipped
        True
        """
        within = min(1.0, max(0.0, total.numbers[WITHIN] / (expected or privacy.divisor) + 0.5))
        norm = privacy.clip_norm * math.exp(-self.rate * (within - self.quantile))
        return replace(privacy, clip_norm=min(self.most, max(self.least, norm)))
