"""`Release`: what a private computation publishes, as far as its privacy cost depends on it. A run is a list of releases.

Releases are checked and grouped here, and refused with the reason if they cannot be accounted for. Epsilon is computed in `loss.py`.

Conventions. The noise multiplier z is the standard deviation of the noise divided by the clipping norm C, the sensitivity to ONE example.
Neighboring data sets differ by one unit whose data is zeroed out, so that its gradient, or its contribution to an answer, is zero: **zero
out one** (Kairouz et al. 2021, arXiv:2103.00039). N does not change and is public, and so is all that follows from N: the sampling rate
batch / N, the number of steps, the divisor, delta. "Add or remove one unit" would change the rate of all others, and is not guaranteed.

The sampling determines what is proven:

    poisson     each example is in each step independently with probability `rate`. A unit that is zeroed out is drawn as before and
                adds nothing, so that the two sums have the distributions N(0, z^2) and (1 - rate) N(0, z^2) + rate N(1, z^2) at worst, in either order:
                the dominating pair that is proven for adding and removing one at a fixed rate (Mironov et al. 2019, arXiv:1908.10530; Zhu, Dong
                & Wang 2022, arXiv:2106.08567, theorem 11).
    full        every example is in every step, rate 1.
    shuffled    full passes, in any order: an example is in one step per pass. Counted as one Gaussian release per pass (parallel composition
                inside a pass), without amplification by the secret order, for which no useful bound on a trained model is proven.
    fixed-size  exactly `rate` N examples, drawn without replacement. Proven for one example **replaced** by another, so that the sensitivity
                is 2C (Wang, Balle & Kasiviswanathan 2019, arXiv:1808.00087). Replacing by an example with gradient zero is zeroing out, so
                the value is also valid for zero-out, and may be composed with the others. By RDP only.
    known       another mechanism, of which only (`known[0]`, `known[1]`)-differential privacy for zeroing out one unit is known. A proof
                for replacing one unit implies it. A proof for adding or removing one implies it if the mechanism ignores a unit without
                data and treats N as public.
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
"""Neighboring relation of each sampling. Replacing one includes zeroing one out. (Older records say "add or remove one" for the first
three.)"""


@dataclass(frozen=True)
class Release:
    """`count` equal private steps (or noisy answers), each with its own noise.

    >>> Release(noise_multiplier=1.1, sampling="poisson", rate=0.01, count=1000).count
    1000
    """

    noise_multiplier: float
    """Noise multiplier: standard deviation / clipping norm. Infinite: nothing was released."""
    sampling: Sampling = "poisson"
    rate: float = 1.0
    """Probability that an example is in the step, or batch / N."""
    count: int = 1
    known: tuple[float, float] | None = None
    """(epsilon, delta) of one use of a mechanism with sampling `known`."""

    def __post_init__(self) -> None:
        z, rate, count = self.noise_multiplier, self.rate, self.count
        if self.sampling not in RELATION:
            raise RecipeError(f"sampling {self.sampling!r} is not supported. Use one of {', '.join(RELATION)}.")
        if self.sampling == "known":
            if self.known is None or not (0 <= self.known[0] < math.inf and 0 <= self.known[1] < 1):
                raise RecipeError(f"got known={self.known}, expected (epsilon, delta) with 0 <= epsilon and 0 <= delta < 1.")
        elif self.known is not None:
            raise RecipeError(f"known={self.known} needs sampling 'known', got {self.sampling!r}.")
        elif not z > 0:
            raise RecipeError(
                f"got noise multiplier {z:g}: without noise epsilon is infinite. "
                "Set privacy.noise_multiplier above 0, or set privacy.target_epsilon to have it calibrated."
            )
        if not 0 < rate <= 1:
            raise RecipeError(
                f"got sampling rate {rate:g}: expected above 0 and at most 1, as a batch cannot be larger than the data. Set a smaller train.batch."
            )
        if self.sampling == "full" and rate != 1:
            raise RecipeError(
                f"got rate {rate:g} for sampling 'full', where every example is in every step. Set rate to 1, or use poisson."
            )
        if count != int(count) or count < 1:
            raise RecipeError(f"got count {count}: expected an integer of at least 1.")

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
    """Return a list of one or several releases."""
    return [releases] if isinstance(releases, Release) else list(releases)


def grouped(releases: Iterable[Release]) -> list[Release]:
    """Group equal steps: composition does not depend on their order (except for shuffled ones, which are joined only if they are
    consecutive).
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
    """Replace each shuffled pass by one `full` release, with the smallest noise of its steps.

    The number of steps in a pass depends on whether a last, smaller batch is dropped: both are computed and the worse one is used. A
    change of rate starts a new pass.
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
    """Full passes at one rate: the worse of the two numbers of steps per pass."""
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
    """Neighboring relation of all releases together: "replace one" if all have fixed-size sampling, otherwise "zero out one", which
    replace-one implies (an example may be replaced by one that adds nothing).
    """
    kinds = {RELATION[r.sampling] for r in releases}
    return REPLACE if kinds == {REPLACE} else ZERO_OUT


def refuse_delta(delta: float, examples: int | None = None) -> None:
    """Raise `RecipeError` unless delta is below 1/N: with delta = 1/N, publishing one random example would count as private."""
    if not 0 < delta < 1:
        raise RecipeError(f"got delta {delta:g}: expected above 0 and below 1, and in practice below 1/N.")
    if examples is not None and delta >= 1 / examples:
        raise RecipeError(
            f"delta {delta:g} is not below 1/N = {1 / examples:.3g} (N = {examples:,}). At that delta, publishing one random example "
            f"would count as private. Set {_below(1 / examples):g} or less."
        )


def _below(limit: float) -> float:
    """A power of ten well below the value."""
    return float(10.0 ** math.floor(math.log10(limit) - 0.3))


def refuse_epsilon(epsilon: float) -> None:
    """Raise `RecipeError` unless epsilon is a valid target."""
    if not 0 < epsilon < math.inf:
        raise RecipeError(f"got epsilon {epsilon:g}: expected a number above 0 (1 is strong, 8 is common, above 20 protects little).")
