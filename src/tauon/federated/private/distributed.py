"""Distributed noise: each site adds integers before it masks its vector, and the sum has the noise of the whole (Kairouz, Liu & Steinke 2021,
arXiv:2102.06387).

A share is a discrete Gaussian in steps of the fixed-point numbers (`secagg.quantise`). With m shares the sum of a scale s has noise of variance

    m sigma_s^2 = (z S' s / step)^2,      S' = S + || (step / 2 s) of every number ||,

S' the norm of a site's vector after rounding to steps. Reducing the sum modulo 2^32 is a function of the sum, and cannot weaken the guarantee; the
range has space for 12 standard deviations of the noise, so that it changes the result with a probability below 1e-32 a number.

More than m sites add more noise. With fewer, sites refuse to unmask (`UpdatePrivacy.fewest`, `SiteRules.fewest`).
"""

from __future__ import annotations

import math

from tauon.errors import PrivacyError
from tauon.federated.private.discrete import Integers, discrete_gaussian
from tauon.federated.private.settings import UpdatePrivacy
from tauon.federated.secagg import Entry, Layout

__all__ = ["DistributedNoise", "effective_multiplier", "rounded_norm"]

COARSEST = 4.0
"""Steps in the standard deviation of a share, at least: below, a sum of shares is not a discrete Gaussian to many digits."""
MOST_ROUNDING = 1.04
"""Rounding may add this factor to the norm of a vector; a coordinator that asks for coarser steps is refused."""


def rounded_norm(layout: Layout, privacy: UpdatePrivacy) -> float:
    """S': norm of a site's vector at most, in its scales, after rounding to the nearest step."""
    added = sum(e.size * (layout.step(e) / (2 * _scale(e, privacy))) ** 2 for e in layout.entries)
    return privacy.norm + math.sqrt(added)


def _scale(entry: Entry, privacy: UpdatePrivacy) -> float:
    return privacy.scale(entry.name if entry.is_number else None)


class DistributedNoise:
    """The noise of one site, an `IntegerNoise` for `SecureSite`.

    Args:
        privacy: as the site has agreed to it, from its own recipe, with the clipping norm of the round.
    """

    def __init__(self, privacy: UpdatePrivacy) -> None:
        if privacy.mode != "distributed":
            raise PrivacyError(f"the noise is {privacy.mode}: sites add shares of it only if it is distributed")
        self.privacy = privacy

    def sigma(self, layout: Layout, entry: Entry) -> float:
        """Parameter of a site's share, in steps of an entry. Raises `PrivacyError` if the layout does not fit the settings."""
        privacy = self.privacy
        norm = rounded_norm(layout, privacy)
        if norm > MOST_ROUNDING * privacy.norm:
            raise PrivacyError(
                f"the steps are too coarse: rounding could add {norm / privacy.norm - 1:.0%} to what one site can change. Lower the bounds."
            )
        assert privacy.contributors is not None
        sigma = privacy.noise_multiplier * norm * _scale(entry, privacy) / layout.step(entry) / math.sqrt(privacy.contributors)
        if sigma < COARSEST:
            raise PrivacyError(
                f"{entry.name}: a share of the noise is {sigma:.3g} steps, expected at least {COARSEST:g}. Lower the bounds."
            )
        return sigma

    def draw(self, layout: Layout, round: int) -> dict[str, Integers]:
        """Return the noise of every entry, in its steps. Raises `PrivacyError` for a layout with other names, bounds or steps than agreed."""
        for entry in layout.entries:
            bound = self.privacy.numbers.get(entry.name) if entry.is_number else self.privacy.clip_norm
            if bound is None or not math.isclose(entry.bound, bound, rel_tol=1e-6):
                raise PrivacyError(f"{entry.name} has bound {entry.bound:g} in the sum, expected {bound}: not what was agreed")
        return {entry.name: discrete_gaussian(self.sigma(layout, entry), entry.size) for entry in layout.entries}


def effective_multiplier(layout: Layout, privacy: UpdatePrivacy) -> float:
    """The noise multiplier of a Gaussian mechanism whose Renyi divergences are those of the sum of m discrete shares, at most (theorem 1 of
    Kairouz et al. 2021): 1 / eps with

        eps = min( sqrt(1 / z^2 + tau d / 2),  1 / z + tau sqrt(d) ),      tau = 10 sum_{k=1}^{m-1} exp(-2 pi^2 sigma^2 k / (k + 1)).

    Equal to z to all digits for shares of 4 steps or more.
    """
    noise, shares = DistributedNoise(privacy), privacy.contributors or 1
    sigma = min(noise.sigma(layout, entry) for entry in layout.entries)
    tau = 10 * sum(math.exp(-2 * (math.pi * sigma) ** 2 * k / (k + 1)) for k in range(1, shares))
    d, z = sum(e.size for e in layout.entries), privacy.noise_multiplier
    return 1 / min(math.sqrt(1 / z**2 + tau * d / 2), 1 / z + tau * math.sqrt(d))
