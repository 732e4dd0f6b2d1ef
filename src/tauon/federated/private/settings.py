"""Differential privacy of updates: who adds the noise, how much, and what one site can change (McMahan et al. 2018, arXiv:1710.06963).

The unit is a site: all its rows together. A site contributes a vector v: its update, clipped to the L2 norm C, and K numbers (its loss, whether it was
clipped, ...), each clipped to its bound B_k. Every part is measured in its own scale, C for the update and B_k / g for a number, so that

    || v || <= S = sqrt(1 + K g^2),

and noise of z S in each scale gives a sum of such vectors the guarantee of the Gaussian mechanism with noise multiplier z. The sum is divided by a fixed
number, never by how many answered.

    central      the coordinator adds the noise to the sum. It sees every update, or, with secure aggregation, the sum, and is trusted
    local        each site adds all of that noise to its own vector. No one is trusted
    distributed  each site adds a share to its vector, in integers, before it is masked; the sum has the noise. The coordinator sees the noised sum only
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tauon.errors import Problem, RecipeError
from tauon.federated.secagg import Entry, Layout
from tauon.federated.secagg.quantise import TAIL
from tauon.federated.secagg.session import FEWEST

__all__ = ["Mode", "SiteSampling", "UpdatePrivacy", "private_layout"]

Mode = Literal["central", "local", "distributed"]
SiteSampling = Literal["poisson", "fixed-size", "full"]


@dataclass(frozen=True)
class UpdatePrivacy:
    """Settings of the privacy of updates, the same at the coordinator and at every site.

    >>> p = UpdatePrivacy("central", clip_norm=0.5, noise_multiplier=2.0, sites=100, sampling="poisson", rate=0.1)
    >>> p.noise_std(), p.divisor
    (1.0, 10.0)
    """

    mode: Mode
    clip_norm: float
    """Clipping norm C of an update."""
    noise_multiplier: float
    """z: standard deviation of the noise / what one site can change. Central and distributed: of the sum. Local: of one site's vector."""
    sites: int
    """Number N of sites that may take part. It is public."""
    sampling: SiteSampling = "full"
    rate: float = 1.0
    """Probability that a site takes part in a round (poisson), or the share of sites in each round (fixed-size)."""
    contributors: int | None = None
    """Distributed: as many sites' shares of noise are counted on, at least, in a sum; sites do not unmask a sum of fewer. Sites that may work with the
    coordinator come on top (`colluders`)."""
    colluders: int = 0
    """Distributed: sites whose shares of noise the coordinator may know."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Numbers that a site adds besides its update, with their bounds B_k."""
    number_scale: float = 0.2
    """g: weight of the numbers in the vector. Smaller: less noise on the update, more on the numbers."""

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise RecipeError([Problem(f"federate.privacy.{key}", message) for key, message in problems])

    def _problems(self) -> Any:
        if self.mode not in ("central", "local", "distributed"):
            yield "mode", f"is {self.mode!r}. Use central, local or distributed."
        for name in ("clip_norm", "noise_multiplier", "number_scale"):
            if not 0 < getattr(self, name) < math.inf:
                yield name, f"is {getattr(self, name):g}, expected a finite number above 0."
        if self.sites < 1 or not 0 < self.rate <= 1:
            yield "rate", f"is {self.rate:g} of {self.sites} sites: expected above 0 and at most 1, of at least one site."
        if self.sampling not in ("poisson", "fixed-size", "full"):
            yield "sampling", f"is {self.sampling!r}. Use poisson, fixed-size or full."
        if self.sampling == "full" and self.rate != 1:
            yield "rate", f"is {self.rate:g}, but with sampling full every site is in every round. Set poisson or fixed-size."
        if self.sampling == "fixed-size" and 0 < self.rate * self.sites < 1 - 1e-9:
            yield "rate", f"is {self.rate:g} of {self.sites} sites: less than one. Set it to at least {1 / self.sites:.3g}."
        if any(not 0 < b < math.inf for b in self.numbers.values()):
            yield "numbers", "need finite bounds above 0."
        if self.mode == "distributed":
            if self.contributors is None or not FEWEST <= self.contributors <= self.sites:
                yield "contributors", f"is {self.contributors}: set how many sites' noise is counted on, from {FEWEST} to {self.sites}."
            if self.colluders < 0 or (self.contributors or 0) + self.colluders > self.sites:
                yield "colluders", f"are {self.colluders} beside {self.contributors} contributors: more than the {self.sites} sites."
        if self.mode != "central" and self.sampling != "full":
            yield (
                "sampling",
                (
                    f"is {self.sampling}, but with {self.mode} noise the guarantee is against the coordinator, which knows who takes part: sampling does "
                    "not strengthen it. Set full, and rate=1; rounds are then counted for the site that takes part in most."
                ),
            )

    @property
    def norm(self) -> float:
        """S: norm of a site's vector at most, in its scales."""
        return math.sqrt(1 + len(self.numbers) * self.number_scale**2)

    def scale(self, name: str | None = None) -> float:
        """Scale of the update (None), or of a number."""
        return self.clip_norm if name is None else self.numbers[name] / self.number_scale

    def noise_std(self, name: str | None = None) -> float:
        """Standard deviation of the noise on each number of the update (None), or on a number: z S times its scale. Central, distributed: in the
        sum. Local: of one site.
        """
        return self.noise_multiplier * self.norm * self.scale(name)

    @property
    def divisor(self) -> float:
        """What the sum is divided by: the expected number of sites in a round."""
        return self.expected(self.sites)

    def expected(self, sites: int) -> float:
        """Return how many of so many sites are in a round: on average (poisson), or whole ones, rounded down (fixed-size)."""
        return float(math.floor(self.rate * sites + 1e-9)) if self.sampling == "fixed-size" else self.rate * sites

    @property
    def fewest(self) -> int:
        """Sites in a sum at least, for `SiteRules.fewest`."""
        return max(FEWEST, (self.contributors or 0) + self.colluders)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "numbers": dict(self.numbers)}


def private_layout(shapes: Mapping[str, tuple[int, ...]], privacy: UpdatePrivacy, sites: int) -> Layout:
    """Return the layout of a secure sum of private vectors of `sites` sites, with space for the noise.

    A number of a clipped update is at most C in absolute value, with a weight of at most 1. With distributed noise, n sites that all answer add the
    noise of n shares.
    """
    shares = sites / privacy.contributors if privacy.mode == "distributed" and privacy.contributors else 1.0

    def entry(name: str, shape: tuple[int, ...], bound: float, std: float, number: bool) -> Entry:
        if privacy.mode == "local":
            return Entry(name, shape, bound + TAIL * std, 0.0, number)
        return Entry(name, shape, bound, std * math.sqrt(max(1.0, shares)) * ROUNDING if privacy.mode == "distributed" else 0.0, number)

    tensors = (entry(name, tuple(shape), privacy.clip_norm, privacy.noise_std(), False) for name, shape in shapes.items())
    numbers = (entry(name, (), bound, privacy.noise_std(name), True) for name, bound in privacy.numbers.items())
    return Layout(sites, (*tensors, *numbers))


ROUNDING = 1.05
"""Space for the noise that rounding to steps adds (`distributed.rounded_norm`)."""
