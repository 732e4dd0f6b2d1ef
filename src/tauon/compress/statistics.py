"""What layers see: ranges, norms and second moments of their inputs, observed while the calibration batches run through the model.

Shapes: M rows that a layer saw, K its inputs (of a convolution: a patch over its channels), N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.compress.base import Subject

__all__ = ["input_moments", "input_norms", "input_ranges", "observe", "smoothing_scales"]

_SAMPLE = 1_000_000
"""Most numbers of a batch of which a percentile is taken."""


def observe(subject: Subject, names: Sequence[str], see: Callable[[str, nn.Module, Tensor], None]) -> None:
    """Call `see(name, layer, input)` for each forward pass of each named layer over the calibration batches."""
    hooks = []
    for name in names:
        layer = subject.model.get_submodule(name)

        def hook(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            see(name, module, args[0].detach())

        hooks.append(layer.register_forward_pre_hook(hook))
    try:
        subject.run()
    finally:
        for handle in hooks:
            handle.remove()


def input_ranges(
    subject: Subject, names: Sequence[str], percentile: float = 100.0, *, divisors: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """Return the largest absolute input of each layer that ran (or the percentile in its worst batch). `divisors`: K by name, before."""
    found: dict[str, float] = {}

    def see(name: str, layer: nn.Module, x: Tensor) -> None:
        size = (x / divisors[name] if divisors and name in divisors else x).abs().flatten().float()
        if percentile < 100:
            size = torch.quantile(size[:: max(1, len(size) // _SAMPLE)], percentile / 100)
        found[name] = max(found.get(name, 1e-30), float(size.max()))

    observe(subject, names, see)
    return found


def rows_of(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what the layer multiplies with its weight, MK: rows of a linear layer, patches of a convolution (without groups)."""
    if isinstance(layer, nn.Conv2d):
        padding: Any = layer.padding if not isinstance(layer.padding, str) else (0, 0)
        dilation: Any = layer.dilation
        stride: Any = layer.stride
        kernel: Any = layer.kernel_size
        return F.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride).transpose(1, 2).flatten(0, 1).float()
    return x.reshape(-1, x.shape[-1]).float()


def input_moments(subject: Subject, names: Sequence[str]) -> dict[str, Tensor]:
    """Return X^T X / M of each layer that ran, KK (float64)."""
    total: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def see(name: str, layer: nn.Module, x: Tensor) -> None:
        x_MK = rows_of(layer, x)
        total[name] = total.get(name, 0) + (x_MK.t() @ x_MK).double()
        rows[name] = rows.get(name, 0) + len(x_MK)

    observe(subject, names, see)
    return {name: t / rows[name] for name, t in total.items()}


def input_norms(subject: Subject, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the L2 norm of each input over all rows, K (float32)."""
    total: dict[str, Tensor] = {}

    def see(name: str, layer: nn.Module, x: Tensor) -> None:
        total[name] = total.get(name, 0) + rows_of(layer, x).double().square().sum(0)

    observe(subject, names, see)
    return {name: t.sqrt().float() for name, t in total.items()}


def smoothing_scales(subject: Subject, names: Sequence[str], alpha: float) -> dict[str, Tensor]:
    """Return s of SmoothQuant for each linear layer that ran, K: max|x|^alpha / max|w|^(1 - alpha) (Xiao et al. 2023, arXiv:2211.10438)."""
    top: dict[str, Tensor] = {}

    def see(name: str, layer: nn.Module, x: Tensor) -> None:
        size_K = x.reshape(-1, x.shape[-1]).abs().amax(0).float()
        top[name] = torch.maximum(top[name], size_K) if name in top else size_K

    observe(subject, names, see)
    scales = {}
    for name, x_K in top.items():
        weight: Any = subject.model.get_submodule(name).weight
        w_K = weight.detach().abs().amax(0).float()
        s_K = x_K.clamp_min(1e-5) ** alpha / w_K.clamp_min(1e-5) ** (1 - alpha)
        scales[name] = torch.where((x_K > 0) & (w_K > 0), s_K, 1.0)
    return scales
