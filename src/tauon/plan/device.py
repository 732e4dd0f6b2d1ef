"""Decides the device of a job and its number of threads."""

from __future__ import annotations

import torch

from tauon.errors import Problem, RecipeError
from tauon.plan.context import BY_THIS_RUN, Decision, PlanContext

__all__ = ["choose_device", "device", "threads"]


def choose_device(requested: str) -> tuple[torch.device, str]:
    """Return (device, reason). Raises `RecipeError` if the requested device does not exist."""
    if requested == "auto":
        if torch.accelerator.is_available():
            accelerator = torch.accelerator.current_accelerator()
            assert accelerator is not None
            return _numbered(accelerator), "the accelerator of this process"
        return torch.device("cpu"), "no accelerator found"
    try:
        chosen = torch.device(requested)
        if chosen.type == "meta":
            raise RuntimeError("it has no data")
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as err:
        raise RecipeError(
            [Problem("train.device", f"{requested!r} cannot be used ({str(err).splitlines()[0]}). Use auto or cpu.")]
        ) from None
    return _numbered(chosen), "asked for"


def _numbered(device: torch.device) -> torch.device:
    """Return a GPU with its index: the one that `join` made the current GPU of this process."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device


def device(ctx: PlanContext) -> Decision:
    """Decide the device: the accelerator if there is one."""
    chosen, reason = choose_device(ctx.config.train.device)
    return Decision(chosen, reason, shown=str(chosen))


def threads(ctx: PlanContext) -> Decision:
    """Decide the threads of this process; if steps were timed, the fastest number (`steps.by_time` has set it)."""
    if "threads" in ctx.still_valid:
        return Decision(torch.get_num_threads(), BY_THIS_RUN)
    return Decision(
        torch.get_num_threads(), "the fastest of those measured here" if ctx.timed else "torch's choice: cores, or OMP_NUM_THREADS"
    )
