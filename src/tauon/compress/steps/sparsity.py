"""Steps that set weights to zero: `magnitude` and `wanda`, unstructured or 2:4. Zeros make a file smaller only when it is packed, and a model faster
only where kernels skip them; `structured` removes parts instead.

Shapes: N outputs, K inputs (of a convolution: over its channels and kernel).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from tauon.compress.base import LayerStep, Phase, Subject
from tauon.compress.statistics import input_norms
from tauon.config import Fraction, register
from tauon.errors import DataError

__all__ = ["Magnitude", "Wanda", "keep_largest"]


def keep_largest(score_NK: Tensor, share: float, pattern: Literal["unstructured", "2:4"], *, by_row: bool = True) -> Tensor:
    """Return a mask (true: kept) that drops the `share` of least scores in each row (or of all), or 2 of every 4 inputs.

    >>> keep_largest(torch.tensor([[3.0, 1.0, 2.0, 4.0]]), 0.5, "2:4")
    tensor([[ True, False, False,  True]])
    """
    N, K = score_NK.shape
    if pattern == "2:4":
        quads = torch.nn.functional.pad(score_NK, (0, -K % 4), value=-1.0).view(N, -1, 4)
        top = quads.topk(2, 2).indices
        return torch.zeros_like(quads, dtype=torch.bool).scatter_(2, top, True).view(N, -1)[:, :K]
    flat = score_NK if by_row else score_NK.reshape(1, -1)
    drop = round(share * flat.shape[1])
    mask = torch.ones_like(flat, dtype=torch.bool)
    mask.scatter_(1, flat.argsort(dim=1, stable=True)[:, :drop], False)
    return mask.view(N, K)


class _Sparsity(LayerStep):
    phase: ClassVar[Phase] = "sparsity"

    sparsity: Fraction = Field(0.5, ge=0, lt=1)
    """Share of the weights of each layer that become zero. Ignored by 2:4, which is one half."""
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    """`2:4`: two of every four inputs, the pattern that NVIDIA's sparse tensor cores skip."""

    @classmethod
    def zero(cls) -> Self:
        return cls(sparsity=0.0)

    def masks(self, subject: Subject, layers: dict[str, Any]) -> dict[str, Tensor]:
        """Return the mask of each layer's weight, NK."""
        raise NotImplementedError

    @torch.no_grad()
    def apply(self, subject: Subject) -> dict[str, Any]:
        layers = dict(self.chosen(subject.model, (nn.Linear, nn.Conv2d)))
        if not layers and self.only:
            raise DataError(f"{self.kind_}: the model has no linear layer or convolution that these patterns choose")
        if self.sparsity == 0 and self.pattern == "unstructured":
            return {"layers": [], "zeros": 0.0}
        masks = self.masks(subject, layers)
        zeros = total = 0
        for name, mask in masks.items():
            weight = layers[name].weight
            shaped = mask.view_as(weight)
            if not bool(shaped.any()):
                raise DataError(f"{self.kind_}: nothing of {name} would be left. Lower sparsity {self.sparsity:g} or skip this layer.")
            weight.mul_(shaped)
            subject.masks[f"{name}.weight"] = shaped
            zeros, total = zeros + int((~shaped).sum()), total + shaped.numel()
        return {"layers": list(masks), "zeros": zeros / max(1, total), "pattern": self.pattern}


@register("magnitude")
class Magnitude(_Sparsity):
    """Drop the smallest weights (Han et al. 2015, arXiv:1506.02626)."""

    def masks(self, subject: Subject, layers: dict[str, Any]) -> dict[str, Tensor]:
        scores = {name: layer.weight.detach().abs().flatten(1) for name, layer in layers.items()}
        return {name: keep_largest(s, self.sparsity, self.pattern, by_row=False) for name, s in scores.items()}


@register("wanda")
class Wanda(_Sparsity):
    """Drop the weights of least |w| ||x|| in each output, ||x||: the norm of the weight's input on calibration data (Sun et al. 2024, arXiv:2306.11695).

    A layer whose weight is read without a forward pass (a language model's head) stays as it is.
    """

    needs_calibration: ClassVar[bool] = True

    def masks(self, subject: Subject, layers: dict[str, Any]) -> dict[str, Tensor]:
        layers = {name: layer for name, layer in layers.items() if getattr(layer, "groups", 1) == 1}
        norms = input_norms(subject, list(layers))
        return {
            name: keep_largest(layers[name].weight.detach().abs().flatten(1) * x_K, self.sparsity, self.pattern)
            for name, x_K in norms.items()
        }
