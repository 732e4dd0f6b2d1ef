"""Layers with bfloat16 weights: the product is computed in bfloat16, inputs and outputs keep the dtype of the model around them."""

from __future__ import annotations

from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Bf16Conv2d", "Bf16Embedding", "Bf16Linear"]

M = TypeVar("M", bound=nn.Module)


class Bf16Linear(nn.Linear):
    """x -> x W^T + b in bfloat16."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__(inputs, outputs, bias=bias, dtype=torch.bfloat16)

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        return _filled(layer, linear)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.bfloat16(), self.weight, self.bias).to(x.dtype)

    def spec(self) -> dict[str, Any]:
        return {"inputs": self.in_features, "outputs": self.out_features, "bias": self.bias is not None}


class Bf16Conv2d(nn.Conv2d):
    """A convolution in bfloat16."""

    def __init__(self, channels: tuple[int, int], kernel: tuple[int, int], *, bias: bool, **how: Any) -> None:
        how = {k: tuple(v) if isinstance(v, list) else v for k, v in how.items()}
        super().__init__(*channels, kernel, bias=bias, dtype=torch.bfloat16, **how)

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Self:
        how = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation, "groups": conv.groups}
        kernel: Any = conv.kernel_size
        return _filled(cls((conv.in_channels, conv.out_channels), kernel, bias=conv.bias is not None, **how), conv)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.bfloat16()).to(x.dtype)

    def spec(self) -> dict[str, Any]:
        return {
            "channels": [self.in_channels, self.out_channels], "kernel": list(self.kernel_size), "bias": self.bias is not None,
            "stride": list(self.stride), "padding": self.padding if isinstance(self.padding, str) else list(self.padding),
            "dilation": list(self.dilation), "groups": self.groups,
        }  # fmt: skip


class Bf16Embedding(nn.Embedding):
    """A table of bfloat16 rows, read as float32."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width, dtype=torch.bfloat16)

    @classmethod
    def of(cls, embedding: nn.Embedding) -> Self:
        return _filled(cls(*embedding.weight.shape), embedding)

    def forward(self, index: Tensor) -> Tensor:
        return super().forward(index).float()

    def spec(self) -> dict[str, Any]:
        return {"rows": self.num_embeddings, "width": self.embedding_dim}


def _filled(layer: M, source: Any) -> M:
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.copy_(getattr(source, name))
            p.requires_grad_(False)
    return layer.to(source.weight.device)
