"""Where a job computes, and on how many threads."""

from __future__ import annotations

import torch

from tauon.errors import Problem, RecipeError
from tauon.plan.context import BY_THIS_RUN, Decision, PlanContext

__all__ = ["choose_device", "device", "threads"]


def choose_device(asked: str) -> tuple[torch.device, str]:
    """(device, reason). Raises `RecipeError` where the device asked for is not there."""
    if asked == "auto":
        if torch.accelerator.is_available():
            found = torch.accelerator.current_accelerator()
            assert found is not None
            return _numbered(found), "the accelerator of this process"
        return torch.device("cpu"), "no accelerator found"
    try:
        chosen = torch.device(asked)
        if chosen.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as err:
        raise RecipeError([Problem("train.device", f"{asked!r} cannot be used ({str(err).splitlines()[0]}). Take auto or cpu.")]) from None
    return _numbered(chosen), "asked for"


def _numbered(device: torch.device) -> torch.device:
    """A GPU by its number: that of this process where several share a machine (`join` made it the current one)."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device


def device(ctx: PlanContext) -> Decision:
    """The accelerator, where there is one."""
    chosen, why = choose_device(ctx.config.train.device)
    return Decision(chosen, why, shown=str(chosen))


def threads(ctx: PlanContext) -> Decision:
    """Threads of this process; where steps were timed, those that were fastest (`steps.by_time` has set them)."""
    if "threads" in ctx.kept:
        return Decision(torch.get_num_threads(), BY_THIS_RUN)
    return Decision(
        torch.get_num_threads(), "the fastest of those tried here" if ctx.timed else "torch's choice: cores, or OMP_NUM_THREADS"
    )
