"""DP-SGD: replaces the gradient function of a job by the clipped and noised sum (Abadi et al. 2016, arXiv:1607.00133, algorithm 1).

    g = ( sum_i min(1, C / ||g_i||) g_i  +  N(0, (z C)^2) ) / expected batch

Random draws of an example inside the model (dropout, stochastic depth, masks) are a function of the run's key, the step and the example, and
do not depend on other examples, microbatches or processes (`models.randomness`): otherwise one more example would change all other gradients.

Noise is drawn once per step as a function of (key, step, parameter, block of rows); each process adds the part for the rows it has. The divisor
is the expected batch size, never the drawn one, which is secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tauon.distributed import reshard, synchronising
from tauon.distributed.pieces import is_dtensor, local_part, local_slices
from tauon.errors import Problem, RecipeError
from tauon.models.randomness import key_layers, keyed_rows
from tauon.privacy.audit import GradientCanaries
from tauon.privacy.clipped import ClippedSum, ClippingConfig
from tauon.privacy.clipped.tensor import refuse_parts
from tauon.privacy.exchange import norms_over, place_over, sum_over
from tauon.privacy.noise import GradientNorm, NoisePlan, NoiseSource, Query, ValidationLoss
from tauon.train import TrainJob, step_seed
from tauon.types import Batch

__all__ = ["PrivateGradients", "make_private"]

PER_TOKEN = ("tokens", "masked-tokens", "chat")
"""Input kinds of tasks whose loss is a sum over tokens: the loss of an example is then the mean over its tokens."""
NOTE = "privacy"
"""Key in `job.notes` of the decisions of adaptive noise."""
BLOCK = 2**16
"""Noise values per block: a process that has a part of a parameter draws only the blocks that overlap it."""


def make_private(
    job: TrainJob, clipping: ClippingConfig, noise: NoisePlan, source: NoiseSource, *, expected: Callable[[int], float],
    validation: Callable[[], Iterator[Batch]] | None = None, canaries: GradientCanaries | None = None,
    rows_per_unit: int = 1,
) -> TrainJob:  # fmt: skip
    """Return the same job with private gradients. Call it after adapters, checkpointing, sharding and compiling, before the first step.

    Args:
        job: not private yet; its loader must sample as the guarantee requires.
        clipping: how far one unit may move the gradient.
        noise: how much noise each step gets.
        source: where the noise is drawn from.
        expected: expected number of units of step n, over all processes.
        validation: batches of all held-out examples, for noise that depends on the validation loss.
        canaries: gradients that an audit adds to the clipped sums at random, and searches for in the noised sums.
        rows_per_unit: number of consecutive rows that are one unit (the views of an example, the rows of a patient); the gradients of rows
            with a weight above 0 are averaged before they are clipped.

    Raises:
        RecipeError: a layer cannot be clipped per example, or mixes examples.
    """
    gradients = PrivateGradients(job, clipping, noise, source, expected, rows_per_unit)
    if canaries is not None:
        gradients.canaries = canaries
        job.extra["canaries"] = canaries
    job.functions = replace(job.functions, make=gradients, after=(*job.functions.after, partial(gradients.look_at, validation)))
    job.health.by_loss = False
    if gradients.state:
        job.extra["clipping"] = gradients
    return job


class PrivateGradients:
    """The gradient function of a private job. Saved for a resume: the clipping state (`tensors`), the decisions of noise (`job.notes`)."""

    def __init__(
        self, job: TrainJob, clipping: ClippingConfig, noise: NoisePlan, source: NoiseSource, expected: Callable[[int], float],
        rows_per_unit: int = 1,
    ) -> None:  # fmt: skip
        mesh = job.mesh
        if mesh.layout.tensor > 1:
            refuse_parts(job.model)
        key_layers(job.model)
        self.clipped = ClippedSum(job.model, rows_per_unit=rows_per_unit, place=partial(place_over, mesh))
        self.rows_per_unit = rows_per_unit
        self.clipping, self.noise, self.source, self.expected = clipping, noise, source, expected
        self.named = {n: p for n, p in job.model.named_parameters() if p.requires_grad}
        self.state = clipping.start({n: p.numel() for n, p in self.named.items()})
        self.canaries: GradientCanaries | None = None

    def __call__(self, job: TrainJob, batch: Batch) -> Tensor:
        """Write the clipped and noised mean gradient to `.grad`; return this process's share of the mean loss of the drawn batch."""
        self._remember(job)
        mesh, expected = job.mesh, self.expected(job.step)
        if job.task.input_kind in PER_TOKEN:
            batch = replace(batch, weights=batch.weights / batch.weights.sum(1, keepdim=True).clamp(min=1e-9))
        if self.rows_per_unit > 1:
            batch = replace(batch, weights=mean_over_units(batch.weights, self.rows_per_unit))
        query = self.noise.query(job.step)
        looks = query if query is not None and query.what == GradientNorm.kind_ else None
        progress = job.step / job.policy.total_steps
        bound = self.clipping.sensitivity(self.state, progress)
        loss, seen = torch.zeros((), device=job.policy.device), torch.zeros(3, device=job.policy.device)
        draw_seed = step_seed(job.policy.seed, job.step)
        for rows in pieces(batch, job.policy.microbatch, self.rows_per_unit):
            # One seed for all microbatches and processes: the draws of an example must not depend on where it is computed.
            seeds_B = rows.index if rows.draws is None else rows.draws
            with synchronising(job.model, now=False), self.clipped.recording(len(rows)), keyed_rows(seeds_B, draw_seed) as draws:
                with job.policy.precision.context():
                    total, _ = job.task.loss(job.model, rows)
                draws.refuse_others()
                total.backward()  # type: ignore[no-untyped-call]
            with gathered(job.model, needed=self.clipped.reads_weights):
                squared = norms_over(mesh, self.clipped.squared_norms(), self.named)
                self.clipped.add(self.clipping.factors(squared, self.state, progress))
            self.clipped.forget()
            present_U = present(rows.weights).view(-1, self.rows_per_unit).any(1)
            seen[0] += present_U.sum()
            if (counted := self.clipping.counted(squared, self.state, present_U, progress)) is not None:
                seen[1] += counted
            if looks is not None:
                norms_U = torch.stack([*squared.values()]).sum(0).sqrt() / bound
                seen[2] += norms_U.clamp(max=looks.bound).sum()
            loss += total.detach()
        mesh.sum(seen, "replicate", "shard")
        for p in self.named.values():
            if p.grad is None:  # a parameter that this step did not use gets noise as well
                p.grad = torch.zeros_like(p)
        sum_over(mesh, [g for p in self.named.values() if (g := p.grad) is not None])
        if looks is not None:
            self._observe(job, looks, seen[2].item(), expected)
        if self.canaries is not None:
            self.canaries.insert({n: p.grad for n, p in self.named.items()}, step=job.step, norm=bound)
        std = self.noise.multiplier(job.step) * bound
        for name, p in self.named.items():
            assert p.grad is not None
            part = local_part(p.grad)
            part.add_(noise_like(p, name, partial(self.noise.draw, self.source, job.step)), alpha=std).div_(expected)
        if self.canaries is not None:
            stated = None if self.noise.correlated else self.noise.multiplier(job.step)
            self.canaries.observe({n: p.grad for n, p in self.named.items()}, norm=bound / expected, noise=stated)
        job.measured["noise"] = std / expected
        for group in job.optimizer.param_groups:
            if "noise" in group:  # an optimizer that takes it into account
                group["noise"] = std / expected
        if "norm" in self.state:
            job.measured["clipping_norm"] = bound
        self.state = self.clipping.moved(self.state, seen[1], self.source.normal(job.step, "clipping/count", (1,))[0], expected)
        return loss / seen[0].clamp(min=1.0)

    def tensors(self) -> dict[str, Tensor]:
        """The clipping state."""
        return self.state

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put it back."""
        self.state = {name: t.clone() for name, t in tensors.items()}

    @torch.no_grad()
    def look_at(self, validation: Callable[[], Iterator[Batch]] | None, job: TrainJob) -> None:
        """After a step: query the noisy validation loss for adaptive noise, if it is due. Every process computes all of it."""
        step = job.step - 1
        query = self.noise.query(step)
        if query is None or query.what != ValidationLoss.kind_:
            return
        if validation is None:
            message = (
                f"{ValidationLoss.kind_} needs held-out examples, but data.split.validation is 0. Set it above 0, or set another noise."
            )
            raise RecipeError([Problem("privacy.noise", message)])
        was, total, examples = job.model.training, 0.0, 0
        job.model.eval()
        for batch in validation():
            with job.policy.precision.context():
                loss_B, weight_B = job.task.losses(job.model, batch.to(job.policy.device))
            each = (loss_B / weight_B.clamp(min=1e-9)).clamp(0, query.bound) * (weight_B > 0)
            total, examples = (
                total + float(each.double().sum()),
                examples + len(loss_B),
            )  # all rows: their number is public, their weights are not
        job.model.train(was)
        reshard(job.model)
        self._observe(job, query, total, max(1, examples))

    def _observe(self, job: TrainJob, query: Query, total: float, examples: float) -> None:
        answer = self.noise.observe(query, total, examples, self.source)
        job.notes[NOTE] = self.noise.state()
        job.measured[f"private_{query.what.replace('-', '_')}"] = answer

    def _remember(self, job: TrainJob) -> None:
        """Decisions so far, also after a resume."""
        if NOTE in job.notes:
            self.noise.load(job.notes[NOTE])


@contextmanager
def gathered(model: nn.Module, *, needed: bool) -> Iterator[None]:
    """Context in which the weights of a sharded model that are outside its blocks (the head) are gathered."""
    unshard: Any = getattr(model, "unshard", None)
    if unshard is None or not needed:
        yield
        return
    unshard()
    try:
        yield
    finally:
        reshard(model)


def pieces(batch: Batch, most: int, unit: int = 1) -> Iterator[Batch]:
    """Split the rows into the fewest pieces of at most `most` rows (or 25% more, if that is all), about equal, never splitting a `unit`."""
    rows = len(batch)
    count = max(1, -(-rows // most)) if rows > 1.25 * most else 1
    size = -(-rows // (count * unit)) * unit
    for start in range(0, rows, size):
        yield batch.rows(start, min(rows, start + size))


def present(weights: Tensor) -> Tensor:
    """(B) which rows have a weight above 0."""
    return weights.flatten(1).sum(1) > 0 if weights.ndim > 1 else weights > 0


def mean_over_units(weights: Tensor, rows_per_unit: int) -> Tensor:
    """Row weights, such that the loss of a unit is the mean over its rows."""
    rows_U = present(weights).view(-1, rows_per_unit).sum(1, keepdim=True)
    each_B = rows_U.clamp(min=1).expand(-1, rows_per_unit).reshape(-1, *(1 for _ in weights.shape[1:]))
    return weights / each_B


def noise_like(p: Tensor, name: str, draw: Callable[..., Tensor]) -> Tensor:
    """Standard normal values for this process's part of `p`; the complete tensor is the same in every layout."""
    mine, device = local_slices(p), local_part(p).device
    if p.ndim == 0:
        return draw([name], (), device)[0]
    row = p[0].numel() if not is_dtensor(p) else p.numel() // max(1, p.shape[0])
    step = max(1, BLOCK // max(1, row))
    starts = range(mine[0].start // step * step, mine[0].stop, step)
    if not starts:
        return local_part(p).new_zeros(local_part(p).shape)
    whole = [start for start in starts if start + step <= p.shape[0]]
    cut = any(s.stop - s.start < n for s, n in zip(mine[1:], p.shape[1:], strict=True))
    groups = [[start] for start in whole] if cut else [whole]  # a process with some of the columns keeps only those
    found = []
    for group in filter(None, groups):
        drawn = draw([f"{name}/{start // step}" for start in group], (step, *p.shape[1:]), device).flatten(0, 1)
        found.append(drawn[(slice(None), *mine[1:])])
    if len(whole) < len(starts):
        drawn = draw([f"{name}/{starts[-1] // step}"], (p.shape[0] - starts[-1], *p.shape[1:]), device)[0]
        found.append(drawn[(slice(None), *mine[1:])])
    rows = found[0] if len(found) == 1 else torch.cat(found)
    return rows[mine[0].start - starts[0] : mine[0].stop - starts[0]]
