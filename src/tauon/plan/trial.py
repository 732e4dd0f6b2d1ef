"""A trial of a job's own work on a CPU: forward and backward of its model, with few layers and few rows, to know what a whole step takes.

What was measured is remembered for the machine (`measured`), by all that decides the work: model, loss, rows, what trains. Data decides nothing
but shapes.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tauon.config import dump
from tauon.models import Model, ModelConfig, materialize
from tauon.models.attention import KERNELS, LONGEST, attend_heads
from tauon.plan.machine import available_memory
from tauon.plan.measured import SECONDS, fastest, interleaved, recall, remember
from tauon.tasks import Task
from tauon.train import BatchSource, JobConfig, Precision, apply_checkpointing_and_compile
from tauon.types import Batch

__all__ = ["Gradients", "Trial", "Work", "attention_seconds", "compiled_seconds", "fused_seconds", "layers_of", "seconds_a_step"]

LEAST_TOKENS = 512
"""Tokens of a pass: with fewer, converting a weight to bf16 would weigh more than in training."""
SCORES = 2**22
"""Scores of attention that are computed at once when it is measured: 8 MiB in bf16."""
LIBRARY = ("mm", "bmm", "addmm", "baddbmm", "linear", "convolution", "attention", "lstm", "embedding", "native_batch_norm", "max_pool2d")
"""Parts of the names of operations that libraries compute: compiling does not change their time."""

Pass = Callable[[int], None]
"""Does forward and backward of so many rows."""


class Gradients(Protocol):
    """Prepares a model; returns what writes the gradients of a batch to `.grad`, with forward passes inside the given context."""

    def __call__(self, model: Model, task: Task) -> Callable[[Batch, Callable[[], AbstractContextManager[object]]], None]: ...


def plain(model: Model, task: Task) -> Callable[[Batch, Callable[[], AbstractContextManager[object]]], None]:
    """Gradients of the mean loss, as a plain step makes them."""

    def run(batch: Batch, context: Callable[[], AbstractContextManager[object]]) -> None:
        with context():
            total, weight = task.loss(model, batch)
        if total.requires_grad:
            (total / weight.clamp(min=1e-9)).backward()  # type: ignore[no-untyped-call]

    return run


@dataclass(frozen=True)
class Work:
    """What a step of the job computes."""

    batches: BatchSource
    gradients: Gradients = plain
    name: str = "plain"
    """Of the gradients: what was measured for others does not count."""
    unit: int = 1
    """Rows that belong together."""


@dataclass(frozen=True)
class Trial:
    """What is tried: a job's model and loss, in this process alone."""

    config: JobConfig
    work: Work
    trains: Mapping[str, bool]
    """Parameter name to whether it trains."""
    step_rows: int
    """Examples of a step."""
    most_rows: int
    """Examples of a pass in training, at most."""

    @cached_property
    def batch(self) -> Batch:
        """The first batch; passes take rows of it."""
        return self.work.batches.batch_at(0)

    @property
    def layers(self) -> int:
        """How many equal layers follow one another; 1 if the model does not say."""
        return layers_of(self.config.model)

    @property
    def depths(self) -> tuple[int, ...]:
        """Numbers of layers that are tried."""
        return (1, 2) if self.layers > 2 else (self.layers,)

    @property
    def key(self) -> dict[str, Any]:
        """All that decides the time of a pass, besides the machine."""
        spec = self.config.spec
        model = dump(self.config.model) | {"from": None}
        return {
            "gradients": self.work.name, "model": model,
            "task": dump(self.config.task), "rows": [self.step_rows, self.most_rows], "trains": sum(self.trains.values()),
            "checkpointing": self.config.train.activation_checkpointing,
            "data": [spec.vocab, spec.seq_len, spec.input_shape, spec.outputs, spec.horizon],
        }  # fmt: skip

    def model(self, precision: str, layers: int, *, compiled: bool = False) -> Pass:
        """Build the model with so many layers and made-up weights."""
        config = self.config
        shape = config.model if layers == self.layers else config.model.model_copy(update={"layers": layers})

        def transform(bare: Model) -> None:
            for name, p in bare.named_parameters():
                p.requires_grad_(self.trains.get(name, True))
            apply_checkpointing_and_compile(bare, checkpointing=config.train.activation_checkpointing, compiled=compiled)

        weights = _MadeUp(shape.build_on_meta())
        model = materialize(shape, seed=0, half=precision == "bf16", weights=weights, transform=transform).train()
        gradients, context = self.work.gradients(model, config.task), Precision(precision, "cpu").context

        def run(rows: int) -> None:
            gradients(self.batch.rows(0, rows), context)
            model.zero_grad(set_to_none=True)

        return run

    def whole(self, by_depth: Sequence[float]) -> float:
        """Return the seconds of all layers from those of `depths`: each layer's once more, and the rest, with the head, once."""
        first, last = by_depth[0], by_depth[-1]
        return first if len(by_depth) == 1 else first + (self.layers - 1) * max(0.0, last - first)


