"""`RuntimeModule`: a program in another runtime, called like the model; `Format`: how one kind of program is written and loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tauon.errors import DataError
from tauon.runtimes.program import Program
from tauon.runtimes.signature import Signature

__all__ = ["Format", "RuntimeModule", "format_called"]


class RuntimeModule(nn.Module):
    """A loaded program. Tasks call it like the model that it was traced from; it computes on the CPU and has no gradient."""

    def __init__(self, signature: Signature, run: Callable[[list[Tensor]], Sequence[Tensor]], *, runtime: str) -> None:
        """`run` computes the outputs from the inputs, both in the order of the signature."""
        super().__init__()
        self.signature, self.run, self.runtime = signature, run, runtime
        self.gives_logits = signature.logits
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            outputs = self.run([t.detach().cpu().contiguous() for t in self.signature.tensors(args, kwargs)])
        return outputs[0] if len(self.signature.outputs) == 1 else tuple(outputs)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, which the program of a language model computed already."""
        return hidden


class Writes(Protocol):
    def __call__(self, program: Program, folder: Path) -> list[Path]: ...


class Loads(Protocol):
    def __call__(self, folder: Path, signature: Signature) -> RuntimeModule: ...


@dataclass(frozen=True)
class Format:
    """A kind of program for one runtime."""

    name: str
    about: str
    """What runs it, in a few words."""
    write: Writes
    """Write the program into an existing folder and return the files. `DataError` names an operation that the runtime lacks."""
    load: Loads
    """Load what `write` wrote. The number of threads is torch's."""
    extra: str = ""
    """Optional dependencies: `pip install 'tauon[EXTRA]'`."""


def format_called(name: str, formats: Mapping[str, Format]) -> Format:
    """Return the format. `DataError` lists those that exist."""
    if name not in formats:
        raise DataError(f"no format is called {name!r}; available: {', '.join(formats)}")
    return formats[name]
