"""AdamW with 8-bit moments: torchao's (Dettmers et al. 2022, arXiv:2110.02861). Extra: `pip install 'tauon[torchao]'`."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from tauon.config import register
from tauon.errors import MissingExtra
from tauon.optim.base import Decay, OptimConfig, decay_groups, refuse_pieces

__all__ = ["AdamW8bitConfig"]


@register("adamw8bit")
class AdamW8bitConfig(OptimConfig):
    """AdamW with 8-bit moments, quantized in blocks of 256; tensors below 4,096 weights have fp32 moments."""

    default_lr = 3e-4

    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the first and second moment estimates."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    clip_norm: float | None = Field(1.0, gt=0)

    def build(self, model: nn.Module) -> Optimizer:
        refuse_pieces(model, self, "has moments in blocks of 256, which sharding would split")
        groups = decay_groups(model.named_parameters(), self.peak, self.weight_decay)
        return _optimizer_class()(groups, lr=self.peak, betas=self.betas, eps=self.eps)  # type: ignore[no-any-return]


def _optimizer_class() -> Any:
    try:
        from tauon.optim.adamw8bit_torchao import AdamW8bit
    except ImportError:
        raise MissingExtra("AdamW with 8-bit moments", "torchao") from None
    return AdamW8bit
