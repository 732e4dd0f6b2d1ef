"""Augmentation of windows of a series: jitter, scaling, window slicing. Deterministic in (seed, position in the list, epoch, example).

Context and future are changed together, so that the pair stays realistic; only `jitter`, which is measurement noise, leaves the targets
unchanged. Calendar columns are never changed. Sources: Um et al. 2017
(arXiv:1706.00527; jitter, scaling); Le Guennec, Malinowski & Tavenard 2016 (window slicing).

Shape legend: B batch, W steps of context and horizon together, C columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tauon.config import Fraction, register
from tauon.data.augment import AugmentConfig, Draws

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["JitterConfig", "ScalingConfig", "SeriesAugmentConfig", "WindowSliceConfig"]


class SeriesAugmentConfig(AugmentConfig):
    """Base class of random changes of a window."""

    series_only: ClassVar[bool] = True

    def warp(self, window_BWC: Tensor, context: int, draws: Draws) -> Tensor:
        """Change normalised values BWC; the first `context` steps are the input, the others the target."""
        raise NotImplementedError


@register("jitter")
class JitterConfig(SeriesAugmentConfig):
    """Add independent normal noise to the context."""

    std: float = Field(0.03, gt=0)
    """Standard deviation, in units of the normalised values."""

    def warp(self, window_BWC: Tensor, context: int, draws: Draws) -> Tensor:
        import torch

        B, _, C = window_BWC.shape
        noise = torch.from_numpy(draws.normal(context * C)).view(B, context, C) * self.std
        return torch.cat([window_BWC[:, :context] + noise, window_BWC[:, context:]], dim=1)


@register("scaling")
class ScalingConfig(SeriesAugmentConfig):
    """Multiply each column of a window by a factor of its own."""

    std: float = Field(0.1, gt=0)
    """Standard deviation of the factor around 1."""

    def warp(self, window_BWC: Tensor, context: int, draws: Draws) -> Tensor:
        import torch

        B, _, C = window_BWC.shape
        return window_BWC * (1 + torch.from_numpy(draws.normal(C)).view(B, 1, C) * self.std)


@register("window-slice")
class WindowSliceConfig(SeriesAugmentConfig):
    """Cut a slice of the window and stretch it to the whole length, by linear interpolation."""

    keep: Fraction = Field(0.9, gt=0, lt=1)
    """Length of the slice, as a share of the window's."""
    share: Fraction = Field(0.5, gt=0, le=1)
    """Share of the windows that are changed."""

    def warp(self, window_BWC: Tensor, context: int, draws: Draws) -> Tensor:
        import torch

        B, W, C = window_BWC.shape
        length = max(2, round(self.keep * W))
        u = torch.from_numpy(draws.uniform(2))
        start_B = (u[:, :1] * (W - length + 1)).floor()
        at_BW = start_B + torch.arange(W) * ((length - 1) / max(W - 1, 1))
        low = at_BW.floor().clamp(max=W - 2).long() if W > 1 else torch.zeros(B, W, dtype=torch.long)
        part = (at_BW - low)[:, :, None]
        low_BWC = low[:, :, None].expand(B, W, C)
        stretched = torch.lerp(window_BWC.gather(1, low_BWC), window_BWC.gather(1, (low_BWC + 1).clamp(max=W - 1)), part)
        return torch.where((u[:, 1] < self.share)[:, None, None], stretched, window_BWC)
