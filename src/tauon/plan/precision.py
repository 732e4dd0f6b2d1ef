"""In what numbers a job computes, and whether it is compiled."""

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
"""What compiling a transformer block, forward and backward, takes on two cores from a cold cache."""
COMPILE_GAIN = 0.12
"""Share of step time that it saves on a CPU (docs/experiments.md)."""
CPU_FLOPS = {"fp32": 0.15e12, "bf16": 0.6e12}
"""Operations a second that two cores reach here: only to guess how long training takes, and so whether compiling pays."""


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


def precision(ctx: PlanContext) -> Decision:
    """Its name."""
    chosen, why = choose_precision(ctx.kept.get("precision", ctx.asked["precision"]), ctx.device, ctx.model)
    return Decision(chosen.name, BY_THIS_RUN if ctx.kept else why)


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


def compiled(ctx: PlanContext) -> Decision:
    """Whether blocks are compiled."""
    seconds: float | None = ctx.asked["time"]
    if seconds is None and ctx.device.type == "cpu":
        operations = ctx.decided["train.steps"] * ctx.flops_per_example * ctx.config.train.batch
        seconds = operations / CPU_FLOPS[ctx.decided["train.precision"]]
    chosen, why = choose_compile(ctx.asked["compile"], ctx.device, ctx.model, seconds)
    return Decision(ctx.kept["compile"], BY_THIS_RUN) if ctx.kept else Decision(chosen, why)
