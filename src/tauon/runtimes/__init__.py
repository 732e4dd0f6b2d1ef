"""A trained model as a program for other runtimes (ONNX Runtime, OpenVINO, ...): traced once, written, loaded, and called like the model.

    program = trace(task, model, batch)                  # torch.export of the model, as its task calls it
    FORMATS["onnx"].write(program, folder)
    model = FORMATS["onnx"].load(folder, program.signature)
    task.infer(model, batch)                             # the same call, computed by ONNX Runtime

Does not depend on runs or recipes. `export` adds everything that has to be beside the program; `compress` measures in the runtime that will serve.
"""

from tauon.runtimes.base import Format, RuntimeModule, format_called
from tauon.runtimes.compare import Agreement, agreement
from tauon.runtimes.program import Program, trace
from tauon.runtimes.signature import Signature, TensorSpec
from tauon.runtimes.table import FORMATS

__all__ = ["FORMATS", "Agreement", "Format", "Program", "RuntimeModule", "Signature", "TensorSpec", "agreement", "format_called", "trace"]
