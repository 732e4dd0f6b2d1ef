"""SOAP: Adam in the eigenbasis of Shampoo's preconditioners (Vyas et al. 2024, arXiv:2409.11321, algorithms 3 and 4).

For the matrices inside the blocks, with AdamW for the rest, like Muon. Needs complete matrices: every process of a data-parallel group
computes the same step; sharded weights are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from tauon.config import Count, register
from tauon.optim.base import Decay, OptimConfig, decay_groups, refuse_pieces
from tauon.optim.multi import MultiOptimizer, inner_matrices

__all__ = ["SOAP", "SOAPConfig"]


@register("soap")
class SOAPConfig(OptimConfig):
    """SOAP for matrices with AdamW for the rest. At most a third of Shampoo's cost per step, and few settings beyond Adam's."""

    default_lr = 3e-3

    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[Decay, Decay] = (0.95, 0.95)
    """Decay of the first and second moment."""
    shampoo_beta: Decay = 0.95
    """Decay of the preconditioners' running means."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    every: Count = Field(10, ge=1)
    """Steps between two updates of the eigenbasis."""
    largest: Count = Field(4096, ge=1)
    """A side longer than this is not rotated: its preconditioner would take too much memory."""
    clip_norm: float | None = Field(1.0, gt=0)

    def build(self, model: nn.Module) -> Optimizer:
        refuse_pieces(model, self, "needs the eigenvectors of complete matrices")
        matrices, rest = inner_matrices(model)
        parts: list[Optimizer] = []
        if matrices:
            parts.append(
                SOAP(
                    [g | {"weight_decay": self.weight_decay} for g in decay_groups(matrices, self.peak, self.weight_decay)], lr=self.peak,
                    betas=self.betas, shampoo_beta=self.shampoo_beta, eps=self.eps, every=self.every, largest=self.largest,
                )
            )  # fmt: skip
        if rest:
            parts.append(AdamW(decay_groups(rest, self.peak, self.weight_decay), betas=self.betas, eps=self.eps, fused=True))
        return MultiOptimizer(parts)


class SOAP(Optimizer):
    """State of a matrix (m, n): exp_avg and exp_avg_sq (m, n), the latter in the eigenbasis; L (m, m), R (n, n) and their eigenvectors
    QL, QR. The first step only sets up the basis, as the reference implementation does.
    """

    first_step_moves = False
    """Whether the first step changes weights."""

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.95, 0.95), shampoo_beta: float = 0.95, eps: float = 1e-8,
        weight_decay: float = 0.0, every: int = 10, largest: int = 4096,
    ) -> None:  # fmt: skip
        settings = {
            "betas": betas,
            "shampoo_beta": shampoo_beta,
            "eps": eps,
            "weight_decay": weight_decay,
            "every": every,
            "largest": largest,
        }
        super().__init__(params, {"lr": lr} | settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad if p.grad.dtype == torch.float64 else p.grad.float(), group)
        return loss

    def _step(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (b1, b2) = self.state[p], group["betas"]
        sides = [s for s, length in (("L", p.shape[0]), ("R", p.shape[1])) if length <= group["largest"]]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(grad), "exp_avg_sq": torch.zeros_like(grad)}
            for side in sides:
                state[side] = outer(grad, side) * (1 - group["shampoo_beta"])
                state[f"Q{side}"] = eigenvectors(state[side])
            return
        state["step"] += 1
        turned = turn(grad, state)
        state["exp_avg"].lerp_(grad, 1 - b1)
        state["exp_avg_sq"].mul_(b2).addcmul_(turned, turned, value=1 - b2)
        size = state["exp_avg_sq"].sqrt().add_(group["eps"])
        update = turn_back(turn(state["exp_avg"], state) / size, state)
        lr = float(group["lr"])
        corrected = lr * (1 - b2 ** state["step"]) ** 0.5 / (1 - b1 ** state["step"])
        p.add_(update, alpha=-corrected)
        p.mul_(1 - lr * group["weight_decay"])
        for side in sides:
            state[side].lerp_(outer(grad, side), 1 - group["shampoo_beta"])
        if state["step"] % group["every"] == 0:
            for side in sides:
                self._new_basis(state, side)

    def _new_basis(self, state: dict[str, Any], side: str) -> None:
        """One step of power iteration and a QR decomposition (algorithm 4); columns are sorted by eigenvalue, and the
        second moment is permuted with them.
        """
        q, m = state[f"Q{side}"], state[side]
        order = torch.argsort((q.T @ m @ q).diagonal(), descending=True)
        state["exp_avg_sq"] = state["exp_avg_sq"].index_select(0 if side == "L" else 1, order)
        state[f"Q{side}"] = torch.linalg.qr(m @ q[:, order]).Q


def outer(grad: Tensor, side: str) -> Tensor:
    return grad @ grad.T if side == "L" else grad.T @ grad


def eigenvectors(m: Tensor) -> Tensor:
    """Eigenvectors by descending eigenvalue. The ridge handles a gradient of zeros."""
    vectors: Tensor = torch.linalg.eigh(m + 1e-30 * torch.eye(len(m), device=m.device)).eigenvectors.flip(1)
    return vectors


def turn(x: Tensor, state: dict[str, Any]) -> Tensor:
    """Rotate into the eigenbasis."""
    if "QL" in state:
        x = state["QL"].T @ x
    if "QR" in state:
        x = x @ state["QR"]
    return x


def turn_back(x: Tensor, state: dict[str, Any]) -> Tensor:
    """Rotate out of the eigenbasis."""
    if "QL" in state:
        x = state["QL"] @ x
    if "QR" in state:
        x = x @ state["QR"].T
    return x
