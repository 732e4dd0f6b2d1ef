"""What an optimizer makes of rounding: the measure that `tauon check` allows updates to differ by. Knows no layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tauon.data import Loader
from tauon.train.step import TrainJob, step_seed, train_step

__all__ = ["sensitivity", "square_of_most"]


def sensitivity(
    build: Callable[[], tuple[TrainJob, Loader]], steps: int, start: dict[str, Tensor], weights: dict[str, Tensor], noise: float, draw: int
) -> dict[str, float]:
    """How far each parameter's update moves, as a share of its norm, where the gradients of every step are off by rounding.

    Rounding of an element is taken as `noise` times a normal number times the size that sums of products of its row and column have:
    rms(row) rms(column) / rms(all). Elements of rows without a gradient (tokens that did not occur) stay without.

    Args:
        build: makes the job of the reference anew.
        steps: that it takes.
        start: weights of the reference before its steps.
        weights: after them.
        noise: relative size of the rounding.
        draw: number of the draw.
    """
    job, loader = build()
    exchange = job.functions.exchange

    def disturb(job: TrainJob) -> None:
        exchange(job)
        for name, p in job.model.named_parameters():
            if p.grad is not None:
                g = torch.Generator().manual_seed(step_seed(job.policy.seed, job.step, sum(name.encode()) + 1000 * (draw + 1)))
                p.grad += (noise * torch.randn(p.grad.shape, generator=g)).to(p.grad) * _size(p.grad)

    job.functions = replace(job.functions, exchange=disturb)
    for step in range(steps):
        train_step(job, loader.batch_at(step).to(job.policy.device))
    found: dict[str, float] = {}
    for name, p in job.model.named_parameters():
        off, moved = square_of_most(p.detach() - weights[name]), (weights[name] - start[name]).double().square().sum().item()
        found[name] = min(math.sqrt(off / moved) if moved else 0.0, 1.0)
    return found


def square_of_most(off: Tensor) -> float:
    """Sum of squares of the differences but for the largest in 1,000 (one at least, where there are several)."""
    squares = off.double().square().flatten()
    if not torch.isfinite(squares).all():
        return 1e300
    left_out = max(1, len(squares) // 1000) if len(squares) > 1 else 0
    return (squares.sum() - squares.topk(left_out).values.sum()).clamp_min(0).item()


def _size(grad: Tensor) -> Tensor:
    """Of what is summed up to each element of a gradient: of a matrix from its row and its column, else the element's own and the mean."""
    squares = grad.float().square()
    if grad.ndim < 2:
        return (squares + squares.mean()).sqrt().to(grad.dtype)
    flat = squares.flatten(1)
    rows, columns, whole = flat.mean(1, keepdim=True), flat.mean(0, keepdim=True), flat.mean()
    return (rows * columns / whole.clamp_min(1e-30)).sqrt().view_as(grad).to(grad.dtype)
