"""Decides the precision of a job: on a CPU by measuring forward and backward in each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tauon.distributed import Layout, Mesh
from tauon.models import Model
from tauon.plan.context import BY_THIS_RUN, Decision, PlanContext
from tauon.plan.device import choose_device
from tauon.plan.measured import chosen
from tauon.plan.trial import Work
from tauon.train import JobConfig, Precision

__all__ = ["choose_precision", "precision", "training_precision"]

MARGIN = 0.05
"""Share of a step's time that bf16 must save to be chosen: less is not worth its rounding, and could be chance."""
TOO_SMALL = 0.2e9
"""Operations of a step, forward and backward (a millisecond or two), below which converting to bf16 costs more than it could save."""


def choose_precision(
    requested: str, device: torch.device, model: Model | None, timed: Mapping[str, float] | None = None
) -> tuple[Precision, str]:
    """Return (precision, reason). `timed`: seconds of a step in fp32 and in bf16, which decide on a CPU; None: not measured."""
    if requested != "auto":
        return Precision(requested, str(device)), "asked for"
    if device.type == "cpu":
        if timed is None:
            return Precision("fp32", "cpu"), "the model is too small to gain from bf16"
        name = chosen({p: timed[p] for p in ("fp32", "bf16")}, MARGIN)
        other = "fp32" if name == "bf16" else "bf16"
        figures = f"{name} {shown(timed[name])}, {other} {shown(timed[other])} for forward and backward of a step, measured here"
        return Precision(name, "cpu"), figures
    if model is not None and not model.blocks_to_compile():
        return Precision("fp32", str(device)), "the model is too small to gain from bf16"
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
        return Precision("bf16" if has_bf16 else "fp32", str(device)), f"{name} {'has' if has_bf16 else 'has no'} bf16"
    return Precision("fp32", str(device)), f"bf16 is not tested on {device.type}"


def shown(seconds: float) -> str:
    """Return seconds as milliseconds with two digits or more: 412 ms, 4.1 ms."""
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 0.0095 else f"{seconds * 1e3:.2g} ms"


def precision(ctx: PlanContext) -> Decision:
    """Decide the name of the precision."""
    if "precision" in ctx.still_valid:
        return Decision(ctx.still_valid["precision"], BY_THIS_RUN)
    requested, timed = ctx.requested["precision"], None
    if requested == "auto" and ctx.device.type == "cpu" and ctx.flops_per_example * ctx.rows >= TOO_SMALL:
        timed = ctx.seconds_a_step("fp32", "bf16")
        if timed is None:
            return Decision("fp32", "bf16 was not measured, which would need a batch of the data and memory for a pass")
    chosen_, reason = choose_precision(requested, ctx.device, ctx.model, timed)
    return Decision(chosen_.name, reason)


def training_precision(config: JobConfig, work: Work, *, recorded: Mapping[str, Any] | None = None) -> Precision:
    """Return the precision that a plan of this job decides, before there is a plan: for what must compute as training does."""
    ctx = PlanContext(config, 0, Mesh(Layout()), None, recorded or {}, None, lambda _: None, work)
    ctx.decided["train.device"], _ = choose_device(config.train.device)
    return Precision(precision(ctx).value, str(ctx.device))
