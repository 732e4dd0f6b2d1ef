"""How long a run is, how often it validates and saves, and how its learning rate goes."""

from __future__ import annotations

import math

import torch

from tauon.errors import Problem, RecipeError
from tauon.models import parameter_count
from tauon.plan.context import BY_THIS_RUN, Decision, PlanContext
from tauon.plan.plan import Plan
from tauon.plan.precision import choose_compile
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


def parameters(ctx: PlanContext) -> Decision:
    """Number of weights."""
    return Decision(parameter_count(ctx.model), "the model's shapes")


def trainable_parameters(ctx: PlanContext) -> Decision | None:
    """Where not all of them train."""
    count = trainable(ctx.model)
    return Decision(count, "what adapt and train.freeze leave to train") if count < ctx.decided["train.parameters"] else None


def steps(ctx: PlanContext) -> Decision:
    """From steps, epochs, tokens or time, whichever the recipe gives."""
    if "threads" in ctx.kept:
        torch.set_num_threads(ctx.kept["threads"])
    config, spec, asked = ctx.config.train, ctx.config.spec, ctx.asked
    if "steps" in ctx.recorded:
        return Decision(int(ctx.recorded["steps"]), BY_THIS_RUN)
    if asked["time"] is not None:
        return by_time(ctx, asked["time"])
    if asked["epochs"] is not None:
        epochs = asked["epochs"]
        return Decision(
            ctx.sizes.steps_for(epochs * ctx.examples), f"{epochs:g} epochs of {ctx.examples:,} examples, {config.batch} a step"
        )
    if asked["tokens"] is not None:
        if spec.seq_len is None:
            raise RecipeError([Problem("train.tokens", "this data is not made of tokens. Give steps, epochs or time.")])
        tokens = asked["tokens"]
        return Decision(ctx.sizes.steps_for(tokens, tokens=True), f"{tokens:,} tokens, {config.batch * spec.seq_len:,} a step")
    return Decision(asked["steps"] or 1, "asked for")


def by_time(ctx: PlanContext, time: float) -> Decision:
    """As many steps as fit, at the time that one takes here; leaves the number of threads set that was fastest."""
    assert ctx.measure is not None, "a plan for a time measures steps: pass `measure`"
    # On a CPU compiling must first pay for itself; on a GPU it is taken in any case, and changes the time of a step too much to leave out.
    compiled = ctx.device.type != "cpu" and choose_compile(ctx.asked["compile"], ctx.device, ctx.model, None)[0]
    threads = torch.get_num_threads()
    trial = Plan(10**9, ctx.device, ctx.decided["train.precision"], compiled, ctx.decided["train.microbatch"], 1, 1, threads)
    ctx.on_note(f"measuring the time of a step, to fit {time:,.0f} s")
    # Half the threads too: where something else uses the cores, threads that wait for one another are slower than fewer.
    counts = {threads, max(1, threads // 2)} if ctx.device.type == "cpu" else {threads}
    timed: dict[int, float] = {}
    for count in sorted(counts, reverse=True):
        torch.set_num_threads(count)
        timed[count] = ctx.measure(trial, min(8.0, time / 10) / len(counts))
    seconds, threads = min((s, t) for t, s in timed.items())
    torch.set_num_threads(threads)
    ctx.timed = True
    return Decision(max(1, int(time / seconds)), f"{time:,.0f} s at {seconds * 1e3:,.0f} ms a step, measured here")


def tflop_per_step(ctx: PlanContext) -> Decision:
    """Of forward and backward."""
    attention = " + causal attention at half its square, for each token" if ctx.config.spec.seq_len else ", for each example"
    value = round(ctx.flops_per_example * ctx.config.train.batch / 1e12, 6)
    return Decision(value, f"model operations of forward and backward: 6 x (weights that multiply){attention}")


def validate_every(ctx: PlanContext) -> Decision:
    """Steps."""
    asked = ctx.config.train.validate_every
    every = asked or max(1, math.ceil(ctx.decided["train.steps"] / 10))
    return Decision(every, "ten validations in a run" if asked is None else None)


def checkpoint_every(ctx: PlanContext) -> Decision:
    """Steps."""
    asked = ctx.config.train.checkpoint_every
    every = asked or max(1, min(1000, math.ceil(ctx.decided["train.steps"] / 10)))
    return Decision(every, "ten checkpoints in a run, at most 1,000 steps apart" if asked is None else None)


def learning_rate(ctx: PlanContext) -> Decision | None:
    """The optimizer's own, where the recipe gives none."""
    optim = ctx.config.optim
    if optim.raw_value("lr") is not None:  # a look, no use: whether the optimizer reads it is for `build` to show
        return None
    return Decision(optim.peak, f"the usual peak rate of {optim.kind_}")


def schedule(ctx: PlanContext) -> Decision:
    """Where the rate ends: of the last step that there is, as a key that no step of so short a run comes to is told to be unread."""
    how, count = ctx.config.optim.schedule, ctx.decided["train.steps"]
    rise, last = how.warmup_steps(count), how.factor(count - 1, count)
    return Decision(f"{how.kind_}, {rise} steps of warm-up", f"ends at {last:.2%} of the peak")
