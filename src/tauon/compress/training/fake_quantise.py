"""Quantisation-aware training: layers whose weights are rounded whenever they are read, as a step of `compress` will round them.

The gradient passes through the rounding unchanged (straight-through estimator, Bengio et al. 2013, arXiv:1308.3432; scales from the
largest weight of each group, so that no weight is clipped). Parameters, their names and checkpoints stay those of the float model: the class of a
layer changes, and its `weight` is computed from its parameter, also for a language model's head, whose weight is read outside of its forward pass.

Shapes: N outputs, K inputs, M rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.compress.base import LayerStep
from tauon.compress.quantized.numbers import quantize_rows
from tauon.compress.steps import Int4WeightOnly, Int8, Int8WeightOnly
from tauon.distributed import is_dtensor
from tauon.errors import Problem, RecipeError
from tauon.train import TrainJob
from tauon.types import Batch

__all__ = ["FakeQuantised", "FakeQuantisedEmbedding", "FakeQuantisedLinear", "fake_quantise", "quantisation_aware"]


_TINY = 1e-30
"""Least scale, as in `tauon.compress.quantized.numbers`."""


class _StraightThrough(torch.autograd.Function):
    """The second argument forward, its gradient to the first backward."""

    @staticmethod
    def forward(ctx: Any, real: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone() if rounded is real else rounded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


def _int4(weight_NK: Tensor, group: int) -> Tensor:
    """What `quantize_groups` and `dequantize_groups` give, in fewer passes: no weight of its own group's scale needs to be clipped."""
    N, K = weight_NK.shape
    padded = F.pad(weight_NK.detach().float(), (0, -K % group)).view(N, -1, group)
    scale_NG1 = torch.linalg.vector_norm(padded, ord=float("inf"), dim=2, keepdim=True).clamp_min_(_TINY) / 7
    rounded: Tensor = (padded / scale_NG1).round_().mul_(scale_NG1.to(torch.float16).float())
    return rounded.view(N, -1)[:, :K]


def _int8(weight: Tensor) -> Tensor:
    """What `quantize_channels` gives, as floats."""
    flat = weight.detach().float().flatten(1)
    scale_N1 = torch.linalg.vector_norm(flat, ord=float("inf"), dim=1, keepdim=True).clamp_min_(_TINY) / 127
    rounded: Tensor = (flat / scale_N1).round_().mul_(scale_N1)
    return rounded.view(weight.shape)


@dataclass
class FakeQuantised:
    """The switch that the layers of one model share."""

    step: LayerStep
    """The step of `compress` that rounds the same layers to the same weights."""
    layers: tuple[str, ...] = ()
    on: bool = False

    @property
    def rounds_activations(self) -> bool:
        return isinstance(self.step, Int8)


