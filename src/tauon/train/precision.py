"""Precision, activation checkpointing and compilation of a model. `tauon.plan` decides the settings; this file applies them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from tauon.distributed import needs_batch_statistics
from tauon.errors import Problem, RecipeError
from tauon.models import Model, freeze_running_stats

__all__ = ["Precision", "apply_checkpointing_and_compile", "gather_dtype"]


@dataclass(frozen=True)
class Precision:
    """Precision of matrix products on a device: bf16 or fp32."""

    name: str
    device: str

    def context(self) -> AbstractContextManager[object]:
        """Return the context manager for forward passes."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)


def gather_dtype(device: torch.device, precision: Precision) -> torch.dtype | None:
    """Return the type in which FSDP2 gathers weights: bf16 on GPUs that compute in bf16. None: the stored type (on a CPU, so that a layout
    computes the same as one process).
    """
    return torch.bfloat16 if device.type == "cuda" and precision.name == "bf16" else None


def apply_checkpointing_and_compile(model: Model, *, checkpointing: bool, compiled: bool) -> None:
    """Apply activation checkpointing, then compile, block by block and in place: parameter names do not change."""
    for block in model.blocks_to_compile():
        if checkpointing:
            if compiled and needs_batch_statistics(block):
                message = "cannot be combined with train.activation_checkpointing for a model with batch norm. Set one of them to false."
                raise RecipeError([Problem("train.compile", message)])
            block.forward = _recomputed(block)  # type: ignore[method-assign]
        if compiled:
            block.compile(dynamic=False)


def _recomputed(block):  # type: ignore[no-untyped-def]
    from torch.utils.checkpoint import checkpoint

    forward = block.forward
    more: Any = {}
    if needs_batch_statistics(block):  # the second pass must not update running statistics again
        more["context_fn"] = lambda: (nullcontext(), freeze_running_stats(block))

    def run(*args):  # type: ignore[no-untyped-def]
        # Random numbers are restored for the second pass, so that dropout is the same both times.
        return checkpoint(forward, *args, use_reentrant=False, **more) if torch.is_grad_enabled() else forward(*args)

    return run
