"""Decides how attention is computed on a CPU: by torch's fused kernel, or as batched matrix products."""

from __future__ import annotations

from tauon.models.attention import can_choose
from tauon.plan.context import BY_THIS_RUN, Decision, PlanContext
from tauon.plan.machine import available_memory
from tauon.plan.measured import chosen
from tauon.plan.precision import TOO_SMALL, shown

__all__ = ["attention"]

MARGIN = 0.1
"""Share of the fused kernel's time that another must save to be chosen."""
MOST_MEMORY = 0.2
"""Share of the free memory that the kept probabilities may take."""


def attention(ctx: PlanContext) -> Decision | None:
    """Decide the kernel of attention: the faster one, measured here at the heads, length and mask of the first batch."""
    if not any(can_choose(module) for module in ctx.model.modules()):
        return None
    if ctx.still_valid:
        return Decision(ctx.still_valid.get("attention", "fused"), BY_THIS_RUN)
    if ctx.device.type != "cpu" or ctx.layout.tensor > 1 or ctx.layout.context > 1 or ctx.flops_per_example * ctx.rows < TOO_SMALL:
        return Decision("fused", None)
    found = ctx.attention_seconds(ctx.decided["train.precision"])
    if found is None or len(found) < 3:
        return Decision("fused", None)
    bytes_of_example = found.pop("bytes")
    name = chosen(found, MARGIN)
    free = available_memory(ctx.device)
    kept = ctx.decided["train.microbatch"] * bytes_of_example * (1 if ctx.config.train.activation_checkpointing else ctx.layers)
    if name != "fused" and free is not None and kept > MOST_MEMORY * free / ctx.neighbours:
        return Decision("fused", f"probabilities of {kept / 2**30:,.1f} GiB would be kept for the backward pass")
    other = next(k for k in found if k != name)
    return Decision(name, f"{name} {shown(found[name])}, {other} {shown(found[other])} for attention in one layer, measured here")
