"""Clipping modes: factors for each unit's gradient, as pure functions of squared norms and a small state, which is saved as tensors.

`flat`       g min(1, C / ||g||)                                                     (Abadi et al. 2016, arXiv:1607.00133)
`per-layer`  each parameter to its own bound, C_l, with sum C_l^2 = C^2          (McMahan et al. 2018, arXiv:1710.06963)
`automatic`  g C / (||g|| + gamma): every gradient is rescaled             (Bu et al. 2022, arXiv:2206.07136, AUTO-S)
`adaptive`   flat, C follows a quantile of the norms, from a noisy count   (Andrew et al. 2019, arXiv:1905.03871)

Independent of layers, and adds no noise: gives the sensitivity of the sum, and the cost of a noisy count (`spends`).
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
"""Factor of each unit's gradient, U; or one such vector per parameter."""
State = dict[str, Tensor]


class ClippingConfig(Registered, family="clipping"):
    """Clipping of per-example gradients."""

    norm: PositiveFloat = 1.0
    """Clipping norm C: maximum L2 norm of one example's gradient."""
    final_norm: PositiveFloat | None = None
    """Clipping norm at the last step; linear from the first. Default: constant."""

    def start(self, sizes: Mapping[str, int]) -> State:
        """State before the first step. `sizes`: elements of each trainable parameter, by name."""
        return {}

    def bound(self, state: State, progress: float = 0.0) -> float:
        """C at `progress`, the share of steps done."""
        last = self.norm if self.final_norm is None else self.final_norm
        return self.norm + (last - self.norm) * min(1.0, max(0.0, progress))

    def sensitivity(self, state: State, progress: float = 0.0) -> float:
        """L2 sensitivity of the sum to one unit; the noise is a multiple of it."""
        return self.bound(state, progress)

    def factors(self, squared: Mapping[str, Tensor], state: State, progress: float = 0.0) -> Factors:
        """Factors from the squared norms (U) of each parameter."""
        raise NotImplementedError

    def counted(self, squared: Mapping[str, Tensor], state: State, present_U: Tensor, progress: float = 0.0) -> Tensor | None:
        """Count of this microbatch for the next state, summed over microbatches and processes; None: not needed.

        `present_U`: whether a unit is in the batch, and is not padding.
        """
        return None

    def moved(self, state: State, counted: Tensor, noise: Tensor, expected: float) -> State:
        """Next state, from the sum of `counted`, one standard normal number, and the expected number of units."""
        return state

    def spends(self, noise_multiplier: float) -> float:
        """Noise multiplier to account for: of the sum and the count together, given that of the sum."""
        return noise_multiplier


@register("flat")
class FlatClipping(ClippingConfig):
    """Clip the complete gradient of an example to one norm."""

    def factors(self, squared: Mapping[str, Tensor], state: State, progress: float = 0.0) -> Factors:
        return _to(self.bound(state, progress), _whole(squared))


@register("per-layer")
class PerLayerClipping(ClippingConfig):
    """Clip each parameter's gradient to its own norm; together they are `norm`."""

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
    """Rescale every gradient to nearly the same norm: C only scales the learning rate."""

    stability: PositiveFloat = 0.01
    """Added to the norm, gamma: keeps small gradients shorter than large ones."""

    def factors(self, squared: Mapping[str, Tensor], state: State, progress: float = 0.0) -> Factors:
        return self.bound(state, progress) / (_whole(squared).sqrt() + self.stability)


@register("adaptive")
class AdaptiveClipping(ClippingConfig):
    """The clipping norm follows a quantile of the gradient norms, from a noisy count that is part of the budget."""

    quantile: Fraction = Field(0.5, gt=0, lt=1)
    """Target share of examples that are not clipped."""
    rate: PositiveFloat = 0.2
    """Learning rate of the clipping norm, which is multiplied by exp(-rate (share below - quantile)) each step."""
    count_noise: PositiveFloat = 10.0
    """Standard deviation of the noise in the count, in examples. The paper uses a twentieth of the batch."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("final_norm") is not None:
            yield "final_norm", "is for a fixed schedule, but adaptive follows the gradients. Remove it."

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
    """U: squared norm of the complete gradient."""
    return torch.stack(list(squared.values())).sum(0)


def _to(bound: float, squared_U: Tensor) -> Tensor:
    """min(1, bound / norm); 1 where the gradient is zero."""
    return (bound / squared_U.sqrt().clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=1.0)
