"""ExecuTorch: model.pte, for phones and embedded devices. Operations that XNNPACK knows are computed by it.

ExecuTorch plans all memory when the program is written, for the largest batch (`MOST_ROWS`) and the longest text: larger batches are computed
in parts here, and an app has to do the same. Sizes that depend on values (not on shapes) cannot be planned and are refused.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from tauon.errors import DataError, MissingExtra
from tauon.runtimes.base import Format, RuntimeModule, last_cause
from tauon.runtimes.program import Program, bounded, quiet
from tauon.runtimes.signature import Signature

__all__ = ["EXECUTORCH", "MOST_ROWS", "load_executorch", "write_executorch"]

FILE = "model.pte"
MOST_ROWS = 64
"""Rows that memory is planned for."""


def write_executorch(program: Program, folder: Path) -> list[Path]:
    """Write `model.pte`. `DataError` names what ExecuTorch lacks."""
    with quiet(), _silent_stderr():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        except ImportError as err:
            raise MissingExtra("writing for ExecuTorch", "executorch") from err
        try:
            edge = to_edge_transform_and_lower(bounded(program, MOST_ROWS), partitioner=[XnnpackPartitioner()])
            content = edge.to_executorch().buffer
        except Exception as err:  # executorch raises many types
            raise DataError(f"this model cannot be written for ExecuTorch: {last_cause(err)}") from err
    (folder / FILE).write_bytes(content)
    return [folder / FILE]


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

    module = RuntimeModule(signature, run, runtime="executorch", most_rows=MOST_ROWS)
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
    needs=f"memory is planned for {MOST_ROWS} rows at once",
)  # fmt: skip
