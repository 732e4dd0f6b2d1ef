"""Decides how attention is computed on a CPU: by torch's fused kernel, or as batched matrix products."""

from __future__ import annotations

from tauon.errors import Problem, RecipeError
from tauon.models.attention import KERNELS, LONGEST, can_choose
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
    requested = ctx.requested["attention"]
    obstacle = _obstacle(ctx)
    if requested == "products" and obstacle is not None:
        raise RecipeError([Problem("train.attention", f"is products, but {obstacle}. Use fused or auto.")])
    if not any(can_choose(module) for module in ctx.model.modules()):
        return None
    if ctx.still_valid:
        kept = ctx.still_valid.get("attention", "fused")
        return Decision(kept, BY_THIS_RUN) if kept == "fused" or obstacle is None else Decision("fused", obstacle)
    if requested != "auto":
        return Decision(requested, "asked for")
    if obstacle is not None or ctx.flops_per_example * ctx.rows < TOO_SMALL:
        return Decision("fused", None)
    found = ctx.attention_seconds(ctx.decided["train.precision"])
    return Decision("fused", None) if found is None else _faster(ctx, found)


def _obstacle(ctx: PlanContext) -> str | None:
    """Return why `products` cannot be used; None: it can."""
    if not any(can_choose(module) for module in ctx.model.modules()):
        return "this model has no attention that can be computed so"
    if ctx.device.type != "cpu":
        return f"training is on {ctx.device.type}"
    if ctx.layout.tensor > 1 or ctx.layout.context > 1:
        return "heads or positions are split over processes"
    length = ctx.config.spec.seq_len
    if length is not None and length > LONGEST:
        return f"data.seq_len is {length:,}, and it takes at most {LONGEST:,} positions"
    return None


def _faster(ctx: PlanContext, found: dict[str, float]) -> Decision:
    """Return the faster kernel, `fused` if the other's memory is too much. `found`: see `PlanContext.attention_seconds`."""
    timed = {kernel: found[kernel] for kernel in KERNELS}
    name = chosen(timed, MARGIN)
    free = available_memory(ctx.device)
    kept = ctx.decided["train.microbatch"] * found["bytes"] * (1 if ctx.config.train.activation_checkpointing else ctx.layers)
    if name != "fused" and free is not None and kept > MOST_MEMORY * free / ctx.neighbours:
        return Decision("fused", f"probabilities of {kept / 2**30:,.1f} GiB would be kept for the backward pass")
    other = next(k for k in KERNELS if k != name)
    return Decision(name, f"{name} {shown(timed[name])}, {other} {shown(timed[other])} for attention in one layer, measured here")
