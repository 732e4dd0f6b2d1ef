"""Linear layers whose rows do not depend on how many rows there are.

A matrix product of 8 rows and one of 64 may add in another order, and differ in the last bit: a sampled text would then depend on what else
is in the batch. oneDNN's product with a prepacked weight adds in the same order for any number of rows from 2, and is 2 to 3 times as fast at
8 rows as `F.linear` on MKL (which needs a multiple of 4). Neither promises it: `rows_are_exact` tries it out for each shape, and `FixedRows`
is there where it fails: products of one fixed number of rows.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ROWS", "FixedRows", "PackedLinear", "rows_are_exact", "shared_copy", "with_exact_rows"]

ROWS = 8
"""Batches are padded to a multiple of this number of rows."""


class PackedLinear(nn.Module):
    """`nn.Linear` in float32 on a CPU, its weight repacked once for oneDNN. Shares nothing with the layer but the bias."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), ROWS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return out


class FixedRows(nn.Module):
    """Any layer, `ROWS` rows at a time."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = torch.cat([self.linear(tile) for tile in flat.split(ROWS)])
        return out.view(*x.shape[:-1], out.shape[-1])


@torch.no_grad()
def rows_are_exact(linear: nn.Module, width: int, like: Tensor) -> bool:
    """Return whether a row's result is the same to the last bit among 8, 24, 64 and 128 rows, at another place, and beside other rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16 * ROWS, width, generator=generator).to(like)
    order = torch.randperm(len(x), generator=generator).to(x.device)
    whole = linear(x)
    if not torch.equal(linear(x[order]), whole[order]):
        return False
    return all(torch.equal(linear(x[at : at + n].contiguous()), whole[at : at + n]) for at, n in ((0, 8), (8, 8), (64, 24), (32, 64)))


def shared_copy(model: Any) -> Any:
    """Return a copy of the modules of a model, in evaluation mode, with the same parameters and buffers; the model is left as it is."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared).eval()


def with_exact_rows(model: Any, *, pack: bool = True) -> tuple[Any, bool]:
    """Return a copy of a model whose linear layers compute each row by itself, and whether they all do. Weights are shared, and those that
    are packed exist twice. What is not `nn.Linear` itself (an int8 layer, an adapter) is kept, and tried out as it is.
    """
    twin = shared_copy(model)
    tried: dict[tuple[type, int, int], bool] = {}
    exact = True
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            width, rows = getattr(child, "in_features", None), getattr(child, "out_features", None)
            if width is None or rows is None or isinstance(parent, FixedRows):
                continue
            weight = getattr(child, "weight", None)
            like = weight if isinstance(weight, Tensor) and weight.is_floating_point() else next(model.parameters())
            if pack and type(child) is nn.Linear and can_pack(child):
                child = PackedLinear(child)
            key = (type(child), width, rows)
            if key not in tried:
                tried[key] = rows_are_exact(child, width, like)
            if not tried[key]:
                exact = exact and rows_are_exact(FixedRows(child), width, like)
                child = FixedRows(child)
            setattr(parent, name, child)
    return twin, exact


def can_pack(linear: nn.Linear) -> bool:
    """Return whether `PackedLinear` can replace a layer."""
    weight = linear.weight
    return (
        torch.backends.mkldnn.is_available()
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and type(weight.data) is Tensor
    )
