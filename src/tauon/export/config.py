"""The recipe's section `export`: formats to write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue

from tauon.config import Config, Count

__all__ = ["FORMAT_NAMES", "PROGRAMS", "WEIGHTS", "ExportConfig"]

PROGRAMS = ("onnx", "openvino", "executorch", "aoti")
"""Formats that compute: a program for a runtime."""
WEIGHTS = ("huggingface", "peft", "gguf")
"""Formats of weights, for programs that know the architecture."""
FORMAT_NAMES = (*PROGRAMS, *WEIGHTS)


class ExportConfig(Config):
    """Formats that a trained model is exported to: `export: [onnx, huggingface]`, or with settings `export: {to: [onnx], examples: 100}`."""

    to: tuple[str, ...] = ("onnx",)
    """onnx, openvino, executorch, aoti, huggingface, peft, gguf."""
    examples: Count = Field(256, ge=8)
    """Held-out examples on which the exported program must agree with the model."""
    latency: bool = True
    """Measure the time of a batch of 1 and of 64."""

    @model_validator(mode="before")
    @classmethod
    def _list_of_formats(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"to": [v.strip() for v in value.split(",")]}
        return {"to": list(value)} if isinstance(value, (list, tuple)) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        name = {"enum": [*FORMAT_NAMES]}
        return {"anyOf": [super().__get_pydantic_json_schema__(core, handler), {"type": "array", "items": name, "minItems": 1}, name]}

    def problems(self) -> Iterator[tuple[str, str]]:
        names = list(self.raw_value("to"))
        unknown = [n for n in names if n not in FORMAT_NAMES]
        if unknown:
            yield "to", f"no format is called {unknown[0]!r}; available: {', '.join(FORMAT_NAMES)}"
        elif not names or len(set(names)) != len(names):
            yield "to", f"{names}: expected one or more formats, each once"