def seconds_a_step(trial: Trial, precisions: Sequence[str]) -> dict[str, float] | None:
    """Return the seconds of forward and backward of a step in each precision; None if that cannot be measured."""

    def measure() -> dict[str, float]:
        runs = {(p, d): trial.model(p, d) for p in precisions for d in trial.depths}
        rows = _rows(trial, list(runs.values()))
        timed = interleaved({f"{p} {d}": partial(run, rows) for (p, d), run in runs.items()})
        return {p: trial.whole([timed[f"{p} {d}"] for d in trial.depths]) * trial.step_rows / rows for p in precisions}

    return _remembered("step", trial, {"precisions": list(precisions)}, measure)


def fused_seconds(trial: Trial, precision: str) -> float:
    """Return the seconds of a step that layers spend neither in matrix products nor in other library calls."""

    def measure() -> dict[str, float]:
        runs = [trial.model(precision, d) for d in trial.depths]
        rows = _rows(trial, runs)
        rounds = [[_clocked(run, rows) for run in runs] for _ in range(3)]
        spent = [
            min(times) for times in zip(*rounds, strict=True)
        ]  # a call that something else disturbed must not hide what could be saved
        layers = spent[0] if len(spent) == 1 else trial.layers * max(0.0, spent[1] - spent[0])
        return {"fused": layers * trial.step_rows / rows}

    found = _remembered("fused", trial, {"precision": precision}, measure)
    return 0.0 if found is None else found["fused"]


def compiled_seconds(trial: Trial, precision: str, rows: int, on_note: Callable[[str], None]) -> dict[str, float] | None:
    """Return the seconds that compiling takes (`cost`) and that it saves in a step (`saved`); None if it fails. Passes have the rows of training:
    torch keeps on disk what it compiled, and training finds it there.
    """

    def measure() -> dict[str, float]:
        on_note("compiling a block, to measure what it saves")
        depth = trial.depths[-1]
        eager, compiled = trial.model(precision, depth), trial.model(precision, depth, compiled=True)
        start = time.perf_counter()
        compiled(rows)
        first = time.perf_counter() - start
        timed = interleaved({"eager": partial(eager, rows), "compiled": partial(compiled, rows)})
        torch._dynamo.reset()  # training compiles as it would if this had been remembered
        saved = (timed["eager"] - timed["compiled"]) * trial.layers / depth * trial.step_rows / rows
        return {"saved": max(0.0, saved), "cost": max(0.0, first - timed["compiled"])}

    return _remembered("compile", trial, {"precision": precision, "rows": rows}, measure)


