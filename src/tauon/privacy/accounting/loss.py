"""Epsilon, delta and the trade-off curve of a list of releases, through dp-accounting: privacy-loss distributions (`pld`, tight) or
Renyi divergences (`rdp`, an older and looser bound that exists for every kind of step).

Every step is composed with its own noise and rate, never with a mean. Each result is an upper bound. `release.py` says which sampling
is proven for which neighbors; many different steps are composed in `spectral.py`.

Sources: privacy-loss distributions, Sommer, Meiser & Mohammadi 2019; dominating pairs under adaptive composition, Zhu, Dong & Wang 2022
(arXiv:2106.08567); RDP, Mironov 2017 (arXiv:1702.07476); trade-off curves, Dong, Roth & Su 2019 (arXiv:1905.02383).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tauon.errors import MissingExtra, RecipeError
from tauon.privacy.accounting.release import Release, as_releases, grouped, plain, refuse_delta
from tauon.privacy.accounting.spectral import compose_poisson, spacing

__all__ = ["Accountant", "composed_loss", "delta_at", "epsilon", "epsilons", "rounded", "trade_off"]

Accountant = Literal["pld", "rdp"]
LEAST_DELTA = 1e-12
"""Smaller deltas are below the rounding error of the transforms."""
MANY = 15_000
"""With more different steps, they are rounded to a fine grid, always to the less private side."""
FINE = 5e-4
"""Relative width of the grid; it raises epsilon by about a quarter of it."""
FEW_RDP = 128
"""Maximum different steps for which RDP is computed one by one."""


def dp_accounting() -> Any:
    """Import dp-accounting. Raises `MissingExtra` if it is not installed."""
    try:
        import dp_accounting
        import dp_accounting.pld.pld_privacy_accountant
        import dp_accounting.rdp.rdp_privacy_accountant
    except ImportError as err:
        raise MissingExtra("Privacy accounting", "privacy") from err
    return dp_accounting


def rounded(releases: Sequence[Release], width: float) -> list[Release]:
    """Round the steps to a grid of relative `width`: noise down and rates up, so that epsilon can only grow.

    Less noise dominates (add the rest of it), and so does a higher rate (subsample again).
    """

    def one(r: Release) -> Release:
        if r.sampling == "known" or math.isinf(r.noise_multiplier):
            return r
        z = math.exp(width * math.floor(math.log(r.noise_multiplier) / width))
        q = 1.0 if r.rate == 1 else min(1.0, math.exp(width * math.ceil(math.log(r.rate) / width - 1e-9)))
        return replace(r, noise_multiplier=min(z, r.noise_multiplier), rate=max(q, r.rate))

    return grouped(one(r) for r in releases)


def composed_loss(releases: Release | Iterable[Release], *, width: float = FINE) -> Any:
    """Privacy-loss distribution of all releases, as dp-accounting's `PrivacyLossDistribution`; always an upper bound.

    Raises:
        RecipeError: sampling without replacement, for which no such distribution is proven to dominate.
    """
    library = dp_accounting()
    pld, parameters = library.pld.privacy_loss_distribution, library.pld.common.DifferentialPrivacyParameters
    steps = plain(as_releases(releases))
    if any(r.sampling == "fixed-size" for r in steps):
        raise RecipeError(
            "sampling 'fixed-size' has no privacy-loss distribution that is proven for several steps "
            "(Lebeda et al. 2024, arXiv:2405.20769). Set privacy.accountant=rdp, or privacy.sampling=poisson."
        )
    steps = [r for r in steps if not math.isinf(r.noise_multiplier) or r.sampling == "known"]
    full = [r for r in steps if r.sampling in ("full", "poisson") and r.rate == 1]
    poisson = [r for r in steps if r.sampling == "poisson" and r.rate < 1]
    known = [r for r in steps if r.known is not None]
    if len(poisson) > MANY or width > FINE:
        fine = rounded(poisson, width)
        poisson = fine if len(fine) <= MANY else rounded(fine, 4 * width)  # noise and rate change independently: a plane of pairs
    std = 1 / math.sqrt(sum(r.count / r.noise_multiplier**2 for r in full)) if full else math.inf  # Gaussians add up exactly
    if poisson:
        columns = (np.array([getattr(r, n) for r in poisson], dtype=float) for n in ("noise_multiplier", "rate", "count"))
        h = spacing(*columns, besides=1 / std**2 + sum(r.count * min(r.known[0], 1.0) ** 2 / 4 for r in known if r.known is not None))
    else:
        h = min(1e-2, 5e-3 / std) if full else 1e-4
    total = compose_poisson(poisson, h) if poisson else pld.identity(h)
    if full:
        total = total.compose(pld.from_gaussian_mechanism(std, value_discretization_interval=h))
    for r in known:
        assert r.known is not None
        total = total.compose(pld.from_privacy_parameters(parameters(*r.known), h).self_compose(r.count))
    return total


@dataclass(frozen=True)
class _Renyi:
    """Renyi divergences of all releases, one per order."""

    orders: Any
    divergences: Any
    besides: float
    """Delta of known mechanisms, which is added."""

    def epsilon(self, delta: float) -> float:
        """Epsilon at `delta`, after subtracting the added delta."""
        if delta <= self.besides:
            return math.inf
        return float(
            max(0.0, dp_accounting().rdp.rdp_privacy_accountant.compute_epsilon(self.orders, self.divergences, delta - self.besides)[0])
        )

    def delta(self, epsilon: float) -> float:
        return float(
            min(
                1.0,
                float(dp_accounting().rdp.rdp_privacy_accountant.compute_delta(self.orders, self.divergences, epsilon)[0]) + self.besides,
            )
        )


def _renyi(releases: Sequence[Release]) -> _Renyi:
    """Sum over all releases. Fixed-size sampling is computed for a replaced example, the others for one that is zeroed out (the values of
    add-or-remove apply, see `release.py`); replacing includes zeroing out, so the sum is valid for zeroing out.
    """
    library = dp_accounting()
    steps = plain(releases)
    if len(steps) > FEW_RDP:
        steps = rounded(steps, 1e-3)
        if len(steps) > FEW_RDP:
            steps = rounded(steps, 1e-2)
    neighbours = library.NeighboringRelation
    fixed, others = ([r for r in steps if (r.sampling == "fixed-size") is wanted] for wanted in (True, False))
    parts = []
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns about each order that it skips, which only raises epsilon
    try:
        for mine, relation in ((fixed, neighbours.REPLACE_ONE), (others, neighbours.ADD_OR_REMOVE_ONE)):
            if mine:
                parts.append(library.rdp.RdpAccountant(neighboring_relation=relation).compose(event_of(mine)))
    finally:
        log.setLevel(level)
    besides = sum(r.count * r.known[1] for r in steps if r.known is not None)
    return _Renyi(parts[0].orders, sum(p.rdp for p in parts), besides)


def event_of(steps: Iterable[Release]) -> Any:
    """Releases (no `shuffled` among them) as an event of dp-accounting."""
    library = dp_accounting()
    events = []
    for r in steps:
        if r.known is not None:  # epsilon-DP is epsilon^2/2-zCDP (Bun & Steinke 2016, arXiv:1605.02065); its delta is added at the end
            event: Any = library.dp_event.ZCDpEvent(r.known[0] ** 2 / 2) if r.known[0] else library.dp_event.NoOpDpEvent()
        elif math.isinf(r.noise_multiplier):
            continue
        elif r.sampling == "fixed-size":  # N = 1/q: only the ratio enters. Replacing one example moves the sum by up to 2C.
            event = _without_replacement(r)
        else:
            event = library.GaussianDpEvent(r.noise_multiplier)
            event = library.PoissonSampledDpEvent(r.rate, event) if r.rate < 1 else event
        events.append(library.SelfComposedDpEvent(event, r.count))
    return library.ComposedDpEvent(events)


def _without_replacement(r: Release) -> Any:
    from fractions import Fraction

    library = dp_accounting()
    gaussian = library.GaussianDpEvent(r.noise_multiplier / 2)
    share = Fraction(r.rate).limit_denominator(10**9)
    if share < r.rate:  # to the less private side
        share = Fraction(math.ceil(r.rate * 10**9), 10**9)
    return library.SampledWithoutReplacementDpEvent(share.denominator, share.numerator, gaussian)


def epsilon(releases: Release | Iterable[Release], delta: float, *, accountant: Accountant = "pld", width: float = FINE) -> float:
    """Return the smallest epsilon for which all releases together are proven (epsilon, delta)-differentially private.

    Args:
        releases: one, or a whole run's.
        delta: probability with which the bound may fail; below 1/N (`refuse_delta`).
        accountant: `pld`, or `rdp`.
        width: relative width of the grid for very many different steps, rounded to the less private side.

    >>> steps = [Release(1.1, "poisson", rate=0.01, count=500), Release(0.9, "poisson", rate=0.01, count=500)]
    >>> round(epsilon(steps, 1e-5), 2), round(epsilon(steps, 1e-5, accountant="rdp"), 2)
    (1.99, 2.39)
    """
    return epsilons(releases, [delta], accountant=accountant, width=width)[delta]


def epsilons(
    releases: Release | Iterable[Release], deltas: Iterable[float], *, accountant: Accountant = "pld", width: float = FINE
) -> dict[float, float]:
    """Epsilon at each of several deltas, from one composition."""
    releases, deltas = as_releases(releases), list(deltas)
    for delta in deltas:
        refuse_delta(delta)
    if not releases:
        return dict.fromkeys(deltas, 0.0)
    if accountant == "rdp":
        renyi = _renyi(releases)
        return {d: renyi.epsilon(d) for d in deltas}
    if min(deltas) < LEAST_DELTA:
        raise RecipeError(
            f"delta {min(deltas):g} is below {LEAST_DELTA:g}, the smallest for the pld accountant. Set privacy.accountant=rdp."
        )
    loss = composed_loss(releases, width=width)
    return {d: float(loss.get_epsilon_for_delta(d)) for d in deltas}


def delta_at(releases: Release | Iterable[Release], epsilon: float, *, accountant: Accountant = "pld") -> float:
    """Return the smallest delta that is proven for `epsilon` (0 or above)."""
    if not epsilon >= 0:
        raise RecipeError(f"got epsilon {epsilon:g}: expected a number of at least 0.")
    releases = as_releases(releases)
    if not releases:
        return 0.0
    if accountant == "rdp":
        return _renyi(releases).delta(epsilon)
    return float(composed_loss(releases).get_delta_for_epsilon(epsilon))


def trade_off(releases: Release | Iterable[Release], alphas: Iterable[float], *, accountant: Accountant = "pld") -> list[float]:
    """Trade-off curve (f-DP): the smallest false-negative rate of any membership test at each false-positive rate of `alphas`.

    beta(alpha) = max over epsilon of max(0, 1 - delta - e^epsilon alpha, e^-epsilon (1 - delta - alpha)), with the delta of each epsilon; a lower
    bound, as every (epsilon, delta) pair is one. Without releases it is 1 - alpha: random guessing.
    """
    alpha_A = np.array(list(alphas), dtype=np.float64)
    if np.any((alpha_A < 0) | (alpha_A > 1)):
        raise RecipeError("false-positive rates must be from 0 to 1.")
    eps_E, delta_E = _profile(as_releases(releases), accountant)
    left = 1 - delta_E[None] - np.exp(eps_E)[None] * alpha_A[:, None]
    right = np.exp(-eps_E)[None] * (1 - delta_E[None] - alpha_A[:, None])
    return [float(b) for b in np.maximum(0.0, np.maximum(left, right).max(axis=1))]


def _profile(releases: Sequence[Release], accountant: Accountant, points: int = 300) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(epsilons, deltas), from 0 to where delta is 1e-10."""
    if not releases:
        return np.zeros(1), np.zeros(1)
    most = epsilon(releases, 1e-10, accountant=accountant)
    eps_E = np.linspace(0.0, min(most, 500.0) if math.isfinite(most) else 50.0, points)
    if accountant == "rdp":
        renyi = _renyi(releases)
        return eps_E, np.array([renyi.delta(e) for e in eps_E])
    return eps_E, np.clip(np.asarray(composed_loss(releases).get_delta_for_epsilon(eps_E), dtype=np.float64), 0.0, 1.0)
