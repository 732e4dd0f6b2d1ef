"""Outer optimizers: they act on the difference of two sets of weights, as an optimizer acts on a gradient.

A worker takes the anchor x, trains on its own until it holds y, and answers with the outer gradient (also pseudo-gradient)
x - y. What becomes of the mean of such answers is the same question for local SGD, DiLoCo, a federated server and an
asynchronous parameter server, and is answered here once, on dictionaries of tensors: no process group, no round, no client.

    local SGD, FedAvg    x <- x - g                              Stich 2019, arXiv:1805.09767; McMahan et al. 2017, arXiv:1602.05629
    DiLoCo               Nesterov's momentum over g              Douillard et al. 2023, arXiv:2311.08105
    FedAdam              Adam over g                             Reddi et al. 2021, arXiv:2003.00295, algorithm 2
    delayed Nesterov     for answers that come one by one        Liu et al. 2024, arXiv:2401.09135, algorithm 3
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
    """Outer gradient, anchor - local, name by name."""
    return {name: anchor[name] - w.detach().to(anchor[name].dtype) for name, w in local.items()}


def weighted_mean(answers: Sequence[Weights], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Mean of what several workers sent, in the order given; `weights` (numbers of examples, say) need not sum to one."""
    share = [1.0] * len(answers) if weights is None else list(weights)
    total = sum(share)
    return {name: sum((a[name] * (s / total) for a, s in zip(answers, share, strict=True)), torch.zeros(())) for name in answers[0]}


class OuterConfig(Registered, family="outer", default="nesterov"):
    """An outer optimizer. It keeps nothing itself: what it must remember is in `state`, by parameter name.

    >>> outer = NesterovOuter(lr=1.0, momentum=0.5)
    >>> anchor = {"w": torch.tensor([1.0])}
    >>> state = outer.state(anchor)
    >>> outer.update(anchor, {"w": torch.tensor([0.5])}, state)
    >>> anchor["w"], state["momentum/w"]
    (tensor([0.2500]), tensor([0.5000]))
    """

    def state(self, anchor: Weights) -> dict[str, Tensor]:
        """What `update` needs before its first call: tensors keyed `<entry>/<name>`."""
        return {}

    def update(self, anchor: Weights, gradient: Weights, state: Mapping[str, Tensor]) -> None:
        """Move `anchor` and `state`, in place, by an outer gradient. Parameters that are not in `gradient` stay as they are."""
        raise NotImplementedError


@register("average")
class AverageOuter(OuterConfig):
    """Go `lr` of the way to the mean of the workers' weights: local SGD and federated averaging at 1."""

    lr: float = Field(1.0, gt=0)
    """Outer learning rate; 1 takes the mean itself."""

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
            yield "betas", f"{self.raw_value('betas')}: each must be at least 0 and below 1."

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
    """For workers that answer one by one: each answer moves the weights at once, the momentum only every `delay` answers.

    An answer's gradient g acts as g / N; after N of them m <- momentum m + (their mean), and the momentum's part of the update,
    momentum m, is given to that answer (c = 0), or c of it to each of the N answers (the rest to the last). Nesterov's momentum on
    every single answer would apply old momentum N times a round, and diverges. `delay` = 1 is Nesterov's momentum.
    """

    lr: float = Field(0.7, gt=0)
    """Outer learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Decay of the running sum of outer gradients."""
    delay: Count = Field(ge=1)
    """Answers between two updates of the momentum (N): the number of workers, usually."""
    activation: float = Field(0.0, ge=0, le=1)
    """Share of the momentum that each answer applies (c), at most 1 / delay."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("activation") > 1 / self.raw_value("delay") + 1e-9:
            yield "activation", f"{self.raw_value('activation'):g} is above 1 / delay = {1 / self.raw_value('delay'):g}. Take at most that."

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
