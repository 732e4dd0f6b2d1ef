"""What a private computation tells the world, as far as its privacy is concerned: `Release`, a list of which is a whole run.

Nothing is computed about epsilon here (`loss.py`); here releases are checked, grouped, and what cannot be accounted is refused with the
reason.

Conventions. The noise multiplier z is the noise's standard deviation divided by the clipping norm C, so by what ONE example can add.
Neighbouring data sets differ by one unit whose data is set to nothing, so that its gradient, or what it adds to an answer, is zero: **zero
out one** (Kairouz et al. 2021, arXiv:2103.00039). N stays as it is and is public, and with it all that is computed from N: the sampling rate
batch / N, the number of steps, the divisor, delta. "One unit more or less" would change everybody's rate, and is not what a run promises.

How the example got into the step decides what is proven:

    poisson     each example enters each step by an independent coin of probability `rate`. A unit that is zeroed out is drawn as before and
                adds nothing, so that the two sums have the laws N(0, z^2) and (1 - rate) N(0, z^2) + rate N(1, z^2) at worst, in either order:
                the dominating pair that is proven for adding and removing one at a fixed rate (Mironov et al. 2019, arXiv:1908.10530; Zhu, Dong
                & Wang 2022, arXiv:2106.08567, theorem 11).
    full        every example is in every step, rate 1.
    shuffled    whole passes, in any order: an example is in one step a pass. Counted as one Gaussian release a pass (parallel composition
                inside a pass), without any credit for the secret order, for which no useful bound on a trained model is proven.
    fixed-size  exactly `rate` N examples, drawn without replacement. Proven for one example **replaced** by another, so that the sensitivity
                is 2C (Wang, Balle & Kasiviswanathan 2019, arXiv:1808.00087). Replaced by one whose gradient is zero, it is zeroed out: the figure
                holds for zero-out, too, and may be composed with the others' for that. By RDP only.
    known       another mechanism, of which no more is known than that it is (`known[0]`, `known[1]`)-differentially private when one unit is
                zeroed out. What is proven for one replaced by any other says that. What is proven for adding and removing one says it where
                the mechanism treats a unit without data as if it were not there, and takes N as public.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tauon.errors import RecipeError

__all__ = [
    "RELATION",
    "REPLACE",
    "ZERO_OUT",
    "Release",
    "Sampling",
    "as_releases",
    "grouped",
    "plain",
    "refuse_delta",
    "refuse_epsilon",
    "relation_of",
]

Sampling = Literal["poisson", "fixed-size", "shuffled", "full", "known"]

ZERO_OUT, REPLACE = "zero out one", "replace one"

RELATION: dict[str, str] = {
    "poisson": ZERO_OUT,
    "full": ZERO_OUT,
    "known": ZERO_OUT,
    "shuffled": ZERO_OUT,
    "fixed-size": REPLACE,
}
"""What neighbouring data sets are, by how examples are drawn. Replacing one contains zeroing one out. (Records of before say "add or remove
one" of the first three.)"""


@dataclass(frozen=True)
class Release:
    """`count` equal private steps (or noisy answers), each with the whole of its noise.

    >>> Release(noise_multiplier=1.1, sampling="poisson", rate=0.01, count=1000).count
    1000
    """

    noise_multiplier: float
    """Standard deviation of the noise over the clipping norm. Infinite: nothing was told."""
    sampling: Sampling = "poisson"
    rate: float = 1.0
    """Probability that an example is in the step, or batch / N."""
    count: int = 1
    known: tuple[float, float] | None = None
    """(epsilon, delta) of a mechanism of sampling `known`, each time."""

    def __post_init__(self) -> None:
        z, rate, count = self.noise_multiplier, self.rate, self.count
        if self.sampling not in RELATION:
            raise RecipeError(f"sampling {self.sampling!r} is not accounted for. Take one of {', '.join(RELATION)}.")
        if self.sampling == "known":
            if self.known is None or not (0 <= self.known[0] < math.inf and 0 <= self.known[1] < 1):
                raise RecipeError(f"got known={self.known}, expected (epsilon, delta) with 0 <= epsilon and 0 <= delta < 1.")
        elif self.known is not None:
            raise RecipeError(f"known={self.known} is for sampling 'known', and this is {self.sampling!r}.")
        elif not z > 0:
            raise RecipeError(
                f"noise multiplier {z:g}: without noise every example can be told apart, so that epsilon is infinite. "
                "Set a positive noise multiplier, or give privacy.target_epsilon and let it be found."
            )
        if not 0 < rate <= 1:
            raise RecipeError(
                f"sampling rate {rate:g} is no probability above 0 and at most 1: a batch cannot be larger than the data. Take a smaller one."
            )
        if self.sampling == "full" and rate != 1:
            raise RecipeError(f"sampling 'full' has every example in every step, and the rate is {rate:g}. Set it to 1, or take poisson.")
        if count != int(count) or count < 1:
            raise RecipeError(f"count {count}: expected a whole number of steps, at least 1.")

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "noise_multiplier": self.noise_multiplier,
            "sampling": self.sampling,
            "rate": self.rate,
            "count": self.count,
        }
        return plain | ({"known": list(self.known)} if self.known is not None else {})

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Release:
        known = plain.get("known")
        return cls(**(plain | {"known": (float(known[0]), float(known[1])) if known is not None else None}))


