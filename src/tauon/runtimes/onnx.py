"""ONNX: written by torch's exporter, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauon.errors import DataError, MissingExtra
from tauon.runtimes.base import Format, RuntimeModule, last_cause, threads_for
from tauon.runtimes.onnx_int8 import has_integers, integer_products, repair_int8
from tauon.runtimes.program import Program, quiet
from tauon.runtimes.signature import Signature

__all__ = ["ONNX", "load_onnx", "onnx_session", "write_onnx"]

FILE = "model.onnx"


def write_onnx(program: Program, folder: Path) -> list[Path]:
    """Write `model.onnx`, with its weights inside up to 2 GB. `DataError` names an operation that ONNX lacks."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as err:
        raise MissingExtra("writing ONNX", "onnx") from err
    names = [s.name for s in program.signature.inputs], [s.name for s in program.signature.outputs]
    with quiet():
        try:
            found: Any = torch.onnx.export(
                program.exported, program.example, dynamo=True, input_names=names[0], output_names=names[1], verbose=False, optimize=True,
                custom_translation_table=integer_products(program),
            )  # fmt: skip
        except Exception as err:  # the exporter raises many types
            raise DataError(f"this model cannot be written as ONNX: {last_cause(err)}") from err
        found.save(folder / FILE)
    if has_integers(program):
        repair_int8(folder / FILE)
    return sorted(folder.glob(f"{FILE}*"))


def load_onnx(folder: Path, signature: Signature) -> RuntimeModule:
    """Load `model.onnx` into ONNX Runtime on the CPU."""
    session = onnx_session(folder / FILE, threads_for(signature))
    names, outputs = [s.name for s in signature.inputs], [o.name for o in session.get_outputs()]
    only = names[0]

    def run_one(tensors: list[Tensor]) -> Sequence[Tensor]:
        return [torch.from_numpy(session.run(outputs, {only: tensors[0].numpy()})[0])]

    def run(tensors: list[Tensor]) -> Sequence[Tensor]:
        found = session.run(outputs, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
        return [torch.from_numpy(output) for output in found]

    return RuntimeModule(signature, run_one if len(names) == len(outputs) == 1 else run, runtime="onnxruntime")


def onnx_session(file: Path, threads: int | None = None) -> Any:
    """Return an ONNX Runtime session with `threads` (default: torch's number), which do not spin between calls."""
    try:
        import onnxruntime
    except ImportError as err:
        raise MissingExtra("running ONNX", "onnx") from err
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime's own types
        raise DataError(f"{file}: ONNX Runtime cannot load it: {str(err).strip().splitlines()[0]}") from err


ONNX = Format("onnx", "ONNX Runtime, on servers and small devices", write_onnx, load_onnx, extra="onnx")
