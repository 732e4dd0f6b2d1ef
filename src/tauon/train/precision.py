"""In what numbers a model computes, and what of it is computed twice or compiled. `tauon.plan` chooses, these do it."""

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
    """bf16 or fp32 on a device."""

    name: str
    device: str

    def context(self) -> AbstractContextManager[object]:
        """What forward passes run under."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)


def gather_dtype(device: torch.device, precision: Precision) -> torch.dtype | None:
    """In which FSDP2 gathers the weights of blocks: bf16 on GPUs that compute in it. None: as they are kept (on a CPU, so that what a
    layout computes is what one process computes).
    """
    return torch.bfloat16 if device.type == "cuda" and precision.name == "bf16" else None


def apply_checkpointing_and_compile(model: Model, *, checkpointing: bool, compiled: bool) -> None:
    """Activation checkpointing, then compile, block by block and in place: parameter names do not change."""
    for block in model.blocks_to_compile():
        if checkpointing:
            if compiled and needs_batch_statistics(block):
                message = "cannot be true together with activation_checkpointing where a model has batch norm. Set one of them to false."
                raise RecipeError([Problem("train.compile", message)])
            block.forward = _recomputed(block)  # type: ignore[method-assign]
        if compiled:
            block.compile(dynamic=False)


def _recomputed(block):  # type: ignore[no-untyped-def]
    from torch.utils.checkpoint import checkpoint

    forward = block.forward
    more: Any = {}
    if needs_batch_statistics(block):  # the second pass must not move running statistics again
        more["context_fn"] = lambda: (nullcontext(), freeze_running_stats(block))

    def run(*args):  # type: ignore[no-untyped-def]
        # Random numbers are restored for the second pass, so that dropout is the same both times.
        return checkpoint(forward, *args, use_reentrant=False, **more) if torch.is_grad_enabled() else forward(*args)

    return run
