"""Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) and Grad-CAM++ (Chattopadhyay et al. 2018, arXiv:1710.11063): channels of a layer,
weighted by how much the output rises with them.

They show where a layer finds what argues for the output, at the layer's resolution. Nothing says that they sum to the output.
Shapes: M rows, C channels, P positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tauon.explain.base import Attribution, Cases, Work, attribution_method, untouched
from tauon.explain.methods.layers import Side, arrangement_of, called_modules, default_layer, enlarged, layer_gradients, layer_named

__all__ = ["grad_cam", "grad_cam_plus_plus"]

KINDS = ("image", "audio")


@attribution_method("grad_cam", "Grad-CAM", needs="layer", source="arXiv:1610.02391", kinds=KINDS)
def grad_cam(cases: Cases, work: Work, *, layer: str | None = None, channels: Side | None = None) -> Attribution:
    """Return relu(sum over channels of activation x mean gradient), enlarged to the features; `coarse` before.

    Args:
        cases: the examples.
        work: how to compute.
        layer: dotted name of a module that the model calls ("layer3.2"); None: the one that the model's family names, else the last whose
            activations lie over the grid.
        channels: where the layer's channels are, if that cannot be derived.

    Raises:
        DataError: the layer does not exist, is never called, is called several times, or does not lie over the grid.
    """
    return _cam("grad_cam", cases, work, layer, channels, _mean_gradient)


@attribution_method("grad_cam_plus_plus", "Grad-CAM++", needs="layer", source="arXiv:1710.11063", kinds=KINDS)
def grad_cam_plus_plus(cases: Cases, work: Work, *, layer: str | None = None, channels: Side | None = None) -> Attribution:
    """Return Grad-CAM with positive gradients, weighted position by position so that several small objects count alike.

    Arguments and errors as of `grad_cam`.
    """
    return _cam("grad_cam_plus_plus", cases, work, layer, channels, _weighted_positive_gradient)


def _mean_gradient(activations_MCP: Tensor, gradients_MCP: Tensor) -> Tensor:
    return gradients_MCP.mean(2)


def _weighted_positive_gradient(activations_MCP: Tensor, gradients_MCP: Tensor) -> Tensor:
    """Equation 19 of the paper with the score behind an exponential: derivatives of higher order are powers of the gradient."""
    second, third = gradients_MCP**2, gradients_MCP**3
    below = 2 * second + activations_MCP.sum(2, keepdim=True) * third
    alpha = torch.where(gradients_MCP != 0, second / torch.where(below != 0, below, 1), 0)
    return (alpha * gradients_MCP.relu()).sum(2)


def _cam(
    method: str, cases: Cases, work: Work, layer: str | None, channels: Side | None, weights: Callable[[Tensor, Tensor], Tensor]
) -> Attribution:
    with untouched(cases.model):
        calls = called_modules(cases)
        name = layer if layer is not None else default_layer(cases, calls)
        module = layer_named(cases, name, calls).module
        lies = arrangement_of(cases, calls, name, channels)
        coarse = torch.zeros(len(cases), *lies.grid, device=cases.inputs.device)
        scores = torch.zeros(len(cases), device=cases.inputs.device)
        for part in work.chunks(len(cases)):
            rows = torch.arange(part.start, part.stop, device=coarse.device)
            scores[part], activations, gradients = layer_gradients(cases, cases.inputs[part], rows, module)
            a, g = (lies.channels_first(t).float().flatten(2) for t in (activations, gradients))
            coarse[part] = torch.einsum("mc,mcp->mp", weights(a, g), a).relu().view(-1, *lies.grid)
    values = enlarged(coarse, cases)
    if cases.valid is not None:
        values = values * cases.valid
    return Attribution(method, values, scores, signed=False, coarse=coarse, note=f"layer {name}, {' x '.join(map(str, lies.grid))}")
