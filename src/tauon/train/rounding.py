"""Measures how much an optimizer amplifies rounding: `tauon check` allows updates to differ by that much."""

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
    """Return, for each parameter, the relative change of its update if the gradients of every step are perturbed like rounding.

    The perturbation of an element is `noise` times a normal number times the typical size of sums of products of its row and column:
    rms(row) rms(column) / rms(all). Elements of rows without a gradient (tokens that did not occur) stay zero.

    Args:
        build: builds the job of the reference again.
        steps: number of steps.
        start: weights of the reference before its steps.
        weights: weights of the reference after its steps.
        noise: relative size of rounding.
        draw: number of the random draw.
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
    changes: dict[str, float] = {}
    for name, p in job.model.named_parameters():
        off, moved = square_of_most(p.detach() - weights[name]), (weights[name] - start[name]).double().square().sum().item()
        changes[name] = min(math.sqrt(off / moved) if moved else 0.0, 1.0)
    return changes


def square_of_most(off: Tensor) -> float:
    """Return the sum of squares of the differences without the largest 0.1% (at least one, if there are several)."""
    squares = off.double().square().flatten()
    if not torch.isfinite(squares).all():
        return 1e300
    left_out = max(1, len(squares) // 1000) if len(squares) > 1 else 0
    return (squares.sum() - squares.topk(left_out).values.sum()).clamp_min(0).item()


def _size(grad: Tensor) -> Tensor:
    """Return the typical size of the sums in each element of a gradient: from row and column for a matrix, else from the element and the mean."""
    squares = grad.float().square()
    if grad.ndim < 2:
        return (squares + squares.mean()).sqrt().to(grad.dtype)
    flat = squares.flatten(1)
    rows, columns, whole = flat.mean(1, keepdim=True), flat.mean(0, keepdim=True), flat.mean()
    return (rows * columns / whole.clamp_min(1e-30)).sqrt().view_as(grad).to(grad.dtype)
