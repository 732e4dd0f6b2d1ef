"""ExecuTorch: model.pte, for phones and embedded devices. Operations that XNNPACK knows are computed by it.

ExecuTorch plans all memory when the program is written, for the largest batch (`MOST_ROWS`) and the longest text: larger batches are computed
in parts here, and an app has to do the same. Sizes that depend on values (not on shapes) cannot be planned and are refused.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from tauon.errors import DataError, MissingExtra
from tauon.runtimes.base import Format, RuntimeModule, last_cause
from tauon.runtimes.program import Program, bounded, quiet
from tauon.runtimes.signature import Signature

__all__ = ["EXECUTORCH", "MOST_ROWS", "load_executorch", "write_executorch"]

FILE, ROWS = "model.pte", "rows.json"
MOST_ROWS = 64
"""Rows that memory is planned for."""


def write_executorch(program: Program, folder: Path) -> list[Path]:
    """Write `model.pte`, and the number of rows that it takes. `DataError` names what ExecuTorch lacks.

    Where ExecuTorch cannot run a program of any number of rows (it plans some convolutions for too few), the program takes one row at a time.
    """
    rows, content = MOST_ROWS, _lowered(lambda: bounded(program, MOST_ROWS))
    try:
        _run_example(content, program)
    except Exception:  # executorch's own types; a program of one row is tried, and the caller runs it
        rows, content = 1, _lowered(lambda: _one_row(program))
    (folder / FILE).write_bytes(content)
    (folder / ROWS).write_text(json.dumps({"rows": rows}), encoding="utf-8")
    return [folder / FILE, folder / ROWS]


def _lowered(exported: Callable[[], ExportedProgram]) -> bytes:
    with quiet(), _silent_stderr():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        except ImportError as err:
            raise MissingExtra("writing for ExecuTorch", "executorch") from err
        try:
            edge = to_edge_transform_and_lower(exported(), partitioner=[XnnpackPartitioner()])
            return bytes(edge.to_executorch().buffer)
        except Exception as err:  # executorch raises many types
            raise DataError(f"this model cannot be written for ExecuTorch: {last_cause(err)}") from err


def _run_example(content: bytes, program: Program) -> None:
    from executorch.runtime import Runtime, Verification

    with quiet(), _silent_stderr():
        method: Any = Runtime.get().load_program(content, verification=Verification.Minimal).load_method("forward")
        for rows in (1, 3, MOST_ROWS):
            chosen = torch.arange(rows) % len(program.example[0])
            method.execute([t[chosen].contiguous() for t in program.example])


def _one_row(program: Program) -> ExportedProgram:
    """Return the program for one row. The length of a text stays dynamic."""
    times = next((r for r in program.signature.ranges if r[0] == "time"), None)
    dims = {} if times is None else {"time": Dim("time", min=times[1], max=times[2])}
    shapes = tuple({i: dims[d] for i, d in enumerate(s.shape) if isinstance(d, str) and d in dims} for s in program.signature.inputs)
    example = tuple(t[:1].contiguous() for t in program.example)
    with torch.no_grad():
        return torch.export.export(program.exported.module(check_guards=False), example, dynamic_shapes=shapes, strict=False)


def load_executorch(folder: Path, signature: Signature) -> RuntimeModule:
    """Load `model.pte` into the runtime of ExecuTorch's wheel."""
    try:
        with quiet():
            from executorch.runtime import Runtime, Verification
    except ImportError as err:
        raise MissingExtra("running ExecuTorch", "executorch") from err
    try:
        program = Runtime.get().load_program((folder / FILE).read_bytes(), verification=Verification.Minimal)
        method: Any = program.load_method("forward")
    except Exception as err:  # executorch raises RuntimeError, and others
        raise DataError(f"{folder / FILE}: ExecuTorch cannot load it: {last_cause(err)}") from err

    def run(tensors: list[Tensor]) -> Sequence[Tensor]:
        try:
            return [output.clone() for output in method.execute(tensors)]
        except RuntimeError as err:
            raise DataError(f"{folder / FILE}: ExecuTorch cannot run it: {last_cause(err)}") from err

    rows = json.loads((folder / ROWS).read_text(encoding="utf-8"))["rows"] if (folder / ROWS).is_file() else MOST_ROWS
    module = RuntimeModule(signature, run, runtime="executorch", most_rows=int(rows))
    module.program = program  # type: ignore[assignment]  # the method reads its memory
    return module


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep back what C++ code prints to stderr."""
    with tempfile.TemporaryFile() as sink:
        before = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)


EXECUTORCH = Format(
    "executorch", "ExecuTorch, on phones and embedded devices", write_executorch, load_executorch, extra="executorch",
    needs=f"memory is planned for {MOST_ROWS} rows at once, or for one where rows.json says so",
)  # fmt: skip
