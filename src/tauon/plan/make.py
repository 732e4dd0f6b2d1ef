"""Makes the plan: each setting is decided by one function, in a fixed order, with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tauon.distributed import Layout, Mesh, ParallelConfig
from tauon.plan import attention, compiling, device, memory, precision, steps
from tauon.plan.context import Decision, Measure, PlanContext
from tauon.plan.plan import Derived, Plan
from tauon.plan.trial import Work
from tauon.train import JobConfig

__all__ = ["make_plan"]

DECIDERS: tuple[tuple[str, Callable[[PlanContext], Decision | None]], ...] = (
    ("train.device", device.device),
    ("train.parameters", steps.parameters),
    ("train.trainable", steps.trainable_parameters),
    ("train.precision", precision.precision),
    ("train.microbatch", memory.microbatch),
    ("model.statistics", memory.batch_statistics),
    ("train.attention", attention.attention),
    ("train.steps", steps.steps),
    ("train.threads", device.threads),
    ("train.tflop_per_step", steps.tflop_per_step),
    ("train.compile", compiling.compiled),
    ("train.validate_every", steps.validate_every),
    ("train.checkpoint_every", steps.checkpoint_every),
    ("optim.lr", steps.learning_rate),
    ("optim.schedule", steps.schedule),
    ("parallel.reshard_after_forward", memory.reshard_after_forward),
)
"""In order: each may read the decisions before it."""


def make_plan(
    config: JobConfig, *, examples: int, recorded: Mapping[str, Any] | None = None, on_note: Callable[[str], None] = lambda _: None,
    mesh: Mesh | None = None, parallel: ParallelConfig | None = None, measure: Measure | None = None,
    work: Work | None = None,
) -> Plan:  # fmt: skip
    """Decide every setting that the recipe leaves open. Collective over the processes of `mesh`: rank 0's choices are taken by all.

    Args:
        config: model, optimizer, settings, task and data that are trained.
        examples: number of training examples.
        recorded: an earlier `Plan.record()` of the same run, whose choices are kept.
        on_note: called with a message when something takes a while.
        mesh: this process's place in the layout; None: a single process.
        parallel: the recipe's section; None: nothing was asked for.
        measure: seconds per step, for `train.time` (`tauon.train.seconds_a_step`); needed for nothing else.
        work: what a step computes. On a CPU, precision and compile are chosen by timing it on rows of the first batch; None: fp32, not compiled.

    Returns:
        The plan, with each derived setting and its reason.

    Raises:
        RecipeError: settings that cannot work together, or do not fit the layout.

    >>> from tauon.train import JobConfig, TrainConfig
    >>> from tauon.models import LogisticConfig
    >>> from tauon.optim import SGDConfig
    >>> from tauon.tasks import Classification
    >>> from tauon.testing import tiny_batch
    >>> from tauon.types import DataSpec
    >>> spec = DataSpec(input_shape=(3,), outputs=2, labels=("a", "b"))
    >>> settings = TrainConfig(steps=3, batch=8, precision="fp32", compile=False)
    >>> config = JobConfig(LogisticConfig().resolve(spec), SGDConfig(lr=0.1), settings, Classification(), spec, seed=0)
    >>> plan = make_plan(config, examples=100)
    >>> plan.steps, plan.precision, plan.microbatch
    (3, 'fp32', 8)
    """
    ctx = PlanContext(config, examples, mesh or Mesh(Layout()), parallel, recorded or {}, measure, on_note, work)
    derived: list[Derived] = []
    for path, decide in DECIDERS:
        decision = decide(ctx)
        if decision is None:
            continue
        ctx.decided[path] = decision.value
        if decision.reason is not None:
            derived.append(Derived(path, decision.value if decision.shown is None else decision.shown, decision.reason))
    names = ("steps", "device", "precision", "compile", "microbatch", "validate_every", "checkpoint_every", "threads")
    plan = Plan(
        **{name: ctx.decided[f"train.{name}"] for name in names}, flops_per_example=ctx.flops_per_example, derived=derived, layout=ctx.layout,
        attention=ctx.decided.get("train.attention", "fused"),
        reshard_after_forward=ctx.decided.get("parallel.reshard_after_forward", True),
    )  # fmt: skip
    use_same_plan(plan, ctx)
    return plan


def use_same_plan(plan: Plan, ctx: PlanContext) -> None:
    """Set rank 0's decisions and the smallest microbatch on all processes: machines may differ in free memory and speed."""
    world = ctx.mesh.world
    if world.size == 1:
        return
    names = ("steps", "precision", "compile", "attention", "validate_every", "checkpoint_every")
    first = world.gather([getattr(plan, name) for name in names])[0]
    for name, value in zip(names, first, strict=True):
        setattr(plan, name, value)
    plan.microbatch = min(world.gather(plan.microbatch))
