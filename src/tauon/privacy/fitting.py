"""Cost of all releases of a data set, and what still fits into its budget. Does not read files.

One epsilon needs one neighboring relation, and a ledger's is **zero out one**: the same number of units, one of them zeroed out. If
mechanisms M_1 ... M_k are each proven for it, Renyi divergences of one order add up (Mironov 2017, arXiv:1702.07476, proposition 1), and so do
epsilons and deltas (Dwork & Roth 2014, theorem 3.16), also if each mechanism depends on earlier answers.

Fixed-size sampling is proven for replacing one example by any other, also by one without data, whose gradient is zero: over a domain with such
an example every pair of zero-out neighbours is a pair of replace-one neighbours, so that its epsilon is valid for zero-out and is
added unchanged. In the other direction the cost doubles (zero out, then fill in), so a sum is for replace-one only if all its parts are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tauon.errors import RecipeError
from tauon.privacy.accounting import Accountant, Release, calibrate, epsilon

__all__ = ["total_epsilon", "what_fits"]


def total_epsilon(releases: Sequence[Release], delta: float, accountant: Accountant) -> float:
    """Epsilon of all releases, for one unit zeroed out. Fixed-size releases, which `pld` does not support, are added by Renyi divergence in one
    sum, or by basic composition at half of delta each: both are upper bounds, and the smaller one is returned.
    """
    replaced = [r for r in releases if r.sampling == "fixed-size"]
    others = [r for r in releases if r.sampling != "fixed-size"]
    if not replaced:
        return epsilon(others, delta, accountant=accountant)
    together = epsilon(releases, delta, accountant="rdp")
    if accountant == "rdp" or not others:
        return together
    return min(together, epsilon(replaced, delta / 2, accountant="rdp") + epsilon(others, delta / 2, accountant=accountant))


def what_fits(before: Sequence[Release], wanted: Sequence[Release], budget: tuple[float, float], accountant: Accountant) -> str:
    """Sentence for an error message: how `wanted` must change to fit after `before`, or which epsilon still fits."""
    more = _noise_that_fits(before, wanted, budget, accountant)
    if more is not None:
        own = total_epsilon(_scaled(wanted, more), budget[1], accountant)
        return f"It fits with {more:.3g} times the noise (epsilon {own:.3g} at delta {budget[1]:g} alone), or with fewer steps."
    asked = sum(r.count * r.known[1] for r in wanted if r.known is not None)
    for delta in dict.fromkeys((asked, 0.0)):
        most = _epsilon_that_fits(before, delta, budget, accountant)
        if most > 0:
            return f"Epsilon {most:.3g} at delta {delta:g} still fits."
    return "Nothing fits any more."


def _scaled(wanted: Sequence[Release], factor: float) -> list[Release]:
    return [replace(r, noise_multiplier=r.noise_multiplier * factor) for r in wanted]


def _noise_that_fits(
    before: Sequence[Release], wanted: Sequence[Release], budget: tuple[float, float], accountant: Accountant
) -> float | None:
    """Factor by which the noise of `wanted` must grow to fit; None if no noise is enough."""
    if any(r.sampling == "known" or (r.sampling == "fixed-size" and accountant == "pld") for r in [*before, *wanted]):
        return None
    try:
        return calibrate(
            lambda m: [*before, *_scaled(wanted, m)], target_epsilon=budget[0], delta=budget[1], accountant=accountant, tolerance=1e-2
        )
    except RecipeError:
        return None


def _epsilon_that_fits(before: Sequence[Release], delta: float, budget: tuple[float, float], accountant: Accountant) -> float:
    """Largest epsilon, rounded down to three digits, of one more (epsilon, delta)-private mechanism; 0 if none fits."""

    def fits(value: float) -> bool:
        try:
            return total_epsilon([*before, Release(0.0, "known", known=(value, delta))], budget[1], accountant) <= budget[0] * (1 + 1e-9)
        except RecipeError:  # its delta alone is over the budget
            return False

    low, high = 0.0, budget[0]
    for _ in range(14):  # to a sixteen-thousandth of the budget
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    shown = float(f"{low:.3g}")
    return shown if shown <= low or fits(shown) else float(f"{low * 0.995:.3g}")