class FakeQuantisedLinear(nn.Linear):
    """A linear layer with a rounded weight; its class is set on an existing layer."""

    switch: FakeQuantised
    round_weight: Callable[[Tensor], Tensor]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight as it will be after `compress`, or the parameter itself while the switch is off."""
        p = cast(Tensor, self._parameters["weight"])
        return _StraightThrough.apply(p, self.round_weight(p)).to(p.dtype) if self.switch.on else p  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        x = round_rows(x) if self.switch.on and self.switch.rounds_activations else x
        return F.linear(x, self.weight, self.bias)


class FakeQuantisedEmbedding(nn.Embedding):
    """A table with rounded rows; its class is set on an existing table."""

    switch: FakeQuantised
    round_weight: Callable[[Tensor], Tensor]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """As of `FakeQuantisedLinear`."""
        p = cast(Tensor, self._parameters["weight"])
        return _StraightThrough.apply(p, self.round_weight(p)).to(p.dtype) if self.switch.on else p  # type: ignore[no-untyped-call]


def round_rows(x: Tensor) -> Tensor:
    """Return activations as int8 with one scale a row would hold them, with a straight-through gradient."""
    rows = x.detach().reshape(-1, x.shape[-1]).float()
    q_MK, scale_M1 = quantize_rows(rows)
    rounded = (q_MK.float() * scale_M1).view(x.shape).to(x.dtype)
    out: Tensor = _StraightThrough.apply(x, rounded)  # type: ignore[no-untyped-call]
    return out


def fake_quantise(model: nn.Module, step: LayerStep, *, hidden_states: bool = False) -> FakeQuantised:
    """Let the layers that `step` would quantise round their weights, in place, once the result's `on` is set.

    Args:
        model: parameters, names and buffers stay as they are.
        step: Int4WeightOnly with `rtn`, dynamic Int8 without smoothing, or Int8WeightOnly.
        hidden_states: the model returns hidden states that its `head` is multiplied with by the task: they are the head's activations.

    Raises:
        RecipeError: a layer cannot be trained so, or there is none.

    >>> model = nn.Sequential(nn.Linear(64, 8))
    >>> fake_quantise(model, Int4WeightOnly(group=32)).on = True
    >>> model[0].weight[0, :32].unique().numel() <= 15
    True
    """
    _refuse_steps(step)
    switch = FakeQuantised(step)
    convs = [name for name, _ in step.chosen(model, (nn.Conv2d,))] if not isinstance(step, Int4WeightOnly) else []
    if convs:
        message = (
            f"int8 convolutions cannot be trained so ({', '.join(convs[:3])}): batch norms are folded into them before they are rounded. Skip "
            "them (qat.skip), or compress after training: int8 costs convolutions little."
        )
        raise RecipeError([Problem("qat.weights", message)])
    found = dict(step.chosen(model, (nn.Linear,)))
    tables = dict(step.chosen(model, (nn.Embedding,))) if getattr(step, "embeddings", True) else {}
    for name, layer in (found | tables).items():
        if is_dtensor(layer.weight) and any(p.is_shard(1) for p in layer.weight.placements):
            raise RecipeError([Problem("qat", f"{name} is split along its inputs. Use parallel.replicate or parallel.shard.")])
    for layer in found.values():
        layer.switch, layer.round_weight = switch, _rounding_of(step)
        layer.__class__ = FakeQuantisedLinear
    for table in tables.values():
        table.switch, table.round_weight = switch, _int8
        table.__class__ = FakeQuantisedEmbedding
    switch.layers = (*found, *tables)
    if not switch.layers:
        kinds = sorted({type(m).__name__ for m in model.modules() if any(True for _ in m.parameters(recurse=False))})
        raise RecipeError([Problem("qat", f"rounds no layer: the model is made of {', '.join(kinds)}. Check qat.only and qat.skip.")])
    if hidden_states and switch.rounds_activations and "head" in found:
        model.register_forward_hook(lambda _, args, out: round_rows(out) if switch.on else out)
    return switch


def _rounding_of(step: LayerStep) -> Callable[[Tensor], Tensor]:
    if not isinstance(step, Int4WeightOnly):
        return _int8
    group = int(step.group)
    return lambda weight: _int4(weight, group)


def _refuse_steps(step: LayerStep) -> None:
    plain = isinstance(step, Int8WeightOnly) or (isinstance(step, Int4WeightOnly) and step.method == "rtn")
    if not plain and not (isinstance(step, Int8) and step.activations == "dynamic" and step.smooth is None):
        raise RecipeError(
            [Problem("qat", f"{step.kind_} with these settings looks at calibration data: its rounding is not known in training")]
        )


def quantisation_aware(job: TrainJob, step: LayerStep, *, start: float = 0.2) -> TrainJob:
    """Round weights in every step from the share `start` of all steps on, in training and in validation (Jacob et al. 2018, arXiv:1712.05877).

    Return the same job. The rounding is a function of the weights and the step number: nothing more is saved.
    """
    layout = job.mesh.layout
    if layout.tensor > 1 or layout.pipeline > 1:
        raise RecipeError([Problem("qat", "needs whole layers in each process. Use parallel.replicate or parallel.shard.")])
    switch = fake_quantise(job.model, step, hidden_states=job.task.reads_hidden_states)
    first = round(start * job.policy.total_steps)
    make, score = job.functions.make, job.functions.score

    def rounded_gradients(job: TrainJob, batch: Batch) -> Tensor:
        with _set(switch, job.step >= first):
            return make(job, batch)

    def rounded_scores(job: TrainJob, batch: Batch) -> tuple[Tensor, Tensor]:
        with _set(switch, job.step > first):
            return score(job, batch)

    job.functions = replace(job.functions, make=rounded_gradients, score=rounded_scores)
    return job


@contextmanager
def _set(switch: FakeQuantised, on: bool) -> Iterator[None]:
    switch.on = on
    try:
        yield
    finally:
        switch.on = False
