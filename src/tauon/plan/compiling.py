"""Decides whether blocks are compiled: on a CPU by what it saves in this run, measured here, against what compiling costs."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable

import torch

from tauon.distributed.timeouts import time_limit
from tauon.errors import Problem, RecipeError
from tauon.models import Model
from tauon.plan.context import BY_THIS_RUN, VALIDATION_SHARE, Decision, PlanContext

__all__ = ["choose_compile", "compiled"]

COMPILE_SECONDS = 30.0
"""Seconds to compile a block, forward and backward, on two cores with a cold cache (docs/experiments.md). Blocks of the same shapes count once."""
MOST_GAIN = 0.5
"""Share of a step that compiling saves at most."""
FUSED = 0.8
"""Share of what is not a library call (matrix products, convolutions, attention) that fused kernels save (docs/experiments.md)."""

PATIENCE = 300.0
"""Seconds that other processes must be ready to wait (`launch.timeout`) while one compiles."""


def choose_compile(
    requested: str | bool, device: torch.device, model: Model, pays: Callable[[], tuple[bool, str]] | None = None
) -> tuple[bool, str]:
    """Return (compile?, reason). `pays`: decides for a CPU if nothing else does; None: not compiled there."""
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
    return (False, "the training time is unknown") if pays is None else pays()


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


def pays_on_cpu(ctx: PlanContext) -> tuple[bool, str]:
    """Return whether compiling saves more than it costs, with the figures. What would cost too much to find out is estimated."""
    precision, steps = ctx.decided["train.precision"], ctx.decided["train.steps"]
    cost = COMPILE_SECONDS * len({tuple(p.shape for p in block.parameters()) for block in ctx.model.blocks_to_compile()})
    most = steps * longest_step(ctx) if ctx.requested["time"] is None else ctx.requested["time"]
    if most * MOST_GAIN <= cost:
        return False, "the training is too short"
    timed = ctx.seconds_a_step(precision)
    if timed is None:
        return False, "the time of a step was not measured"
    step = timed[precision]
    total = steps * step if ctx.requested["time"] is None else ctx.requested["time"] * (1 - VALIDATION_SHARE)
    training = f"about {total:,.0f} s of training"
    if total * MOST_GAIN <= cost:
        return False, f"{training}: compiling would take longer than it could save"
    share = ctx.fused_seconds(precision) * FUSED / step
    if total * share <= cost:
        return False, f"{training}: would save about {total * share:,.0f} s and cost {cost:.0f} s"
    if ctx.mesh.world.size > 1 and time_limit() < PATIENCE:
        return True, f"{training}: would save about {total * share:,.0f} s and cost {cost:.0f} s"
    found = ctx.compiled_seconds(precision)
    if found is None:
        return False, "the blocks could not be compiled"
    saves = total * found["saved"] / step
    return saves > found["cost"], f"{training}: saves about {saves:,.0f} s and costs {found['cost']:,.0f} s, measured here"


def longest_step(ctx: PlanContext) -> float:
    """Return more seconds than a step takes on any CPU, by its operations and the number of its layers."""
    return ctx.flops_per_example * ctx.rows / 2e9 + 0.01 * (2 + len(ctx.model.blocks_to_compile()))


def compiled(ctx: PlanContext) -> Decision:
    """Decide whether blocks are compiled."""
    if ctx.still_valid:
        choose_compile(ctx.requested["compile"], ctx.device, ctx.model)  # refuses what cannot be compiled here
        return Decision(ctx.still_valid["compile"], BY_THIS_RUN)
    return Decision(*choose_compile(ctx.requested["compile"], ctx.device, ctx.model, lambda: pays_on_cpu(ctx)))
