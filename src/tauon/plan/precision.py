"""Decides the precision of a job, and whether it is compiled."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from tauon.errors import Problem, RecipeError
from tauon.models import Model
from tauon.plan.context import BY_THIS_RUN, Decision, PlanContext
from tauon.train import Precision

__all__ = ["choose_compile", "choose_precision", "compiled", "precision"]

COMPILE_SECONDS = 60.0
"""Seconds to compile a transformer block, forward and backward, on two cores with a cold cache."""
COMPILE_GAIN = 0.12
"""Share of step time that compiling saves on a CPU (docs/experiments.md)."""
CPU_FLOPS = {"fp32": 0.15e12, "bf16": 0.6e12}
"""Operations per second of two cores: a rough estimate of the training time, to decide whether compiling pays."""


def choose_precision(requested: str, device: torch.device, model: Model | None) -> tuple[Precision, str]:
    """Return (precision, reason): bf16 if the hardware has bf16 matrix products and the model is large enough to gain."""
    if requested != "auto":
        return Precision(requested, str(device)), "asked for"
    if model is not None and not model.blocks_to_compile():
        return Precision("fp32", str(device)), "the model is too small to gain from bf16"
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
        return Precision("bf16" if has_bf16 else "fp32", str(device)), f"{name} {'has' if has_bf16 else 'has no'} bf16"
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return Precision("bf16", "cpu"), "this CPU multiplies bf16 matrices in hardware (AMX)"
    return Precision("fp32", str(device)), f"this {device.type} has no bf16 matrix unit (AMX), so fp32 is faster"


def precision(ctx: PlanContext) -> Decision:
    """Decide the name of the precision."""
    chosen, reason = choose_precision(ctx.still_valid.get("precision", ctx.requested["precision"]), ctx.device, ctx.model)
    return Decision(chosen.name, BY_THIS_RUN if ctx.still_valid else reason)


def choose_compile(requested: str | bool, device: torch.device, model: Model, seconds: float | None) -> tuple[bool, str]:
    """Return (compile?, reason). `seconds`: estimated training time without compiling, or None if unknown."""
    if not model.blocks_to_compile():
        if requested is True:
            raise RecipeError([Problem("train.compile", "this model has no repeated blocks to compile. Use auto or false.")])
        return False, "the model has no repeated blocks"
    obstacle = _cannot_compile(device)
    if obstacle is not None:
        if requested is True:
            raise RecipeError([Problem("train.compile", f"is true, but {obstacle[0]}. {obstacle[1]}, or use auto.")])
        return False, obstacle[0]
    if requested != "auto":
        return bool(requested), "asked for"
    if not model.compiling_pays:
        return False, "this kind of model does not gain from compiling"
    if device.type != "cpu":
        return True, "a GPU gains from fused kernels"
    if seconds is None:
        return False, "the training time is unknown"
    pays = seconds * COMPILE_GAIN > COMPILE_SECONDS
    return pays, f"about {seconds:,.0f} s of training: would save {seconds * COMPILE_GAIN:,.0f} s and cost {COMPILE_SECONDS:.0f} s"


def _cannot_compile(device: torch.device) -> tuple[str, str] | None:
    """Return (what torch.compile lacks, how to fix it), or None: a CPU needs a C++ compiler; a GPU needs Triton and a C compiler."""
    if device.type == "cpu":
        if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
            return "no C++ compiler (g++) was found", "Install one"
    elif device.type == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 0):
            return f"{torch.cuda.get_device_name(device)} is too old for Triton (compute capability 7.0)", "Use a newer GPU"
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed", "pip install triton"
        if all(shutil.which(c) is None for c in (os.environ.get("CC", "gcc"), "gcc", "clang")):
            return "no C compiler (gcc), which Triton needs, was found", "Install one"
    return None


def compiled(ctx: PlanContext) -> Decision:
    """Decide whether blocks are compiled."""
    seconds: float | None = ctx.requested["time"]
    if seconds is None and ctx.device.type == "cpu":
        operations = ctx.decided["train.steps"] * ctx.flops_per_example * ctx.config.train.batch
        seconds = operations / CPU_FLOPS[ctx.decided["train.precision"]]
    chosen, reason = choose_compile(ctx.requested["compile"], ctx.device, ctx.model, seconds)
    return Decision(ctx.still_valid["compile"], BY_THIS_RUN) if ctx.still_valid else Decision(chosen, reason)
