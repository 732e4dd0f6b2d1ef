"""Every format by name. A new one is one file with a `Format`, and its line here."""

from tauon.runtimes.aoti import AOTI
from tauon.runtimes.base import Format
from tauon.runtimes.executorch import EXECUTORCH
from tauon.runtimes.onnx import ONNX
from tauon.runtimes.openvino import OPENVINO

__all__ = ["FORMATS"]

FORMATS: dict[str, Format] = {format.name: format for format in (ONNX, OPENVINO, EXECUTORCH, AOTI)}
