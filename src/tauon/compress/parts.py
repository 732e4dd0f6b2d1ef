"""Parts of a model that can be removed: heads, hidden units, channels, blocks. Which weights produce a unit, and which consume it.

A family is recognised by its modules (attention with `q`, `k`, `v`, `out`; an MLP with `up` and `down`; residual blocks of convolutions), so that models
of other packages with such parts work, too.

Shapes: U units of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tauon.compress.rebuild import set_module
from tauon.models import CNN, BatchNorm, Perceptron
from tauon.models.families.transformer import Attention

__all__ = ["Group", "PartKind", "groups_of", "remove_units"]

PartKind = Literal["heads", "hidden", "channels"]


@dataclass(frozen=True)
class Group:
    """Units that only these layers share."""

    name: str
    kind: PartKind
    units: int
    rows: tuple[tuple[str, int], ...]
    """Layers that produce the units, and how many of their outputs belong to one."""
    columns: tuple[tuple[str, int], ...]
    """Layers that consume them, and how many of their inputs belong to one."""
    norms: tuple[str, ...] = ()
    """Norms over the units."""
    multiple: int = 1
    """What remains has to be a multiple of this: groups of a group norm, each of which loses equally many."""
    fields: tuple[str, ...] = field(default=())
    """Fields of the config that count the units."""


def groups_of(model: nn.Module) -> Iterator[Group]:
    """Yield every group of units that can be removed without changing what the rest of the model sees."""
    if isinstance(model, Perceptron):
        yield from _chain([f"layers.{i}" for i in range(len(model.layers))], model)
    elif isinstance(model, CNN):
        yield from _cnn(model)
    for name, module in model.named_modules():
        at = f"{name}." if name else ""
        if isinstance(module, Attention):
            yield _heads(at, module)
        elif _is_mlp(module):
            up: Any = module.up
            gated = isinstance(getattr(module, "gate", None), nn.Linear)
            producers = [f"{at}up", *([f"{at}gate"] if gated else [])]
            yield Group(
                at.rstrip("."), "hidden", up.out_features, tuple((p, 1) for p in producers), ((f"{at}down", 1),), fields=("mlp_width",)
            )
        elif type(module).__name__ == "_Block" and hasattr(module, "conv1") and hasattr(module, "bn2"):
            yield from _residual(at, module)


def _is_mlp(module: Any) -> bool:
    up, down, gate = (getattr(module, n, None) for n in ("up", "down", "gate"))
    if type(up) is not nn.Linear or type(down) is not nn.Linear or up.out_features != down.in_features:
        return False
    return gate is None or (type(gate) is nn.Linear and gate.out_features == up.out_features)


def _heads(at: str, attention: Attention) -> Group:
    size, units = attention.head_size, attention.k.out_features // attention.head_size
    many = attention.q.out_features // size // units  # query heads that one key-value head serves
    rows = ((f"{at}q", size * many), (f"{at}k", size), (f"{at}v", size))
    return Group(at.rstrip("."), "heads", units, rows, ((f"{at}out", size * many),), fields=("heads", "kv_heads"))


def _chain(names: list[str], model: nn.Module) -> Iterator[Group]:
    for first, second in pairwise(names):
        layer: Any = model.get_submodule(first)
        if type(layer) is nn.Linear and type(model.get_submodule(second)) is nn.Linear:
            yield Group(first, "hidden", layer.out_features, ((first, 1),), ((second, 1),), fields=("hidden",))


def _cnn(model: CNN) -> Iterator[Group]:
    last = len(model.convs) - 1
    for i, conv in enumerate(model.layers):
        norm: Any = model.norms[i]
        consumer = "head" if i == last else f"convs.{i + 1}"
        if type(conv) is nn.Conv2d:
            yield Group(
                f"convs.{i}", "channels", conv.out_channels, ((f"convs.{i}", 1),), ((consumer, 1),), (f"norms.{i}",),
                getattr(norm, "num_groups", 1), fields=("channels",),
            )  # fmt: skip


def _residual(at: str, block: Any) -> Iterator[Group]:
    """The channels inside a residual block; those between blocks belong to all of a stage."""
    chain = [("conv1", "bn1", "conv2")] + ([("conv2", "bn2", "conv3")] if block.conv3 is not None else [])
    for first, norm, second in chain:
        groups = getattr(getattr(block, norm), "num_groups", 1)
        conv = getattr(block, first)
        if type(conv) is nn.Conv2d:
            yield Group(at + first, "channels", conv.out_channels, ((at + first, 1),), ((at + second, 1),), (at + norm,), groups)


@torch.no_grad()
def remove_units(model: nn.Module, group: Group, keep_U: Tensor) -> None:
    """Keep only some units of a group, in place. `keep_U`: their numbers, ascending."""
    for name, size in group.rows:
        set_module(model, name, _cut(model.get_submodule(name), _spread(keep_U, size), 0))
    for name, size in group.columns:
        set_module(model, name, _cut(model.get_submodule(name), _spread(keep_U, size), 1))
    for name in group.norms:
        set_module(model, name, _cut_norm(model.get_submodule(name), keep_U))


def _spread(keep_U: Tensor, size: int) -> Tensor:
    return (keep_U[:, None] * size + torch.arange(size, device=keep_U.device)).flatten()


def _cut(layer: Any, index: Tensor, dim: int) -> nn.Module:
    """A layer with some outputs (0) or inputs (1) of another."""
    weight = layer.weight.detach().index_select(dim, index)
    bias = None if layer.bias is None else (layer.bias.detach()[index] if dim == 0 else layer.bias.detach())
    smaller: Any
    if isinstance(layer, nn.Conv2d):
        how: Any = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        kernel: Any = layer.kernel_size
        smaller = type(layer)(weight.shape[1], weight.shape[0], kernel, bias=bias is not None, **how)
    else:
        smaller = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    smaller = smaller.to(weight)
    smaller.weight.copy_(weight)
    if bias is not None:
        smaller.bias.copy_(bias)
    smaller.train(layer.training)
    return smaller  # type: ignore[no-any-return]


def _cut_norm(norm: Any, keep_U: Tensor) -> nn.Module:
    smaller: Any
    if isinstance(norm, BatchNorm):
        smaller = BatchNorm(len(keep_U), momentum=norm.momentum, eps=norm.eps)
        smaller.running_mean.copy_(norm.running_mean[keep_U])
        smaller.running_var.copy_(norm.running_var[keep_U])
    else:
        smaller = nn.GroupNorm(norm.num_groups, len(keep_U), eps=norm.eps)
    smaller = smaller.to(norm.weight)
    smaller.weight.copy_(norm.weight[keep_U])
    smaller.bias.copy_(norm.bias[keep_U])
    smaller.train(norm.training)
    return smaller  # type: ignore[no-any-return]
