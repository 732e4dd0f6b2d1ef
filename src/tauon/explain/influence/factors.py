"""Inputs and output gradients of linear layers and convolutions: the two factors of each weight's gradient, sum_t g_t a_t^T.

Convolutions are unfolded: their positions are those of the output. A bias is a last column of the weight whose input is 1. A layer with another
`forward`, with groups, or that the model never calls (a head that only the loss reads) is left out, and named.

Shapes: B examples, T positions, I inputs (and 1 for the bias), O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from tauon.errors import RecipeError
from tauon.explain.influence.gradients import Value, on_device_of, untouched
from tauon.types import Batch

__all__ = ["LayerFactors", "Pair"]

Pair = tuple[Tensor, Tensor]
"""(a_BTI, g_BTO), float32."""
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class LayerFactors:
    """The factors of every linear layer and convolution of a model whose name matches.

    >>> from tauon.explain.influence.gradients import loss_value
    >>> from tauon.testing import tiny_job
    >>> job = tiny_job(steps=1)
    >>> a, g = LayerFactors(job.model).of(loss_value(job.task), job.loader.batch_at(0))["layers.0"][0]
    >>> tuple(a.shape), tuple(g.shape)
    ((8, 1, 4), (8, 1, 2))
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] = ("*",)) -> None:
        """`layers`: patterns of layer names. Raises `RecipeError` if no layer can be taken."""
        self.model = model
        self.layers = {name: m for name, m in model.named_modules() if _is_known(m) and any(fnmatchcase(name, q) for q in layers)}
        if not self.layers:
            raise RecipeError(
                f"no linear layer or convolution matches {', '.join(layers)}, and EK-FAC has factors for these only. Use tracin."
            )

    def of(self, value: Value, batch: Batch) -> dict[str, list[Pair]]:
        """Return the factors of each layer, one pair for each call; layers that were not called are missing. The model is left as it was."""
        batch = on_device_of(self.model, batch)
        calls: dict[str, list[tuple[Tensor, int, Any, GradientEdge]]] = {}
        weights = {id(m.weight) for m in self.layers.values()}
        with untouched(self.model), torch.enable_grad():
            for p in self.model.parameters():
                p.requires_grad_(id(p) in weights)
                p.grad = None
            handles = [m.register_forward_hook(_recorder(name, calls)) for name, m in self.layers.items()]
            try:
                total = value(self.model, batch).sum()
            finally:
                for handle in handles:
                    handle.remove()
            places = [(name, *call) for name, found in calls.items() for call in found]
            grads = torch.autograd.grad(total, [edge for *_, edge in places], allow_unused=True)
            pairs: dict[str, list[Pair]] = {}
            for (name, x, version, layer, _), g in zip(places, grads, strict=True):
                if x._version != version:
                    raise RecipeError(
                        f"the input of {name} is changed in place after the layer has read it. Leave the layer out, or copy its input."
                    )
                if g is not None:
                    pairs.setdefault(name, []).append(_pair(name, layer, x.detach(), g.detach(), len(batch)))
        return pairs


def _is_known(layer: nn.Module) -> bool:
    plain = any(isinstance(layer, kind) and type(layer).forward is kind.forward for kind in KINDS)
    return plain and getattr(layer, "groups", 1) == 1


def _recorder(name: str, calls: dict[str, list[Any]]) -> Any:
    def hook(layer: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
        if y.requires_grad:  # an edge, not the tensor: that may be changed in place
            calls.setdefault(name, []).append((args[0], args[0]._version, layer, get_gradient_edge(y)))

    return hook


def _pair(name: str, layer: Any, x: Tensor, g: Tensor, examples: int) -> Pair:
    x, g = x.float(), g.float()
    if not isinstance(layer, nn.Linear):
        x, g = _unfolded(layer, x, g)
    if x.shape[0] % examples:
        raise RecipeError(f"{name} was called with {x.shape[0]} rows for {examples} examples. Keep the batch in the first dimension.")
    a = x.reshape(examples, -1, x.shape[-1])
    if layer.bias is not None:
        a = F.pad(a, (0, 1), value=1.0)
    return a, g.reshape(examples, -1, g.shape[-1])


def _unfolded(layer: Any, x: Tensor, g: Tensor) -> Pair:
    """(N, L, C x kernel) and (N, L, O)."""
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if x.ndim == 3:
        x, kernel, stride, dilation = x[:, :, None], (1, *kernel), (1, *stride), (1, *dilation)
    columns = F.unfold(x, kernel, dilation, 0, stride)[..., : math.prod(g.shape[2:])]
    return columns.mT, g.flatten(2).mT
