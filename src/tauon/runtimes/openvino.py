"""OpenVINO IR: model.xml and model.bin, run by OpenVINO, which is fastest on CPUs, GPUs and NPUs of Intel."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauon.errors import DataError, MissingExtra
from tauon.runtimes.base import Format, RuntimeModule, last_cause, threads_for
from tauon.runtimes.onnx import write_onnx
from tauon.runtimes.onnx_int8 import has_integers
from tauon.runtimes.program import Program, quiet
from tauon.runtimes.signal_stack import signal_stack_kept
from tauon.runtimes.signature import Signature

__all__ = ["OPENVINO", "load_openvino", "write_openvino"]

FILE = "model.xml"


def write_openvino(program: Program, folder: Path) -> list[Path]:
    """Write `model.xml` and `model.bin`, weights in float32, or int8 where the program has such. `DataError` names an operation that OpenVINO lacks."""
    openvino = _library()
    with quiet():
        model = _converted(openvino, program)
        for ports, specs in ((model.inputs, program.signature.inputs), (model.outputs, program.signature.outputs)):
            for port, spec in zip(ports, specs, strict=True):
                port.get_tensor().set_names({spec.name})
        openvino.save_model(model, folder / FILE, compress_to_fp16=False)
    return sorted(folder.glob("model.*"))


def _converted(openvino: Any, program: Program) -> Any:
    first: Exception | None = None
    if not has_integers(program):  # from torch's graph, integers would be computed as floats
        try:
            model = openvino.convert_model(program.exported, example_input=program.example, verbose=False)
            _compiled(openvino, model)  # some operations are only missing in the runtime
            return model
        except Exception as err:  # openvino raises types of its own
            first = err
    try:
        return _by_onnx(openvino, program)
    except Exception as err:
        before = f"{_operation(first)}; " if first is not None else ""
        raise DataError(f"this model cannot be written for OpenVINO: {before}by way of ONNX: {_operation(err)}") from err


def _by_onnx(openvino: Any, program: Program) -> Any:
    """Convert an ONNX file of the program: OpenVINO knows operations there that it does not know in torch's graph."""
    with tempfile.TemporaryDirectory() as place:
        write_onnx(program, Path(place))
        model = openvino.convert_model(Path(place) / "model.onnx", verbose=False)
        _compiled(openvino, model)
        return model


def _operation(err: Exception) -> str:
    """Return the line of OpenVINO's message that names what it lacks."""
    lines = [line.strip(" -:") for line in str(err).splitlines() if line.strip() and not line.startswith(("Check '", "Exception from"))]
    named = [line for line in lines if "No conversion rule" in line or "not supported" in line.lower() or "aten" in line]
    return (named or lines or [type(err).__name__])[0][:300]


def load_openvino(folder: Path, signature: Signature) -> RuntimeModule:
    """Load `model.xml` on the CPU, computing in float32 also where the CPU has bfloat16."""
    openvino = _library()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads_for(signature), "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # a busy core would be waited for
    }  # fmt: skip
    try:
        compiled = _compiled(openvino, folder / FILE, settings)
    except Exception as err:  # openvino's own types
        raise DataError(f"{folder / FILE}: OpenVINO cannot load it: {last_cause(err)}") from err

    def run(tensors: list[Tensor]) -> Sequence[Tensor]:
        found: Any = compiled([tensor.numpy() for tensor in tensors])  # new arrays
        return [torch.from_numpy(found[i]) for i in range(len(signature.outputs))]

    return RuntimeModule(signature, run, runtime="openvino")


def _compiled(openvino: Any, model: Any, settings: dict[str, Any] | None = None) -> Any:
    with signal_stack_kept():
        return openvino.Core().compile_model(model, "CPU", settings or {})


def _library() -> Any:
    try:
        import openvino
    except ImportError as err:
        raise MissingExtra("OpenVINO", "openvino") from err
    return openvino


OPENVINO = Format("openvino", "OpenVINO, on CPUs, GPUs and NPUs of Intel", write_openvino, load_openvino, extra="openvino")
