"""AOTInductor: model.pt2, compiled by torch for this kind of CPU. Loading it runs machine code: load only what you compiled yourself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauon.errors import DataError
from tauon.runtimes.base import Format, RuntimeModule, last_cause
from tauon.runtimes.program import Program, quiet
from tauon.runtimes.signature import Signature

__all__ = ["AOTI", "load_aoti", "write_aoti"]

FILE = "model.pt2"


def write_aoti(program: Program, folder: Path) -> list[Path]:
    """Write `model.pt2`, which needs a C++ compiler. `DataError` says what could not be compiled."""
    with quiet(), torch.no_grad():
        try:
            compiled = torch._inductor.aoti_compile_and_package(program.exported, package_path=str(folder / FILE))
        except Exception as err:  # inductor raises many types
            raise DataError(f"this model cannot be compiled by AOTInductor: {last_cause(err)}") from err
    return [Path(compiled)]


def load_aoti(folder: Path, signature: Signature) -> RuntimeModule:
    """Load `model.pt2`: a shared library for the torch version and the kind of CPU that it was compiled with."""
    try:
        with quiet():
            compiled: Any = torch._inductor.aoti_load_package(str(folder / FILE))
    except Exception as err:
        raise DataError(
            f"{folder / FILE}: cannot be loaded: {last_cause(err)}. It is machine code of the torch version that compiled it, for the same "
            "kind of CPU: export it again on this machine."
        ) from err

    def run(tensors: list[Tensor]) -> Sequence[Tensor]:
        outputs = compiled(*tensors)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return RuntimeModule(signature, run, runtime="aoti")


AOTI = Format(
    "aoti", "AOTInductor: torch without Python, on machines like this one", write_aoti, load_aoti,
    needs="machine code: the same torch version and kind of CPU; load only what you compiled yourself",
)  # fmt: skip
