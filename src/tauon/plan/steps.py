"""Decides the number of steps, the intervals of validation and checkpoints, and reports the learning rate."""

from __future__ import annotations

import math

import torch

from tauon.errors import Problem, RecipeError
from tauon.models import parameter_count
from tauon.plan.compiling import choose_compile
from tauon.plan.context import BY_THIS_RUN, VALIDATION_SHARE, Decision, PlanContext
from tauon.plan.plan import Plan
from tauon.train import trainable

__all__ = [
    "checkpoint_every",
    "learning_rate",
    "parameters",
    "schedule",
    "steps",
    "tflop_per_step",
    "trainable_parameters",
    "validate_every",
]


FEWEST_BETWEEN = 5
"""Steps between validations, at least, if `train.time` is set."""


def parameters(ctx: PlanContext) -> Decision:
    """Report the number of weights."""
    return Decision(parameter_count(ctx.model), "the model's shapes")


def trainable_parameters(ctx: PlanContext) -> Decision | None:
    """Report the number of weights that train, if not all do."""
    count = trainable(ctx.model)
    return Decision(count, "parameters that adapt and train.freeze do not freeze") if count < ctx.decided["train.parameters"] else None


def steps(ctx: PlanContext) -> Decision:
    """Decide the number of steps from train.steps, epochs, tokens or time."""
    if "threads" in ctx.still_valid:
        torch.set_num_threads(ctx.still_valid["threads"])
    config, spec, requested = ctx.config.train, ctx.config.spec, ctx.requested
    if "steps" in ctx.recorded:
        return Decision(int(ctx.recorded["steps"]), BY_THIS_RUN)
    if requested["time"] is not None:
        return by_time(ctx, requested["time"])
    if requested["epochs"] is not None:
        epochs = requested["epochs"]
        return Decision(
            ctx.sizes.steps_for(epochs * ctx.examples), f"{epochs:g} epochs of {ctx.examples:,} examples, {config.batch} per step"
        )
    if requested["tokens"] is not None:
        if spec.seq_len is None:
            raise RecipeError([Problem("train.tokens", "this data has no tokens. Use train.steps, epochs or time instead.")])
        tokens = requested["tokens"]
        return Decision(ctx.sizes.steps_for(tokens, tokens=True), f"{tokens:,} tokens, {config.batch * spec.seq_len:,} per step")
    return Decision(requested["steps"] or 1, "asked for")


def by_time(ctx: PlanContext, time: float) -> Decision:
    """Measure a step and return how many fit in `time`; sets the fastest number of threads."""
    assert ctx.measure is not None, "a plan for a time measures steps: pass `measure`"
    # On a CPU, whether to compile is decided later. A GPU always compiles, which changes the time of a step a lot: compile the trial, too.
    compiled = ctx.device.type != "cpu" and choose_compile(ctx.requested["compile"], ctx.device, ctx.model)[0]
    threads = torch.get_num_threads()
    trial = Plan(
        10**9,
        ctx.device,
        ctx.decided["train.precision"],
        compiled,
        ctx.decided["train.microbatch"],
        1,
        1,
        threads,
        attention=ctx.decided.get("train.attention", "fused"),
    )
    ctx.on_note(f"measuring the time of a step, to plan for {time:,.0f} s")
    # Try half the threads too: if other programs use the cores, fewer threads are faster.
    counts = {threads, max(1, threads // 2)} if ctx.device.type == "cpu" else {threads}
    timed: dict[int, float] = {}
    for count in sorted(counts, reverse=True):
        torch.set_num_threads(count)
        timed[count] = ctx.measure(trial, min(8.0, time / 10) / len(counts))
    seconds, threads = min((s, t) for t, s in timed.items())
    torch.set_num_threads(threads)
    ctx.timed = True
    steps = max(1, int(time * (1 - VALIDATION_SHARE) / seconds))
    kept = f"{VALIDATION_SHARE:.0%} of it is kept for validation"
    return Decision(steps, f"{time:,.0f} s at {seconds * 1e3:,.0f} ms per step, measured here; {kept}")


def tflop_per_step(ctx: PlanContext) -> Decision:
    """Report the model operations of a step, forward and backward."""
    attention = " + causal attention at half its square, per token" if ctx.config.spec.seq_len else ", per example"
    value = round(ctx.flops_per_example * ctx.config.train.batch / 1e12, 6)
    return Decision(value, f"model operations of forward and backward: 6 x (weights in matrix products){attention}")


def validate_every(ctx: PlanContext) -> Decision:
    """Decide the steps between validations."""
    requested = ctx.config.train.validate_every
    steps = ctx.decided["train.steps"]
    every = requested or max(1, math.ceil(steps / 10))
    if requested is None and ctx.requested["time"] is not None and every < FEWEST_BETWEEN:
        return Decision(min(steps, FEWEST_BETWEEN), "rarely, so that train.time is spent on steps")
    return Decision(every, "ten validations in a run" if requested is None else None)


def checkpoint_every(ctx: PlanContext) -> Decision:
    """Decide the steps between checkpoints."""
    requested = ctx.config.train.checkpoint_every
    every = requested or max(1, min(1000, math.ceil(ctx.decided["train.steps"] / 10)))
    return Decision(every, "ten checkpoints in a run, at most 1,000 steps apart" if requested is None else None)


def learning_rate(ctx: PlanContext) -> Decision | None:
    """Report the optimizer's default learning rate, if the recipe sets none."""
    optim = ctx.config.optim
    if optim.raw_value("lr") is not None:  # does not count as read: only `build` shows whether the optimizer uses it
        return None
    return Decision(optim.peak, f"the default peak learning rate of {optim.kind_}")


def schedule(ctx: PlanContext) -> Decision:
    """Report the schedule and where it ends. Reads the factor of the run's last step, so that a key that no step uses stays unread."""
    config, count = ctx.config.optim.schedule, ctx.decided["train.steps"]
    rise, last = config.warmup_steps(count), config.factor(count - 1, count)
    return Decision(f"{config.kind_}, {rise} steps of warm-up", f"ends at {last:.2%} of the peak")