def as_releases(releases: Release | Iterable[Release]) -> list[Release]:
    """A list, whether one or several were given."""
    return [releases] if isinstance(releases, Release) else list(releases)


def grouped(releases: Iterable[Release]) -> list[Release]:
    """Equal steps counted together, wherever they stand: composition does not depend on the order (shuffled ones excepted: those are
    joined only where they follow one another).
    """
    found: dict[tuple[Any, ...], Release] = {}
    number = 0
    last: tuple[Any, ...] = ()
    for r in releases:
        key: tuple[Any, ...] = (r.noise_multiplier, r.sampling, r.rate, r.known)
        if r.sampling == "shuffled":
            if key != last[:4]:
                number += 1
            key = (*key, number)
        last = key
        found[key] = r if key not in found else replace(found[key], count=found[key].count + r.count)
    return list(found.values())


def plain(releases: Iterable[Release]) -> list[Release]:
    """The same without `shuffled`: each pass has become one `full` release, with the least noise that a step of it had.

    A pass is as many steps as batches are needed for all data; a last, smaller batch that is dropped or kept makes it one shorter or
    longer, so that both are computed and the worse one is kept. A change of rate begins a new pass.
    """
    rest: list[Release] = []
    run: list[Release] = []
    for r in (*releases, None):
        if r is not None and r.sampling == "shuffled" and (not run or r.rate == run[-1].rate):
            run.append(r)
            continue
        if run:
            rest += _passes(run)
            run = []
        if r is None:
            break
        (run if r.sampling == "shuffled" else rest).append(r)
    return grouped(rest)


def _passes(run: Sequence[Release]) -> list[Release]:
    """Whole passes at one rate: the worse of the two ways to count the steps of one."""
    steps = 1 / run[0].rate
    choices = {max(1, math.floor(steps + 1e-9)), max(1, math.ceil(steps - 1e-9))}
    return max((_least_noise(run, n) for n in choices), key=lambda found: sum(r.count / r.noise_multiplier**2 for r in found))


def _least_noise(run: Sequence[Release], steps: int) -> list[Release]:
    if len({r.noise_multiplier for r in run}) == 1:
        return [Release(run[0].noise_multiplier, "full", 1.0, math.ceil(sum(r.count for r in run) / steps))]
    found: list[Release] = []
    at, least = 0, math.inf
    for r in run:
        left = r.count
        while left:
            took = min(left, steps - at)
            least, at, left = min(least, r.noise_multiplier), at + took, left - took
            if at == steps:
                found.append(Release(least, "full"))
                at, least = 0, math.inf
    return found + ([Release(least, "full")] if at else [])


def relation_of(releases: Iterable[Release]) -> str:
    """What neighbours are, for all of them together: "replace one" where all are of fixed-size sampling, else "zero out one", which what holds
    for a replaced one implies (it may be replaced by one that adds nothing).
    """
    kinds = {RELATION[r.sampling] for r in releases}
    return REPLACE if kinds == {REPLACE} else ZERO_OUT


def refuse_delta(delta: float, examples: int | None = None) -> None:
    """`RecipeError` unless delta is below 1/N: with delta = 1/N the whole record of one example picked at random may be published."""
    if not 0 < delta < 1:
        raise RecipeError(f"delta {delta:g} is out of range: expected above 0 and below 1, as a rule below 1/N.")
    if examples is not None and delta >= 1 / examples:
        raise RecipeError(
            f"delta {delta:g} is not below 1/N = {1 / examples:.3g} (N = {examples:,}). At that delta, publishing one record picked at random "
            f"would count as private. Take {_below(1 / examples):g}, or less."
        )


def _below(limit: float) -> float:
    """A power of ten well below."""
    return float(10.0 ** math.floor(math.log10(limit) - 0.3))


def refuse_epsilon(epsilon: float) -> None:
    """`RecipeError` unless an epsilon can be aimed at."""
    if not 0 < epsilon < math.inf:
        raise RecipeError(
            f"epsilon {epsilon:g} is out of range: expected a number above 0; 1 is strong, 8 is common, above 20 says little."
        )
