"""`low_rank`: a linear layer becomes the product of two thin ones, by the singular value decomposition.

Plain: the best rank-R approximation of W (Eckart & Young 1936). Activation-aware: of the layer's outputs on calibration data, by decomposing W C with
C C^T = H, the second moments of its inputs (SVD-LLM, Wang et al. 2024, arXiv:2403.07378).

Shapes: K inputs, N outputs, R rank.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from tauon.compress.base import LayerStep, Phase, Subject
from tauon.compress.low_rank_layer import LowRankLinear
from tauon.compress.rebuild import set_module
from tauon.compress.statistics import input_moments
from tauon.config import Fraction, register
from tauon.errors import DataError

__all__ = ["LowRank", "factorise"]


def factorise(weight_NK: Tensor, rank: int, moments_KK: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return (A: R x K, B: N x R), B A being the best approximation of W: in the Frobenius norm, or of W x with moments H of x."""
    W = weight_NK.double()
    if moments_KK is None:
        U, S, V = torch.linalg.svd(W, full_matrices=False)
        root = S[:rank].sqrt()
        return (root[:, None] * V[:rank]).float(), (U[:, :rank] * root).float()
    L, Q = torch.linalg.eigh(moments_KK.double())
    root_K = L.clamp_min(1e-8 * float(L[-1]) + 1e-30).sqrt()
    U, S, V = torch.linalg.svd(W @ (Q * root_K), full_matrices=False)
    root = S[:rank].sqrt()
    return (((root[:, None] * V[:rank]) / root_K) @ Q.t()).float(), (U[:, :rank] * root).float()


@register("low_rank")
class LowRank(LayerStep):
    """Fewer weights in linear layers: a rank so that `keep` of them remain."""

    phase: ClassVar[Phase] = "low-rank"

    keep: Fraction = Field(0.5, gt=0, le=1)
    """Share of each layer's weights that remains: rank = keep N K / (N + K). 1: the layer stays as it is."""
    activation_aware: bool = True
    """Minimise the error of outputs on calibration data, where there is some; else that of weights."""

    @classmethod
    def zero(cls) -> Self:
        return cls(keep=1.0)

    @torch.no_grad()
    def apply(self, subject: Subject) -> dict[str, Any]:
        if self.keep == 1:
            return {"layers": {}}
        layers = dict(self.chosen(subject.model, (nn.Linear,)))
        tied = _shared_weights(subject.model)
        layers = {name: m for name, m in layers.items() if id(m.weight) not in tied}
        ranks = {name: int(self.keep * m.weight.numel() / sum(m.weight.shape)) for name, m in layers.items()}
        layers = {name: m for name, m in layers.items() if ranks[name] >= 1 and min(m.weight.shape) > 2}
        if not layers:
            raise DataError(f"low_rank: no linear layer is large enough for a rank of at least 1 at keep={self.keep:g}. Raise it.")
        aware = self.activation_aware and subject.calibration is not None
        moments = input_moments(subject, list(layers)) if aware else {}
        done = {}
        for name, linear in layers.items():
            set_module(subject.model, name, _thin(linear, ranks[name], moments.get(name)))
            done[name] = ranks[name]
        return {"layers": done, "activation_aware": aware}


def _thin(linear: nn.Linear, rank: int, moments: Tensor | None) -> LowRankLinear:
    N, K = linear.weight.shape
    layer = LowRankLinear(K, N, rank=rank, bias=linear.bias is not None).to(linear.weight)
    A, B = factorise(linear.weight.detach(), rank, moments)
    layer.first.weight.copy_(A)
    layer.second.weight.copy_(B)
    if linear.bias is not None:
        layer.second.bias.copy_(linear.bias)
    return layer.eval()


def _shared_weights(model: nn.Module) -> set[int]:
    """Ids of parameters that have two names: factors of one of them would not make the model smaller."""
    seen: dict[int, int] = {}
    for _, p in model.named_parameters(remove_duplicate=False):
        seen[id(p)] = seen.get(id(p), 0) + 1
    return {i for i, n in seen.items() if n > 1}
