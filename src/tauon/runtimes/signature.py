"""`Signature`: the tensors that a traced program takes and returns, and how they follow from the arguments of the model's call. JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tauon.errors import DataError

__all__ = ["Signature", "TensorSpec"]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a program."""

    name: str
    dtype: str
    """float32, int64, int32, ..."""
    shape: tuple[int | str, ...]
    """Sizes; a dimension that may differ from call to call has a name: batch, time."""
    at: int | str = 0
    """Argument of the model's call: its position, or its keyword."""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "at": self.at}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> TensorSpec:
        return cls(str(found["name"]), str(found["dtype"]), tuple(found["shape"]), found["at"])


@dataclass(frozen=True)
class Signature:
    """How a traced program is called, and what it returns."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    """One tensor, or several that the model returns as a tuple."""
    fixed: tuple[tuple[str, Any], ...] = ()
    """Keyword arguments that were constant when the model was traced: (name, value)."""
    logits: bool = False
    """The program ends in logits over the vocabulary, although the traced model returns hidden states."""
    ranges: tuple[tuple[str, int, int], ...] = ()
    """Smallest and largest size of named dimensions: (name, from, to)."""
    products: int = 0
    """Multiplications of one example in matrix products and convolutions; of texts, of the length that was traced. 0: not counted."""

    def limits(self, name: str) -> tuple[int, int]:
        """Return the smallest and the largest size of a named dimension."""
        return next(((low, high) for n, low, high in self.ranges if n == name), (1, 2**31 - 1))

    def tensors(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Return the program's inputs for a call of the model.

        Raises:
            DataError: an argument that the program does not take, or takes with another constant value, or that is missing.
        """
        given: dict[int | str, Any] = {i: v for i, v in enumerate(args) if v is not None}
        given |= {k: v for k, v in kwargs.items() if v is not None and (k, v) not in self.fixed}
        found = []
        for spec in self.inputs:
            if spec.at not in given:
                raise DataError(f"the exported model needs {spec.name!r}, which this call does not give")
            found.append(given.pop(spec.at))
        if given:
            raise DataError(
                f"the exported model takes {', '.join(s.name for s in self.inputs)}; this call also gives argument {next(iter(given))!r}. "
                "Export the model with an example of such data."
            )
        for spec, value in zip(self.inputs, found, strict=True):
            for name, size in zip(spec.shape, value.shape, strict=False):
                if name == "time" and size > (most := self.limits("time")[1]):
                    raise DataError(f"{spec.name} has {size:,} tokens, but the exported model takes at most {most:,}")
            if value.ndim != len(spec.shape) or any(isinstance(n, int) and n != m for n, m in zip(spec.shape, value.shape, strict=True)):
                raise DataError(f"{spec.name} has shape {tuple(value.shape)}, but the exported model takes {spec.shape}")
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": [s.to_json() for s in self.inputs],
            "outputs": [s.to_json() for s in self.outputs],
            "fixed": dict(self.fixed),
            "logits": self.logits,
            "ranges": {name: [low, high] for name, low, high in self.ranges},
            "products": self.products,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Signature:
        inputs, outputs = (tuple(map(TensorSpec.from_json, found[name])) for name in ("inputs", "outputs"))
        ranges = tuple((str(n), int(low), int(high)) for n, (low, high) in found.get("ranges", {}).items())
        return cls(inputs, outputs, tuple(found["fixed"].items()), bool(found["logits"]), ranges, int(found.get("products", 0)))
