"""Norms of convolutional networks: batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167) whose statistics span the processes that
share a batch, and the choice between it and group norm (Wu & He 2018, arXiv:1803.08494).

In training a batch norm uses the statistics of the microbatch, over all data-parallel processes (`tauon.distributed.statistics`); in
evaluation the running ones. With accumulation each microbatch has its own, as everywhere: what is computed then depends on
`train.microbatch`. Group norm lets no example see another: for privacy, and for batches of a few examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.distributed.statistics import batch_norm_over
from tauon.errors import TrainingError
from tauon.models.randomness import uniform_rows

__all__ = ["BatchNorm", "StandardisedConv2d", "drop_path", "freeze_running_stats", "norm_of", "tempered_sigmoid"]


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight + bias for each channel of BC... ; torch's formulas and names, without its step counter."""

    track_running_stats = True
    """As in torch: marks layers with running statistics."""

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))
        self.momentum, self.eps = momentum, eps
        self.statistics_group: Any = None
        self.moves = True
        """Whether a training pass updates the running statistics (see `freeze_running_stats`)."""

    def start(self) -> None:
        """Reset the running statistics: mean 0, variance 1."""
        self.running_mean.zero_()
        self.running_var.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        running = (self.running_mean, self.running_var)
        if not self.moves:  # update copies, because a recomputed pass must save as many tensors as the first one
            running = (self.running_mean.clone(), self.running_var.clone())
        if self.statistics_group is not None:
            return batch_norm_over(self.statistics_group, x, self.weight, self.bias, *running, self.momentum, self.eps)
        if x.numel() == x.shape[1]:
            raise TrainingError(
                f"batch norm cannot train on one value a channel: one example of {tuple(x.shape[2:])} places. "
                "Raise train.batch or train.microbatch, or set model.norm=group."
            )
        return F.batch_norm(x, *running, self.weight, self.bias, True, self.momentum, self.eps)


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weights are used with mean 0 and variance 1 / fan-in behind each output (Qiao et al. 2019, arXiv:1903.10520;
    Brock et al. 2021, arXiv:2101.08692): no example sees another.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, standardised(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups)


def standardised(weight: Tensor, eps: float = 1e-4) -> Tensor:
    """(w - mean) / sqrt(max(variance, eps) fan-in) over all but the first dimension."""
    fan_in = weight[0].numel()
    dims = tuple(range(1, weight.ndim))
    mean, variance = weight.mean(dims, keepdim=True), weight.var(dims, keepdim=True, correction=0)
    return (weight - mean) * torch.rsqrt(torch.clamp(variance * fan_in, min=eps))


def tempered_sigmoid(x: Tensor, s: float, T: float, o: float) -> Tensor:
    """S / (1 + exp(-T x)) - o: bounded activations (Papernot et al. 2021, arXiv:2007.14191); (2, 2, 1) is tanh."""
    return torch.tanh(x) if (s, T, o) == (2.0, 2.0, 1.0) else s * torch.sigmoid(T * x) - o


def norm_of(channels: int, groups: int | None) -> nn.Module:
    """Return batch norm, or group norm if `groups` is set."""
    return BatchNorm(channels) if groups is None else nn.GroupNorm(groups, channels)


def drop_path(x: Tensor, share: float, training: bool) -> Tensor:
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): a whole branch of `share` of the examples B... becomes 0, the rest grows
    by 1 / (1 - share), so that the mean stays.
    """
    if share == 0 or not training:
        return x
    kept = uniform_rows(len(x), x.device).view(-1, *(1 for _ in x.shape[1:])) >= share
    return x * (kept.to(x.dtype) / (1 - share))


@contextmanager
def freeze_running_stats(model: nn.Module) -> Iterator[None]:
    """Inside the context, training passes do not update running statistics: for passes that do not count, or that are recomputed."""
    layers = [m for m in model.modules() if isinstance(m, BatchNorm)]
    before = [m.moves for m in layers]
    for m in layers:
        m.moves = False
    try:
        yield
    finally:
        for m, moves in zip(layers, before, strict=True):
            m.moves = moves
