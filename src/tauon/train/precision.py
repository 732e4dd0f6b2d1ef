"""Where and in what numbers a job computes: device, precision, compile. Each choice comes with the reason it was made."""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from tauon.distributed import needs_batch_statistics
from tauon.errors import Problem, RecipeError
from tauon.models import Model, still
from tauon.train.config import TrainConfig, largest_divisor

__all__ = [
    "Precision",
    "available_memory",
    "batch_that_fits",
    "choose_compile",
    "choose_device",
    "choose_precision",
    "dress",
    "gather_dtype",
]

COMPILE_SECONDS = 60.0
"""What compiling a transformer block, forward and backward, takes on two cores from a cold cache."""
COMPILE_GAIN = 0.12
"""Share of step time that it saves on a CPU (docs/experiments.md)."""


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


def choose_device(asked: str) -> tuple[torch.device, str]:
    """(device, reason). Raises `RecipeError` where the device asked for is not there."""
    if asked == "auto":
        if torch.accelerator.is_available():
            found = torch.accelerator.current_accelerator()
            assert found is not None
            return _numbered(found), "the accelerator of this process"
        return torch.device("cpu"), "no accelerator found"
    try:
        device = torch.device(asked)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as err:
        raise RecipeError([Problem("train.device", f"{asked!r} cannot be used ({str(err).splitlines()[0]}). Take auto or cpu.")]) from None
    return _numbered(device), "asked for"


def _numbered(device: torch.device) -> torch.device:
    """A GPU by its number: that of this process where several share a machine (`join` made it the current one)."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device


def choose_precision(asked: str, device: torch.device, model: Model | None) -> tuple[Precision, str]:
    """(precision, reason): bf16 where the hardware multiplies in it and the model is large enough to gain."""
    if asked != "auto":
        return Precision(asked, str(device)), "asked for"
    if model is not None and not model.blocks_to_compile():
        return Precision("fp32", str(device)), "the model is too small to gain from bf16"
    if device.type == "cuda":
        ok = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision("bf16" if ok else "fp32", str(device)), f"{torch.cuda.get_device_name(device)} {'has' if ok else 'lacks'} bf16"
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return Precision("bf16", "cpu"), "this CPU multiplies bf16 matrices in hardware (AMX)"
    return Precision("fp32", str(device)), f"this {device.type} has no bf16 matrix unit (AMX), so fp32 is faster"


def gather_dtype(device: torch.device, precision: Precision) -> torch.dtype | None:
    """In which FSDP2 gathers the weights of blocks: bf16 on GPUs that compute in it. None: as they are kept (on a CPU, so that what a
    layout computes is what one process computes).
    """
    return torch.bfloat16 if device.type == "cuda" and precision.name == "bf16" else None


def choose_compile(asked: str | bool, device: torch.device, model: Model, seconds: float | None) -> tuple[bool, str]:
    """(compile?, reason). `seconds`: how long training would take without, where that is known."""
    if not model.blocks_to_compile():
        if asked is True:
            raise RecipeError([Problem("train.compile", "this model has no repeated blocks to compile. Take auto or false.")])
        return False, "the model has no repeated blocks"
    lacks = _cannot_compile(device)
    if lacks is not None:
        if asked is True:
            raise RecipeError([Problem("train.compile", f"true, but {lacks[0]}. {lacks[1]}, or take auto.")])
        return False, lacks[0]
    if asked != "auto":
        return bool(asked), "asked for"
    if not model.compiling_pays:
        return False, "this kind of model gains nothing from it"
    if device.type != "cpu":
        return True, "a GPU gains from fused kernels"
    if seconds is None:
        return False, "training time is not known"
    pays = seconds * COMPILE_GAIN > COMPILE_SECONDS
    return pays, f"about {seconds:,.0f} s of training: saves {seconds * COMPILE_GAIN:,.0f} s, costs {COMPILE_SECONDS:.0f} s"


def _cannot_compile(device: torch.device) -> tuple[str, str] | None:
    """(what is missing for torch.compile, the way out), or None: C++ on a CPU; on a GPU Triton, and the C compiler that it calls."""
    if device.type == "cpu":
        if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
            return "no C++ compiler (g++) was found", "Install one"
    elif device.type == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 0):
            return f"{torch.cuda.get_device_name(device)} is older than Triton knows (compute capability 7.0)", "Take a newer one"
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed", "pip install triton"
        if all(shutil.which(c) is None for c in (os.environ.get("CC", "gcc"), "gcc", "clang")):
            return "no C compiler (gcc) was found, which Triton calls", "Install one"
    return None


def dress(model: Model, *, checkpointing: bool, compiled: bool) -> None:
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
        more["context_fn"] = lambda: (nullcontext(), still(block))

    def run(*args):  # type: ignore[no-untyped-def]
        # Random numbers are restored for the second pass, so that dropout is the same both times.
        return checkpoint(forward, *args, use_reentrant=False, **more) if torch.is_grad_enabled() else forward(*args)

    return run


def available_memory(device: torch.device) -> int | None:
    """Bytes that could be allocated now; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as f:
            line = next(line for line in f if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return None


def batch_that_fits(
    config: TrainConfig, bytes_per_example: float, fixed_bytes: float, device: torch.device, input_bytes: int = 0, neighbours: int = 1
) -> tuple[int, str]:
    """(microbatch, reason). Raises `RecipeError` where not even one example fits, or the one asked for does not.

    `input_bytes`: of one example as it is read; the whole batch of them is in memory at once. `neighbours`: processes that share
    this memory.
    """
    free = available_memory(device)
    if free is None:
        return config.microbatch or config.batch, "the whole batch" if config.microbatch is None else "asked for"
    free //= neighbours
    room = 0.9 * free - fixed_bytes
    if room > 0 and config.batch * input_bytes > room / 2:
        fits = max(1, int(room / 2 // input_bytes))
        size = f"{config.batch * input_bytes / 2**30:,.1f} GiB, and {max(0.0, room) / 2**30:.1f} GiB are free beside weights and optimizer"
        raise RecipeError([Problem("train.batch", f"{config.batch:,} examples take {size}. train.batch={fits} would fit.")])
    room -= config.batch * input_bytes
    most = int(room // max(1.0, bytes_per_example))
    gib = 2**30
    facts = f"about {fixed_bytes / gib:.1f} GiB for weights and optimizer and {bytes_per_example / gib:.3f} GiB an example, {free / gib:.1f} GiB free"
    if most < 1:
        raise RecipeError(
            [
                Problem(
                    "train.batch",
                    f"not even one example fits: {facts}. Take a smaller model, shorter sequences, or activation_checkpointing.",
                )
            ]
        )
    if config.microbatch is not None:
        if config.microbatch > most:
            fits = largest_divisor(config.batch, most)
            raise RecipeError([Problem("train.microbatch", f"{config.microbatch} does not fit: {facts}. microbatch={fits} would.")])
        return config.microbatch, "asked for"
    if config.batch <= most:
        return config.batch, "the whole batch fits"
    fits = largest_divisor(config.batch, most)
    return fits, f"the largest divisor of {config.batch} that fits ({facts})"
