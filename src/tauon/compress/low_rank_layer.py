"""A linear layer as the product of two thin ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["LowRankLinear"]


class LowRankLinear(nn.Module):
    """x -> (x A^T) B^T + b, A: R x K, B: N x R."""

    def __init__(self, inputs: int, outputs: int, *, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = inputs, outputs, rank
        self.first = nn.Linear(inputs, rank, bias=False)
        self.second = nn.Linear(rank, outputs, bias=bias)

    @property
    def weight(self) -> Tensor:
        """The product of both, N x K."""
        return self.second.weight @ self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out

    def spec(self) -> dict[str, Any]:
        return {"inputs": self.in_features, "outputs": self.out_features, "rank": self.rank, "bias": self.second.bias is not None}
