"""Checks for silent failures of fine-tuning: loss masks, leaks between packed examples, parameters that do not train."""

from __future__ import annotations

from tauon.stages.context import Context
from tauon.tracking import EventLog
from tauon.train import Moved, TrainJob, refuse_leaks, refuse_wrong_mask, watch_first_step

__all__ = ["sanity_checks"]


def sanity_checks(ctx: Context, job: TrainJob, events: EventLog) -> None:
    """Check a fine-tuning job for silent failures, before and during its first step."""
    recipe = ctx.recipe
    if recipe.task.input_kind in ("chat", "pairs"):
        covers = refuse_wrong_mask(job, ctx.splits.train)
        events.log("checked", mask=covers)
        ctx.on_event("note", message=f"mask: {covers}")
    if ctx.start is None and not recipe.train.freeze:
        return
    if ctx.splits.spec.vocab is not None:
        packing = refuse_leaks(job)
        events.log("checked", packing=packing)
        ctx.on_event("note", message=f"packing: {packing}")

    def report(moved: Moved) -> None:
        events.log("checked", moved=moved.moved, frozen=moved.frozen, still=moved.still)
        message = f"first step: {moved.moved} parameters changed, {moved.frozen} frozen ones did not"
        for reason in sorted({*moved.still.values()}):
            names = [n for n, r in moved.still.items() if r == reason]
            message += f"; {len(names)} did not, because {reason} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        ctx.on_event("note", message=message)

    watch_first_step(job, report)
