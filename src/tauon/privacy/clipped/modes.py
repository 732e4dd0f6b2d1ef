"""How far each unit's gradient is clipped. Everything here is a pure function of squared norms and a small state, which is saved as tensors.

`flat`       g min(1, C / ||g||)                                                     (Abadi et al. 2016, arXiv:1607.00133)
`per-layer`  each parameter to a bound of its own, C_l, with sum C_l^2 = C^2          (McMahan et al. 2018, arXiv:1710.06963)
`automatic`  g C / (||g|| + gamma): no gradient is left at its own length             (Bu et al. 2022, arXiv:2206.07136, AUTO-S)
`adaptive`   flat, C following a quantile of the norms, which is counted with noise   (Andrew et al. 2019, arXiv:1905.03871)

Knows no layer and adds no noise: it says how much one unit can move the sum (`sensitivity`), and what a count of its own costs (`spends`).
Shapes: U units of a microbatch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from tauon.config import Fraction, Registered, register

__all__ = ["AdaptiveClipping", "AutomaticClipping", "ClippingConfig", "Factors", "FlatClipping", "PerLayerClipping"]

Factors = Tensor | dict[str, Tensor]
"""What each unit's gradient is multiplied by, U; or that for each parameter."""
State = dict[str, Tensor]


class ClippingConfig(Registered, family="clipping"):
    """How gradients of single examples are clipped."""

    norm: PositiveFloat = 1.0
    """Bound on the length of one example's gradient, C."""
    final_norm: PositiveFloat | None = None
    """Bound at the last step; it changes evenly from the first. Left out: it stays."""

    def start(self, sizes: Mapping[str, int]) -> State:
        """The state before the first step. `sizes`: numbers in each parameter that trains, by name."""
        return {}

    def bound(self, state: State, progress: float = 0.0) -> float:
        """C at `progress`, steps done as a share of all."""
        last = self.norm if self.final_norm is None else self.final_norm
        return self.norm + (last - self.norm) * min(1.0, max(0.0, progress))

    def sensitivity(self, state: State, progress: float = 0.0) -> float:
        """The most by which adding or removing one unit moves the sum, in L2: what the noise is a multiple of."""
        return self.bound(state, progress)

    def factors(self, squared: Mapping[str, Tensor], state: State, progress: float = 0.0) -> Factors:
        """From each parameter's squared norms, U."""
        raise NotImplementedError

    def counted(self, squared: Mapping[str, Tensor], state: State, present_U: Tensor, progress: float = 0.0) -> Tensor | None:
        """A number of this microbatch that the next state needs, to be summed over microbatches and processes; None: nothing is.

        `present_U`: whether a unit is in the batch, and not there to fill it up.
        """
        return None

    def moved(self, state: State, counted: Tensor, noise: Tensor, expected: float) -> State:
        """The next step's state, from the sum of `counted`, one standard normal number, and the expected number of units."""
        return state

    def spends(self, noise_multiplier: float) -> float:
        """The noise multiplier of the whole step, the sum's and the count's together, where the sum's is given: what is accounted."""
        return noise_multiplier


@register("flat")
class FlatClipping(ClippingConfig):
    """The whole gradient of an example to one bound."""

    def factors(self, squared: Mapping[str, Tensor], state: State, progress: float = 0.0) -> Factors:
        return _to(self.bound(state, progress), _whole(squared))


@register("per-layer")
class PerLayerClipping(ClippingConfig):
    """Each parameter to a bound of its own; together they are `norm`."""

    shares: Literal["equal", "size"] = "equal"
    """equal: every parameter has norm / sqrt(number of parameters); size: squared bounds in proportion to numbers of weights."""

    def start(self, sizes: Mapping[str, int]) -> State:
        counts = torch.tensor([float(n) if self.shares == "size" else 1.0 for n in sizes.values()], dtype=torch.float64)
        return {"shares": (counts / counts.sum()).sqrt()}

    def factors(self, squared: Mapping[str, Tensor], state: State, progress: float = 0.0) -> Factors:
        C = self.bound(state, progress)
        shares = state["shares"].tolist()
        return {name: _to(C * share, s) for (name, s), share in zip(squared.items(), shares, strict=True)}


@register("automatic")
class AutomaticClipping(ClippingConfig):
    """Every gradient to nearly one length: C only scales the learning rate."""

    stability: PositiveFloat = 0.01
    """Added to the norm, gamma: keeps small gradients shorter than large ones."""

    def factors(self, squared: Mapping[str, Tensor], state: State, progress: float = 0.0) -> Factors:
        return self.bound(state, progress) / (_whole(squared).sqrt() + self.stability)


@register("adaptive")
class AdaptiveClipping(ClippingConfig):
    """The bound follows a quantile of the norms; how many are below is counted with noise, which is part of the budget."""

    quantile: Fraction = Field(0.5, gt=0, lt=1)
    """Share of examples that shall not be clipped."""
    rate: PositiveFloat = 0.2
    """How fast the bound moves: it is multiplied by exp(-rate (share below - quantile)) each step."""
    count_noise: PositiveFloat = 10.0
    """Standard deviation of the noise on the number of examples below, in examples. The paper: a twentieth of the batch."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("final_norm") is not None:
            yield "final_norm", "is for bounds that are fixed beforehand, and adaptive follows the gradients; drop it"

    def start(self, sizes: Mapping[str, int]) -> State:
        return {"norm": torch.tensor(self.norm, dtype=torch.float64)}

    def bound(self, state: State, progress: float = 0.0) -> float:
        return float(state["norm"]) if "norm" in state else self.norm

    def factors(self, squared: Mapping[str, Tensor], state: State, progress: float = 0.0) -> Factors:
        return _to(self.bound(state), _whole(squared))

    def counted(self, squared: Mapping[str, Tensor], state: State, present_U: Tensor, progress: float = 0.0) -> Tensor:
        """The sum of 1 below the bound and -1 above, halved: one unit moves it by 1/2 at most."""
        below_U = (_whole(squared).sqrt() <= self.bound(state)).float() - 0.5
        return (below_U * present_U.to(below_U.dtype)).sum()

    def moved(self, state: State, counted: Tensor, noise: Tensor, expected: float) -> State:
        share = (float(counted) + self.count_noise * float(noise)) / expected + 0.5
        return {"norm": state["norm"] * math.exp(-self.rate * (share - self.quantile))}

    def spends(self, noise_multiplier: float) -> float:
        """(z^-2 + (2 sigma)^-2)^(-1/2): both are one Gaussian mechanism on a longer vector (theorem 1 of the paper)."""
        return (noise_multiplier**-2 + (2 * self.count_noise) ** -2) ** -0.5 if noise_multiplier > 0 else 0.0


def _whole(squared: Mapping[str, Tensor]) -> Tensor:
    """U: squared norm of the whole gradient."""
    return torch.stack(list(squared.values())).sum(0)


def _to(bound: float, squared_U: Tensor) -> Tensor:
    """min(1, bound / norm); 1 where the gradient is zero."""
    return (bound / squared_U.sqrt().clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=1.0)
