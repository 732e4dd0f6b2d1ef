"""Outer optimizers: they apply the difference of two sets of weights, as an optimizer applies a gradient.

A worker starts from the anchor x, trains locally to y, and returns the outer gradient (pseudo-gradient) x - y. Local SGD, DiLoCo,
a federated server and an asynchronous parameter server all apply the mean of such differences. Here this is done on dictionaries
of tensors, without process groups, rounds or clients.

    local SGD, FedAvg    x <- x - g                              Stich 2019, arXiv:1805.09767; McMahan et al. 2017, arXiv:1602.05629
    DiLoCo               Nesterov's momentum over g              Douillard et al. 2023, arXiv:2311.08105
    FedAdam              Adam over g                             Reddi et al. 2021, arXiv:2003.00295, algorithm 2
    delayed Nesterov     for updates that arrive one by one      Liu et al. 2024, arXiv:2401.09135, algorithm 3
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from tauon.config import Count, Registered, register

__all__ = ["AdamOuter", "AverageOuter", "DelayedNesterovOuter", "NesterovOuter", "OuterConfig", "outer_gradient", "weighted_mean"]

Weights = Mapping[str, Tensor]


def outer_gradient(anchor: Weights, local: Weights) -> dict[str, Tensor]:
    """Outer gradient, anchor - local, by name."""
    return {name: anchor[name] - w.detach().to(anchor[name].dtype) for name, w in local.items()}


def weighted_mean(answers: Sequence[Weights], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Mean over workers, in the given order; `weights` (e.g. numbers of examples) need not sum to one."""
    share = [1.0] * len(answers) if weights is None else list(weights)
    total = sum(share)
    return {name: sum((a[name] * (s / total) for a, s in zip(answers, share, strict=True)), torch.zeros(())) for name in answers[0]}


class OuterConfig(Registered, family="outer", default="nesterov"):
    """Outer optimizer. It is stateless: its state is in `state`, by parameter name.

    >>> outer = NesterovOuter(lr=1.0, momentum=0.5)
    >>> anchor = {"w": torch.tensor([1.0])}
    >>> state = outer.state(anchor)
    >>> outer.update(anchor, {"w": torch.tensor([0.5])}, state)
    >>> anchor["w"], state["momentum/w"]
    (tensor([0.2500]), tensor([0.5000]))
    """

    def state(self, anchor: Weights) -> dict[str, Tensor]:
        """Initial state for `update`: tensors with keys `<entry>/<name>`."""
        return {}

    def update(self, anchor: Weights, gradient: Weights, state: Mapping[str, Tensor]) -> None:
        """Update `anchor` and `state` in place by an outer gradient. Parameters that are not in `gradient` do not change."""
        raise NotImplementedError


@register("average")
class AverageOuter(OuterConfig):
    """Move the share `lr` of the way to the mean of the workers' weights: local SGD and federated averaging at 1."""

    lr: float = Field(1.0, gt=0)
    """Outer learning rate; 1 sets the weights to the mean."""

    @torch.no_grad()
    def update(self, anchor: Weights, gradient: Weights, state: Mapping[str, Tensor]) -> None:
        for name, g in gradient.items():
            anchor[name].add_(g, alpha=-self.lr)


@register("nesterov")
class NesterovOuter(OuterConfig):
    """SGD with Nesterov's momentum, as DiLoCo uses it: m <- momentum m + g, x <- x - lr (g + momentum m)."""

    lr: float = Field(0.7, gt=0)
    """Outer learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Decay of the running sum of outer gradients."""

    def state(self, anchor: Weights) -> dict[str, Tensor]:
        return {f"momentum/{name}": torch.zeros_like(x) for name, x in anchor.items()}

    @torch.no_grad()
    def update(self, anchor: Weights, gradient: Weights, state: Mapping[str, Tensor]) -> None:
        for name, g in gradient.items():
            m = state[f"momentum/{name}"].mul_(self.momentum).add_(g)
            anchor[name].add_(g.add(m, alpha=self.momentum), alpha=-self.lr)


@register("adam")
class AdamOuter(OuterConfig):
    """FedAdam: m <- b1 m + (1-b1) g, v <- b2 v + (1-b2) g^2, x <- x - lr m / (sqrt(v) + eps). No bias correction; v starts at eps^2."""

    lr: float = Field(0.01, gt=0)
    """Outer learning rate: about how far an element moves in an outer step."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the first and the second moment."""
    eps: float = Field(1e-3, gt=0)
    """Adaptivity (tau in the paper): elements whose gradient is far below it move in proportion to the gradient."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if not all(0 <= b < 1 for b in self.raw_value("betas")):
            yield "betas", f"is {self.raw_value('betas')}: each must be at least 0 and below 1."

    def state(self, anchor: Weights) -> dict[str, Tensor]:
        first = {f"mean/{name}": torch.zeros_like(x) for name, x in anchor.items()}
        return first | {f"square/{name}": torch.full_like(x, self.eps**2) for name, x in anchor.items()}

    @torch.no_grad()
    def update(self, anchor: Weights, gradient: Weights, state: Mapping[str, Tensor]) -> None:
        b1, b2 = self.betas
        for name, g in gradient.items():
            m = state[f"mean/{name}"].mul_(b1).add_(g, alpha=1 - b1)
            v = state[f"square/{name}"].mul_(b2).addcmul_(g, g, value=1 - b2)
            anchor[name].addcdiv_(m, v.sqrt().add_(self.eps), value=-self.lr)


@register("delayed-nesterov")
class DelayedNesterovOuter(OuterConfig):
    """For updates that arrive one by one: each changes the weights at once, the momentum only every `delay` updates.

    The gradient g of one update is applied as g / N; after N of them m <- momentum m + (their mean), and the momentum term momentum m
    is added to that update (c = 0), or the share c to each of the N updates (the rest to the last). Nesterov's momentum on every
    update would apply old momentum N times per round, and diverges. `delay` = 1 is Nesterov's momentum.
    """

    lr: float = Field(0.7, gt=0)
    """Outer learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Decay of the running sum of outer gradients."""
    delay: Count = Field(ge=1)
    """Updates between two changes of the momentum (N): usually the number of workers."""
    activation: float = Field(0.0, ge=0, le=1)
    """Share of the momentum that each update applies (c), at most 1 / delay."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("activation") > 1 / self.raw_value("delay") + 1e-9:
            yield "activation", f"{self.raw_value('activation'):g} is above 1 / delay = {1 / self.raw_value('delay'):g}. Set at most that."

    def state(self, anchor: Weights) -> dict[str, Tensor]:
        state = {f"momentum/{name}": torch.zeros_like(x) for name, x in anchor.items()}
        state |= {f"sum/{name}": torch.zeros_like(x) for name, x in anchor.items()}
        return state | {f"count/{name}": torch.zeros((), dtype=torch.int64) for name in anchor}

    @torch.no_grad()
    def update(self, anchor: Weights, gradient: Weights, state: Mapping[str, Tensor]) -> None:
        n, c = self.delay, self.activation
        for name, g in gradient.items():
            m, waiting = state[f"momentum/{name}"], state[f"sum/{name}"].add_(g)
            full = int(state[f"count/{name}"].add_(1)) == n
            if full:
                m.mul_(self.momentum).add_(waiting, alpha=1 / n)
                waiting.zero_()
                state[f"count/{name}"].zero_()
            share = 1 - c * n + c if full else c
            anchor[name].add_(g / n + m * (share * self.momentum), alpha=-self.lr)
