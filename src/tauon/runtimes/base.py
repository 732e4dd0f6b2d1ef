"""`RuntimeModule`: a program in another runtime, called like the model; `Format`: how one kind of program is written and loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.errors import DataError
from tauon.runtimes.program import Program
from tauon.runtimes.signature import Signature

__all__ = ["Format", "RuntimeModule", "format_called", "last_cause", "threads_for"]

_FEW_PRODUCTS = 2**18


class RuntimeModule(nn.Module):
    """A loaded program. Tasks call it like the model that it was traced from; it computes on the CPU and has no gradient."""

    def __init__(
        self, signature: Signature, run: Callable[[list[Tensor]], Sequence[Tensor]], *, runtime: str, most_rows: int | None = None
    ) -> None:
        """`run` computes the outputs from the inputs, both in the order of the signature. Batches above `most_rows` are computed in parts."""
        super().__init__()
        self.signature, self.run, self.runtime, self.most_rows = signature, run, runtime, most_rows
        self.gives_logits = signature.logits
        self.training = False
        self._row = _plain_row(signature) if most_rows is None else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the outputs. A model of one tensor, which most are, is called past the checks of `nn.Module`: a small one takes half the time."""
        if self._row is not None and len(args) == 1 and not kwargs and not self._forward_hooks and not self._forward_pre_hooks:
            x = args[0]
            if x.shape[1:] == self._row and x.is_cpu:
                return self.run([x if x.is_contiguous() and not x.requires_grad else x.detach().contiguous()])[0]
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = [t.detach().cpu() for t in self.signature.tensors(args, kwargs)]
        inputs, length = self._long_enough(tensors)
        rows = len(inputs[0])
        step = self.most_rows or rows
        with torch.no_grad():
            parts = [self.run([t[i : i + step].contiguous() for t in inputs]) for i in range(0, rows, max(1, step))]
        outputs = list(parts[0]) if len(parts) == 1 else [torch.cat(several) for several in zip(*parts, strict=True)]
        if length is not None:
            outputs = [o[:, :length] if "time" in s.shape else o for o, s in zip(outputs, self.signature.outputs, strict=True)]
        return outputs[0] if len(self.signature.outputs) == 1 else tuple(outputs)

    def _long_enough(self, tensors: list[Tensor]) -> tuple[list[Tensor], int | None]:
        """Pad texts that are shorter than the program allows, at their end: segment -1, which no token sees. Return their own length, too."""
        length = next((t.shape[1] for s, t in zip(self.signature.inputs, tensors, strict=True) if "time" in s.shape), None)
        short = 0 if length is None else self.signature.limits("time")[0] - length
        if short <= 0:
            return tensors, None
        pads = [
            F.pad(t, (0, short), value=-1 if s.name == "segments" else 0) if "time" in s.shape else t
            for s, t in zip(self.signature.inputs, tensors, strict=True)
        ]
        return pads, length

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, which the program of a language model computed already."""
        return hidden


def _plain_row(signature: Signature) -> tuple[int, ...] | None:
    """Return the shape of an example, where the program is a function of one tensor whose only dynamic dimension is the batch."""
    (only, *others), outputs = signature.inputs, signature.outputs
    fixed = all(isinstance(n, int) for n in only.shape[1:])
    return tuple(map(int, only.shape[1:])) if fixed and not others and only.at == 0 and len(outputs) == 1 else None


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
    """Load what `write` wrote. The number of threads is torch's; `threads_for` says where it is 1."""
    needs: str = ""
    """What the loaded program depends on: machine code, a version."""
    extra: str = ""
    """Optional dependencies: `pip install 'tauon[EXTRA]'`."""


def threads_for(signature: Signature) -> int:
    """Return the number of threads for a program: torch's, and 1 where handing work to another thread takes longer than the work.

    Measured on a processor with 2 cores: one thread is up to twice as fast for a perceptron of 0.1 million products at batch 1, 8 and 64,
    and slower from batch 8 on for a convolution network of 4 million.
    """
    return 1 if 0 < signature.products < _FEW_PRODUCTS else torch.get_num_threads()


def format_called(name: str, formats: Mapping[str, Format]) -> Format:
    """Return the format. `DataError` lists those that exist."""
    if name not in formats:
        raise DataError(f"no format is called {name!r}; available: {', '.join(formats)}")
    return formats[name]


def last_cause(err: BaseException) -> str:
    """Return the first line of the exception that an exporter's exception goes back to: it names the operation."""
    while err.__cause__ is not None:
        err = err.__cause__
    lines = str(err).strip().splitlines()
    return f"{type(err).__name__}: {lines[0][:300] if lines else ''}".rstrip(": ")
