"""Candidates of the search: which steps for which runtime, and how a compressed model gets there."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tauon.compress.base import CompressStep
from tauon.compress.compress import Compressed, model_bytes
from tauon.compress.graph import GraphInt8
from tauon.compress.parts import groups_of
from tauon.compress.steps import Bf16, Int8, Int8Graph, Int8WeightOnly, Structured
from tauon.errors import DataError
from tauon.runtimes import FORMATS, trace
from tauon.tasks import Task
from tauon.types import Batch

__all__ = ["Candidate", "RuntimeName", "Target", "candidates", "compiled", "serve"]

RuntimeName = Literal["eager", "compiled", "onnx", "openvino", "executorch"]
Target = Literal["cpu", "gpu", "mobile"]
GRAPHS: tuple[tuple[RuntimeName, str], ...] = (("openvino", "OpenVINO"), ("onnx", "ONNX Runtime"))
"""Runtimes of graphs with int8 activations, and their names."""


@dataclass(frozen=True)
class Candidate:
    """Steps, and the runtime for their result."""

    name: str
    steps: tuple[CompressStep, ...]
    runtime: RuntimeName
    after: str = ""
    """Name of a milder candidate: this one is tried only if that one keeps the promise."""


def candidates(model: nn.Module, *, target: Target = "cpu") -> list[Candidate]:
    """Return sensible candidates for a model, those that usually win first.

    Raises:
        DataError: nothing here runs on this target.
    """
    if target == "gpu" and not torch.cuda.is_available():
        raise DataError("target gpu: this machine has no GPU to measure on. Run it on one that has, or set target: cpu.")
    kinds = {type(m) for m in model.modules()}
    if not kinds & {nn.Linear, nn.Conv2d}:
        names = sorted({type(m).__name__ for m in model.modules() if any(True for _ in m.parameters(recurse=False))})
        raise DataError(
            f"no layer of this model can be compressed: it is made of {', '.join(names) or 'nothing'}, without Linear or Conv2d"
        )
    return list(_candidates(kinds, target, any(True for _ in groups_of(model))))


def int8_sums_saturate() -> bool:
    """Return whether this processor is an x86 without VNNI: it adds two products of int8 in 16 bits, which overflow with 8 bits of activation."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return not (torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported())


def _candidates(kinds: set[type[Any]], target: Target, can_remove: bool) -> Iterator[Candidate]:
    graph = Int8Graph(reduce_range=target == "cpu" and int8_sums_saturate())
    if target == "mobile":
        if "executorch" in FORMATS:
            yield Candidate("int8 graph, ExecuTorch", (Int8Graph(),), "executorch")
        yield Candidate("int8 graph, ONNX Runtime", (Int8Graph(),), "onnx")
        yield Candidate("int8 weights", (Int8WeightOnly(),), "eager")
        return
    if target == "cpu":
        yield Candidate("int8 graph, OpenVINO", (graph,), "openvino")
        yield Candidate("int8 graph, ONNX Runtime", (graph,), "onnx")
        if can_remove:
            for less, share in (("", 0.25), ("25%", 0.4), ("40%", 0.5)):
                for runtime, name in GRAPHS:
                    after = f"structured {less} + int8 graph, {name}" if less else ""
                    yield Candidate(f"structured {share:.0%} + int8 graph, {name}", (Structured(remove=share), graph), runtime, after)
        yield Candidate("int8 graph, ranges to the largest value, ONNX Runtime", (graph.model_copy(update={"largest": True}),), "onnx")
    if nn.Conv2d not in kinds or target == "gpu":
        if target == "cpu":
            yield Candidate("int8 dynamic, ONNX Runtime", (Int8(),), "onnx")
        yield Candidate("int8 dynamic", (Int8(),), "eager")
        yield Candidate("int8 dynamic, compiled", (Int8(),), "compiled")
    yield Candidate("bf16", (Bf16(),), "eager")
    yield Candidate("int8 weights", (Int8WeightOnly(),), "eager")


def compiled(model: nn.Module) -> nn.Module:
    """Return the model under torch.compile, which is compiled again for each batch size."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)  # inductor imports what torch deprecates
        made: Any = torch.compile(model, dynamic=False)
    return made  # type: ignore[no-any-return]


def serve(compressed: Compressed, task: Task, batch: Batch, runtime: RuntimeName, folder: Path) -> tuple[nn.Module, int]:
    """Return (the model in a runtime, called like the model; bytes of its weights or file).

    Args:
        compressed: the model.
        task: how it is called.
        batch: real examples, to trace it with.
        runtime: `compiled` is torch.compile.
        folder: an empty folder, for runtimes that read files.

    Raises:
        DataError: the runtime does not take this model; the message says why.
    """
    model = compressed.model
    if runtime in ("eager", "compiled"):
        if isinstance(model, GraphInt8):
            raise DataError("an int8 graph is for ONNX Runtime or ExecuTorch: torch only imitates its integers")
        return compiled(model) if runtime == "compiled" else model, model_bytes(model)
    program = model.program() if isinstance(model, GraphInt8) else trace(task, model, batch)
    folder.mkdir(parents=True, exist_ok=True)
    files = FORMATS[runtime].write(program, folder)
    return FORMATS[runtime].load(folder, program.signature), sum(f.stat().st_size for f in files)
