"""Muon for the matrices inside the blocks, AdamW for the rest (embeddings, head, norms, biases): Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/; Liu et al. 2025, arXiv:2502.16982. Muon is torch's, distributed over processes
with the same or sharded matrices: see `owners.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim import Muon as TorchMuon
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from tauon.config import register
from tauon.distributed import Traffic, is_dtensor, local_part
from tauon.errors import Problem, RecipeError
from tauon.optim.base import Decay, OptimConfig, decay_groups
from tauon.optim.multi import MultiOptimizer, inner_matrices
from tauon.optim.owners import orthogonalized
from tauon.optim.skip import put_unless

__all__ = ["Muon", "MuonConfig"]


@register("muon")
class MuonConfig(OptimConfig):
    """Muon for matrices with AdamW for the rest."""

    default_lr = 0.02

    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay of Muon's momentum (Nesterov)."""
    weight_decay: float = Field(0.0, ge=0)
    adamw_lr: float = Field(3e-3, gt=0)
    """Peak learning rate of AdamW for the other parameters."""
    embed_lr: float | None = Field(None, gt=0)
    """Peak learning rate of AdamW for the token embedding, if not tied to the head. Default: `adamw_lr`. An embedding with unit-variance
    initialization needs a much larger one (0.2 to 0.6) than a head."""
    betas: tuple[Decay, Decay] = (0.8, 0.95)
    """AdamW's moment decays."""
    eps: float = Field(1e-10, gt=0)
    """AdamW's epsilon."""
    clip_norm: float | None = Field(1.0, gt=0)

    def refuse_model(self, model: nn.Module) -> None:
        super().refuse_model(model)
        named = dict(model.named_parameters(remove_duplicate=False))
        if self.embed_lr is not None and ("embed.weight" not in named or named["embed.weight"] is named.get("head.weight")):
            message = "is set, but this model has no separate embedding (none, or tied to the head). Remove it, or untie the head."
            raise RecipeError([Problem("optim.embed_lr", message)])

    def build(self, model: nn.Module) -> Optimizer:
        matrices, rest = inner_matrices(model)
        muon = [p for _, p in matrices]
        parts: list[Optimizer] = []
        if muon:
            group = {"params": muon, "lr": self.peak, "peak_lr": self.peak}
            parts.append(Muon([group], lr=self.peak, momentum=self.momentum, nesterov=True, weight_decay=self.weight_decay))
        if rest:
            embed = [(n, p) for n, p in rest if n == "embed.weight"] if self.embed_lr is not None else []
            groups = decay_groups(embed, self.embed_lr or self.adamw_lr, self.weight_decay)
            groups += decay_groups([(n, p) for n, p in rest if not embed or n != "embed.weight"], self.adamw_lr, self.weight_decay)
            parts.append(AdamW(groups, betas=self.betas, eps=self.eps, fused=True))
        return MultiOptimizer(parts)


class Muon(TorchMuon):
    """Torch's Muon, also for DTensors, or parameters replicated over `group`. Momentum is sharded like the parameter; each matrix is
    orthogonalized by one process. The result equals that of one process, bit for bit if the gradients do.
    """

    group: dist.ProcessGroup | None = None
    """Replicas of plain parameters (DDP), with equal gradients. None: every process computes all matrices."""
    traffic: Traffic | None = None
    """Counter of sent bytes."""
    skips_on_device = True
    found_inf: Tensor | None = None
    """1 on the device if the step must do nothing (`optim.skip`)."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        spread = self.group is not None and dist.get_world_size(self.group) > 1
        if self.found_inf is None and not spread and not any(is_dtensor(p) for g in self.param_groups for p in g["params"]):
            alone: float | None = super().step(closure)
            return alone
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_spread(group)
        return loss

    def _step_spread(self, group: dict[str, Any]) -> None:
        """As torch's step, with the orthogonalization done by owners."""
        params: list[Tensor] = []
        grads: list[Tensor] = []
        buffers: list[Tensor] = []
        self._init_group(group, params, grads, buffers)
        momentum, lr = group["momentum"], float(group["lr"])
        updates = []
        for grad, buffer in zip(grads, buffers, strict=True):
            moved = buffer.lerp(grad, 1 - momentum)
            updates.append(grad.lerp(moved, momentum) if group["nesterov"] else moved)
            put_unless(self.found_inf, local_part(buffer), local_part(moved))

        def newton_schulz(matrix: Tensor) -> Tensor:
            return _zeropower_via_newtonschulz(matrix, group["ns_coefficients"], group["ns_steps"], group["eps"])

        for p, update in zip(params, orthogonalized(updates, newton_schulz, self.group, self.traffic), strict=True):
            mine = local_part(p)
            moved = mine * (1 - lr * group["weight_decay"])
            put_unless(self.found_inf, mine, moved.add_(update, alpha=-_adjust_lr(lr, group["adjust_lr_fn"], p.shape)))
