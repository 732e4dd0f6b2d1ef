"""Schedule-free AdamW: the average of all steps replaces a decaying learning rate (Defazio et al. 2024, arXiv:2405.15682,
algorithm 1 with the practical form of its appendix: weights of the average by the square of the rate).

The model has y, where gradients are computed; z, the base iterate, is state; x, the average, is validated, evaluated and saved as the
model's weights. After loading x, y is restored from the state, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from tauon.config import register
from tauon.optim.base import AveragedWeights, Decay, OptimConfig, decay_groups
from tauon.optim.schedule import Constant, ScheduleConfig

__all__ = ["ScheduleFree", "ScheduleFreeConfig"]


@register("schedule-free")
class ScheduleFreeConfig(OptimConfig):
    """Schedule-free AdamW: no schedule and no fixed number of steps; only a warm-up."""

    default_lr = 2.5e-3

    weight_decay: float = Field(0.1, ge=0)
    schedule: ScheduleConfig = Constant(warmup=0.05)
    """Only the warm-up: `constant`."""
    betas: tuple[float, Decay] = (0.9, 0.95)
    """Interpolation of y from z (0) to x (1), exclusive; decay of the second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    clip_norm: float | None = Field(1.0, gt=0)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.raw_value("schedule").kind_ != "constant":
            yield (
                "schedule",
                f"got {self.raw_value('schedule').kind_}, but the averaging replaces a schedule. Set constant, with a warm-up, or remove it.",
            )
        if not 0 < self.raw_value("betas")[0] < 1:
            yield "betas", f"the first, {self.raw_value('betas')[0]:g}, must be above 0 and below 1: 0.9 is usual."

    def build(self, model: nn.Module) -> Optimizer:
        groups = decay_groups(model.named_parameters(), self.peak, self.weight_decay)
        return ScheduleFree(groups, lr=self.peak, betas=self.betas, eps=self.eps)

    def averaged_weights(self, model: nn.Module, optimizer: Optimizer) -> AveragedWeights | None:
        assert isinstance(optimizer, ScheduleFree)
        return Average(model, optimizer)


class ScheduleFree(Optimizer):
    """`params` are y. State of each: z, exp_avg_sq, y (the parameter itself), step, and the sum of weights of the average."""

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def take_up(self) -> None:
        """Restore y in parameters that were loaded with x (from a checkpoint)."""
        for group in self.param_groups:
            for p in group["params"]:
                held = self.state.get(p, {}).get("y")
                if held is not None and held.data_ptr() != p.data_ptr():
                    p.copy_(held)
                    self.state[p]["y"] = p.detach()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, (b1, b2) = float(group["lr"]), group["betas"]
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, lr, b1, b2, group["eps"], group["weight_decay"])
        return loss

    def _step(self, p: Tensor, lr: float, b1: float, b2: float, eps: float, decay: float) -> None:
        state = self.state[p]
        if not state:
            state |= {"z": p.detach().clone(), "exp_avg_sq": torch.zeros_like(p), "step": 0, "weight_sum": 0.0, "greatest_lr": 0.0}
        state["step"] += 1
        state["greatest_lr"] = max(lr, state["greatest_lr"])
        weight = state["greatest_lr"] ** 2
        state["weight_sum"] += weight
        share = weight / state["weight_sum"] if state["weight_sum"] else 0.0
        state["exp_avg_sq"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)  # type: ignore[arg-type]
        size = state["exp_avg_sq"].div(1 - b2 ** state["step"]).sqrt_().add_(eps)
        update = p.grad.div(size).add_(p, alpha=decay)  # type: ignore[union-attr]
        # updates y as if x moved towards z by `share` and z by the step, without storing x
        p.lerp_(state["z"], share).add_(update, alpha=lr * (b1 * (1 - share) - 1))
        state["z"].sub_(update, alpha=lr)
        state["y"] = p.detach()


class Average:
    """Compute x from y and z: x = y + (1 - 1 / b1) (z - y)."""

    def __init__(self, model: nn.Module, optimizer: ScheduleFree) -> None:
        self.parameters, self.optimizer = dict(model.named_parameters()), optimizer

    @property
    def anchor(self) -> Mapping[str, Tensor]:
        """X by parameter name; the parameter itself if it has no state yet, or is frozen."""
        b1 = {p: g["betas"][0] for g in self.optimizer.param_groups for p in g["params"]}
        with torch.no_grad():
            return {
                name: p.detach().lerp(self.optimizer.state[p]["z"], 1 - 1 / b1[p]) if "z" in self.optimizer.state.get(p, {}) else p.detach()
                for name, p in self.parameters.items()
            }

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Context in which the model has x; afterwards y again, bit for bit."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        with torch.no_grad():
            for name, x in self.anchor.items():
                self.parameters[name].copy_(x)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, y in own.items():
                    self.parameters[name].copy_(y)
