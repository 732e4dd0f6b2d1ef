"""What stands for "absent" on a path from a baseline to an input."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tauon.errors import DataError
from tauon.explain.base import Cases

__all__ = ["Baseline", "baselines_of", "blurred"]

Baseline = Literal["own", "zero", "blurred"]


def baselines_of(cases: Cases, baseline: Baseline) -> Cases:
    """Return the cases with another baseline: their own, zeros, or each image without its details.

    Raises:
        DataError: unknown, or `blurred` for what is not an image or a spectrogram.
    """
    if baseline == "own":
        return cases
    if baseline == "zero":
        return replace(cases, baselines=torch.zeros_like(cases.inputs[:1]))
    if baseline != "blurred":
        raise DataError(f"{baseline!r} is not a baseline. Choose from: own, zero, blurred.")
    if cases.kind not in ("image", "audio"):
        raise DataError(f"a blurred baseline needs images or spectrograms, and this is {cases.kind}. Use own or zero.")
    planes = cases.inputs if cases.inputs.ndim == 4 else cases.inputs.unsqueeze(1)
    return replace(cases, baselines=blurred(planes, max(planes.shape[2:]) / 8).view_as(cases.inputs))


def blurred(x_NCHW: Tensor, deviation: float) -> Tensor:
    """Return images under a Gaussian of this standard deviation in pixels, edges continued.

    >>> torch.allclose(blurred(torch.ones(1, 1, 8, 8), 2.0), torch.ones(1, 1, 8, 8))
    True
    """
    reach = max(1, min(round(3 * deviation), 4 * max(x_NCHW.shape[2:])))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=x_NCHW.dtype, device=x_NCHW.device) / deviation) ** 2)
    weights = weights / weights.sum()
    C = x_NCHW.shape[1]
    for size in ((1, -1), (-1, 1)):
        kernel = weights.view(1, 1, *size).expand(C, 1, *(-1, -1))
        pad = (reach, reach, 0, 0) if size == (1, -1) else (0, 0, reach, reach)
        x_NCHW = F.conv2d(F.pad(x_NCHW, pad, mode="replicate"), kernel, groups=C)
    return x_NCHW