def attention_seconds(trial: Trial, precision: str) -> dict[str, float] | None:
    """Return the seconds of attention, forward and backward, with each kernel, for some examples with the heads, length and mask of the first
    batch; and the `bytes` of one example's probabilities. None: it was not called. The number of examples does not depend on the layout, so
    that processes and one process choose the same.
    """
    with _Attention() as seen, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trial.model(precision, 1 if trial.layers > 1 else trial.layers)(trial.work.unit)
        except Exception:  # as in `_remembered`
            return None
    if seen.inputs is None:
        return None
    (q, k, v), mask, causal = seen.inputs
    H, T = q.shape[1:3]
    if k.shape != q.shape or not 1 < T <= LONGEST:
        return None
    copies = -(-min(64, max(1, SCORES // (H * T * T))) // len(q))
    q, k, v = (x.repeat(copies, 1, 1, 1).transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k, v))
    if mask is not None and mask.ndim == 4 and len(mask) > 1:
        mask = mask.repeat(copies, 1, 1, 1)

    def run(kernel: str) -> None:
        with Precision(precision, "cpu").context():
            out = attend_heads(q, k, v, mask, causal=causal, kernel=kernel)
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    key = {"shape": [*q.shape], "precision": precision, "mask": "causal" if causal else None if mask is None else [*mask.shape[1:]]}
    _, timed = fastest("attention", {kernel: partial(run, kernel) for kernel in KERNELS}, key)
    return timed | {"bytes": H * T * T * (2.0 if precision == "bf16" else 4.0)}


class _Attention(TorchFunctionMode):
    """Keeps the inputs of the first attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: tuple[tuple[Tensor, ...], Tensor | None, bool] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        more = kwargs or {}
        if func is F.scaled_dot_product_attention and self.inputs is None:
            mask = more.get("attn_mask")
            self.inputs = tuple(x.detach() for x in args[:3]), mask, more.get("is_causal", False)
        return func(*args, **more)


def layers_of(config: ModelConfig) -> int:
    """Return how many equal layers a model of this config has; 1 if it does not say."""
    return int(getattr(config, "layers", 1)) if "layers" in type(config).model_fields else 1


def _remembered(name: str, trial: Trial, key: Mapping[str, Any], measure: Callable[[], dict[str, float]]) -> dict[str, float] | None:
    """Return what was measured before, or measure now, without an effect on what the process draws later. None: a trial failed."""
    key = {**trial.key, **key}
    found = recall(name, key)
    if found is None:
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = measure()
        except Exception:  # whatever is wrong with a model, a loss or a batch, training says it better
            return None
        remember(name, key, found)
    return found


def _rows(trial: Trial, runs: Sequence[Pass]) -> int:
    """Return the rows of a pass: those of training, or as many as can be measured in time and memory, but not too few."""
    spec, batch = trial.config.spec, trial.batch
    unit = trial.work.unit

    def whole(rows: int) -> int:
        return max(unit, rows - rows % unit)

    tokens = batch.targets.shape[-1] if spec.seq_len is not None and batch.targets.ndim > 1 else 1
    most = min(trial.most_rows, len(batch))
    least = whole(min(most, max(2, -(-LEAST_TOKENS // tokens) if tokens > 1 else 2)))
    for run in runs:
        run(least)
    start = time.perf_counter()
    for run in runs:
        run(least)
    a_row = (time.perf_counter() - start) / least
    free = available_memory(torch.device("cpu"))
    a_row_keeps = 4.0 * trial.config.model.build_on_meta().activations_per_example(spec)
    if free is not None:
        most = min(most, int(0.25 * free / max(1.0, a_row_keeps)))
    return whole(max(least, min(most, int(SECONDS / 5 / max(a_row, 1e-9)))))


def _clocked(run: Pass, rows: int) -> float:
    with _Clock() as clock:
        run(rows)
    seconds: float = clock.seconds
    return seconds


class _Clock(TorchDispatchMode):
    """Adds up the time of operations that are not library calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        if not any(part in func.__name__ for part in LIBRARY):
            self.seconds += time.perf_counter() - start
        return out


class _MadeUp(Mapping[str, Tensor]):
    """Weights of a model on the meta device by name, made when they are read: copies of a few draws, because drawing many takes seconds."""

    def __init__(self, model: Model) -> None:
        self.shapes = {n: p.shape for n, p in model.named_parameters(remove_duplicate=False)}
        self.draws = torch.rand(2**16, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        if len(shape) < 2:
            return torch.ones(shape)
        made = self.draws.repeat(-(-shape.numel() // len(self.draws)))[: shape.numel()]
        return made.reshape(shape).div_(math.sqrt(max(1, shape[1:].numel())))

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
