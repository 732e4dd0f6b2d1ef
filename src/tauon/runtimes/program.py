"""`trace`: torch.export of a model, called as its task calls it, with a dynamic batch dimension.

The call is recorded by running the task once; so a task of another package needs nothing more. Of language models the head is part of the
program, which ends in logits.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from tauon.errors import DataError
from tauon.models.attention import set_attention
from tauon.runtimes.signature import Signature, TensorSpec
from tauon.tasks import Task
from tauon.types import Batch

__all__ = ["Program", "Recorded", "Traceable", "bounded", "quiet", "recorded_call", "trace"]

LONGEST_BATCH = 65536
"""Bound of the dynamic batch dimension, which some runtimes ask for."""
LONGEST_TEXT = 65536
"""Bound of the length of texts, for models that have none of their own."""


@dataclass(frozen=True)
class Program:
    """A traced model."""

    exported: ExportedProgram
    signature: Signature
    example: tuple[Tensor, ...]
    """Inputs that it was traced with, in the order of the signature."""


@dataclass(frozen=True)
class Recorded:
    """The call of a model by a task."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any


class _Recorder(nn.Module):
    """Calls the model and remembers the arguments; everything else of the model is reachable through it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_model", model)  # not a submodule: nothing of the model changes
        self.calls: list[Recorded] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self._model(*args, **kwargs)
        self.calls.append(Recorded(args, kwargs, outputs))
        return outputs

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_model"), name)


def recorded_call(task: Task, model: nn.Module, batch: Batch) -> Recorded:
    """Return the call of `model` when `task` infers `batch`. `DataError` if the task does not call the model exactly once."""
    recorder = _Recorder(model)
    with torch.no_grad():
        task.infer(recorder, batch)
    if len(recorder.calls) != 1:
        raise DataError(
            f"the task {task.kind_} calls its model {len(recorder.calls)} times for a batch; a program for another runtime is one call. "
            "Such a model is exported as weights: --to huggingface."
        )
    return recorder.calls[0]


class Traceable(nn.Module):
    """The model as a function of tensors alone: constants are filled in, the head of a language model is applied."""

    def __init__(self, model: nn.Module, inputs: tuple[TensorSpec, ...], fixed: dict[str, Any], logits: bool) -> None:
        super().__init__()
        self.model, self.inputs, self.fixed, self.ends_in_logits = model, inputs, fixed, logits
        self.positions = 1 + max((s.at for s in inputs if isinstance(s.at, int)), default=-1)

    def forward(self, *tensors: Tensor) -> Any:
        args: list[Any] = [None] * self.positions
        kwargs: dict[str, Any] = dict(self.fixed)
        for spec, tensor in zip(self.inputs, tensors, strict=True):
            if isinstance(spec.at, int):
                args[spec.at] = tensor
            else:
                kwargs[spec.at] = tensor
        outputs = self.model(*args, **kwargs)
        head: Any = self.model.head if self.ends_in_logits else None
        return outputs if head is None else head(outputs)


def trace(task: Task, model: nn.Module, batch: Batch) -> Program:
    """Trace `model` in evaluation mode.

    Args:
        task: decides how the model is called.
        model: in evaluation mode, on the CPU; it is not changed.
        batch: real examples, at least one; of texts the length becomes dynamic where the model allows it.

    Raises:
        DataError: the model cannot be traced; the message names the operation.

    >>> from tauon.config import parse
    >>> task = parse(Task, {"kind": "classification"})
    >>> batch = Batch(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), torch.ones(4))
    >>> trace(task, nn.Linear(3, 2), batch).signature.outputs[0].shape
    ('batch', 2)
    """
    model = copy.deepcopy(model).eval()
    set_attention(model, "fused")  # torch's own operation, which every runtime knows
    if len(batch) == 1:  # a dimension of 1 would become a constant
        twice: dict[str, Any] = {f.name: None if (v := getattr(batch, f.name)) is None else torch.cat([v, v]) for f in fields(batch)}
        batch = Batch(**twice)
    call = recorded_call(task, model, batch)
    logits = task.reads_hidden_states
    inputs, example, fixed = _inputs_of(model, call, batch)
    module = Traceable(model, inputs, fixed, logits)
    exported, inputs, ranges = _export(module, inputs, example)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        found = module(*example)
    products = counter.get_total_flops() // 2 // len(example[0])
    outputs = found if isinstance(found, tuple) else (found,)
    names = ("logits",) if logits else ("output",) if len(outputs) == 1 else tuple(f"output_{i}" for i in range(len(outputs)))
    shapes = [_output_shape(o, inputs, example) for o in outputs]
    specs = tuple(TensorSpec(n, _dtype(o), s) for n, o, s in zip(names, outputs, shapes, strict=True))
    return Program(exported, Signature(inputs, specs, tuple(fixed.items()), logits, ranges, products), example)


def _inputs_of(model: nn.Module, call: Recorded, batch: Batch) -> tuple[tuple[TensorSpec, ...], tuple[Tensor, ...], dict[str, Any]]:
    """Return (inputs, their example values, constants). An input has the name of the batch's field, or else of the argument."""
    of_batch = {id(v): f.name for f in reversed(fields(batch)) if (v := getattr(batch, f.name)) is not None}
    arguments = list(inspect.signature(model.forward).parameters)
    inputs, example, fixed = [], [], {}
    given: list[tuple[Any, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    for at, value in given:
        if isinstance(value, Tensor):
            name = of_batch.get(id(value)) or (at if isinstance(at, str) else arguments[at])
            texts = value.dtype == torch.int64 and value.ndim == 2 and name in ("inputs", "segments")
            rest = ("time", *value.shape[2:]) if texts or name == "segments" else tuple(value.shape[1:])
            inputs.append(TensorSpec(name, _dtype(value), ("batch", *rest), at))
            example.append(value.clone())
        elif isinstance(at, str) and value is not None:
            fixed[at] = value
    return tuple(inputs), tuple(example), fixed


Ranges = tuple[tuple[str, int, int], ...]


def _export(
    module: Traceable, inputs: tuple[TensorSpec, ...], example: tuple[Tensor, ...]
) -> tuple[ExportedProgram, tuple[TensorSpec, ...], Ranges]:
    """Return the traced program, its inputs (with a fixed length where the model does not allow a dynamic one), and the range of each
    dimension that is dynamic.
    """
    longest = max(2, int(getattr(module.model, "seq_len", None) or LONGEST_TEXT))
    ranges: Ranges = (("batch", 1, LONGEST_BATCH),)
    if any("time" in s.shape for s in inputs):
        wanted: Ranges = (*ranges, ("time", 1, longest))
        for _ in range(4):
            try:
                return _exported(module, inputs, example, wanted), inputs, wanted
            except Exception as err:  # a model that computes with the length in Python: torch names the lengths for which that holds
                narrower = _suggested(str(err), wanted)
                if narrower == wanted:
                    break
                wanted = narrower
        inputs = tuple(
            TensorSpec(s.name, s.dtype, tuple(n if d == "time" else d for d, n in zip(s.shape, v.shape, strict=True)), s.at)
            for s, v in zip(inputs, example, strict=True)
        )
    try:
        return _exported(module, inputs, example, ranges), inputs, ranges
    except Exception as err:  # torch.export raises many types
        raise DataError(
            f"torch.export cannot trace {type(module.model).__name__}: {type(err).__name__}: {_reason(err)}. "
            "Export its weights instead: --to huggingface, where that format knows the model."
        ) from err


def _suggested(message: str, ranges: Ranges) -> Ranges:
    """Return the range of lengths that torch.export suggests, as far as it is inside the wanted one."""
    found = re.search(r"time = Dim\('time'(?:, min=(\d+))?(?:, max=(\d+))?\)", message)
    if found is None:
        return ranges
    low, high = int(found[1] or 1), int(found[2] or LONGEST_TEXT)
    return tuple((n, max(a, low), min(b, high)) if n == "time" and low < high else (n, a, b) for n, a, b in ranges)


def _reason(err: Exception) -> str:
    lines = [line.strip(" -") for line in str(err).strip().splitlines() if line.strip()]
    return " ".join(lines[:2])[:400].rstrip(".")


def _exported(module: nn.Module, inputs: tuple[TensorSpec, ...], example: tuple[Tensor, ...], ranges: Ranges) -> ExportedProgram:
    dims = {name: Dim(name, min=low, max=high) for name, low, high in ranges}
    shapes = tuple({i: dims[d] for i, d in enumerate(s.shape) if isinstance(d, str)} for s in inputs)
    with quiet(), torch.no_grad():
        exported = torch.export.export(module, example, dynamic_shapes=(shapes,), strict=False)
        ours = {op: made for op, made in _DECOMPOSITIONS.items() if any(node.target is op for node in exported.graph.nodes)}
        return exported.run_decompositions(ours) if ours else exported


def _cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The running maximum as operations that every runtime has: the largest of a triangle of copies."""
    rows = x.movedim(dim, -1)
    at = torch.arange(rows.shape[-1], device=x.device)
    seen = torch.where(at <= at[:, None], rows.unsqueeze(-2), rows[..., :1].unsqueeze(-1))  # the first value is always seen
    return seen.amax(-1).movedim(-1, dim), seen.argmax(-1).movedim(-1, dim)


_DECOMPOSITIONS: dict[Any, Any] = {torch.ops.aten.cummax.default: _cummax}
"""Operations that most runtimes lack, in others that they have."""


def bounded(program: Program, rows: int) -> ExportedProgram:
    """Return the program with at most `rows` rows, for runtimes that plan their memory by the largest batch."""
    ranges = tuple((n, low, min(high, rows) if n == "batch" else high) for n, low, high in program.signature.ranges)
    example = tuple(t[: max(2, min(len(t), rows))] for t in program.example)
    dims = {name: Dim(name, min=low, max=high) for name, low, high in ranges}
    shapes = tuple({i: dims[d] for i, d in enumerate(s.shape) if isinstance(d, str)} for s in program.signature.inputs)
    with quiet(), torch.no_grad():
        return torch.export.export(program.exported.module(), example, dynamic_shapes=shapes, strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back warnings, log messages and lines on stdout of an exporter: what matters of them is in its exception."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _output_shape(output: Tensor, inputs: tuple[TensorSpec, ...], example: tuple[Tensor, ...]) -> tuple[int | str, ...]:
    """Return the shape with the names of the dimensions that follow an input's: the first is the batch, the second of texts the length."""
    time = next((v.shape[s.shape.index("time")] for s, v in zip(inputs, example, strict=True) if "time" in s.shape), None)
    return tuple("batch" if i == 0 else "time" if i == 1 and time == n and output.ndim == 3 else n for i, n in enumerate(output.shape))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
