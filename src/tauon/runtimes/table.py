"""Every format by name. A new one is one file with a `Format`, and its line here."""

from tauon.runtimes.base import Format
from tauon.runtimes.onnx import ONNX

__all__ = ["FORMATS"]

FORMATS: dict[str, Format] = {format.name: format for format in (ONNX,)}
