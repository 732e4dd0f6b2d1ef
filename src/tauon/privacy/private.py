"""A private job from a plain one: the first seam of a step becomes the clipped and noised sum (Abadi et al. 2016, arXiv:1607.00133, algorithm 1).

    g = ( sum_i min(1, C / ||g_i||) g_i  +  N(0, (z C)^2) ) / expected batch

One draw of noise a step, whatever the microbatches and processes are: it is a function of (key, step, parameter, block of rows), and each
process adds what falls on the part that it holds. The divisor is the expected batch, never the drawn one, whose size is a secret too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tauon.distributed import synchronising
from tauon.distributed.pieces import is_dtensor, local_part, local_slices
from tauon.privacy.clipped import ClippedSum, ClippingConfig
from tauon.privacy.noise import NoisePlan, NoiseSource
from tauon.train import TrainJob
from tauon.types import Batch

__all__ = ["PrivateGradients", "make_private"]

PER_TOKEN = ("tokens", "masked-tokens", "chat")
"""What tasks need whose loss is a sum over tokens: an example's loss is then the mean over its own."""
BLOCK = 2**16
"""Numbers of noise that are drawn at a time: a process that holds a part of a parameter draws only the blocks that touch it."""


def make_private(
    job: TrainJob, clipping: ClippingConfig, noise: NoisePlan, source: NoiseSource, *, expected: Callable[[int], float]
) -> TrainJob:
    """The same job, private: same type in, same type out. Call it when the model is dressed, before the first step.

    Args:
        job: plain; its loader must sample as the guarantee says.
        clipping: how far one example may move the gradient.
        noise: how much noise each step gets.
        source: where it is drawn from.
        expected: examples that step n is expected to have, all processes together.

    Raises:
        RecipeError: a layer that cannot be clipped by example, or one in which one example reaches another.
    """
    gradients = PrivateGradients(job.model, clipping, noise, source, expected)
    job.make = gradients
    job.extra["privacy"] = gradients
    return job


class PrivateGradients:
    """The first seam of a private job. What must survive a resume (state of clipping and noise) is in `tensors`."""

    def __init__(
        self, model: nn.Module, clipping: ClippingConfig, noise: NoisePlan, source: NoiseSource, expected: Callable[[int], float]
    ) -> None:
        self.clipped = ClippedSum(model)
        self.clipping, self.noise, self.source, self.expected = clipping, noise, source, expected
        self.named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

    def __call__(self, job: TrainJob, batch: Batch) -> Tensor:
        """Clipped and noised mean gradient into `.grad`; returns this process's share of the mean loss of the batch that was drawn."""
        if job.task.needs in PER_TOKEN:
            batch = replace(batch, weights=batch.weights / batch.weights.sum(1, keepdim=True).clamp(min=1e-9))
        present = (batch.weights.flatten(1).sum(1) > 0).sum().to(torch.float32) if batch.weights.ndim > 1 else batch.weights.sum()
        present = job.mesh.sum(present, "replicate", "shard").clamp(min=1.0)
        loss = torch.zeros((), device=job.device)
        for rows in pieces(batch, job.microbatch):
            with synchronising(job.model, now=False), self.clipped.recording():
                with job.precision.context():
                    total, _ = job.task.loss(job.model, rows)
                total.backward()  # type: ignore[no-untyped-call]
            self.clipped.add(self.clipping.factors(self.clipped.squared_norms()))
            self.clipped.forget()
            loss += total.detach()
        std = self.noise.multiplier(job.step) * self.clipping.sensitivity
        expected = self.expected(job.step)
        for name, p in self.named:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            part = local_part(p.grad)
            part.add_(noise_like(p, name, self._draw(job.step)), alpha=std).div_(expected)
        job.measured["noise"] = std / expected
        return loss / present

    def _draw(self, step: int) -> Callable[..., Tensor]:
        return lambda name, shape, device: self.noise.draw(self.source, step, name, shape, device)


def pieces(batch: Batch, most: int) -> Iterator[Batch]:
    """The rows in as few pieces as hold at most `most` (a quarter more where that is all), all of about one size."""
    rows = len(batch)
    count = max(1, -(-rows // most)) if rows > 1.25 * most else 1
    size = -(-rows // count)
    for start in range(0, rows, size):
        yield batch.rows(start, min(rows, start + size))


def noise_like(p: Tensor, name: str, draw: Callable[..., Tensor]) -> Tensor:
    """Standard normal numbers for the part of `p` that this process holds: the same ones in every layout."""
    mine = local_slices(p)
    if p.ndim == 0:
        return draw(name, (), local_part(p).device)
    row = p[0].numel() if not is_dtensor(p) else p.numel() // max(1, p.shape[0])
    step = max(1, BLOCK // max(1, row))
    found = []
    for start in range(mine[0].start // step * step, mine[0].stop, step):
        stop = min(p.shape[0], start + step)
        block = draw(f"{name}/{start // step}", (stop - start, *p.shape[1:]), local_part(p).device)
        found.append(block[(slice(max(0, mine[0].start - start), mine[0].stop - start), *mine[1:])])
    return torch.cat(found) if found else local_part(p).new_zeros(local_part(p).shape)
