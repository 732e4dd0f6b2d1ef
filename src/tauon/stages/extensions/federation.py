"""Federated training (`federate:`): the run's job becomes that of the coordinator, and simulated sites train with copies of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tauon.artifacts import Checkpoint, write_json
from tauon.data import DataSplits, Loader
from tauon.distributed import Layout, Mesh
from tauon.errors import Problem, RecipeError
from tauon.federated import Limits, Rounds, Weighting, evaluate_sites, federate
from tauon.federated.config import FederateConfig, SimulateConfig
from tauon.federated.simulation.batched import BatchedSites
from tauon.federated.simulation.sites import draws
from tauon.models import ModelConfig
from tauon.plan import Derived, Plan, choose_device
from tauon.stages.extensions.base import TrainExtension
from tauon.tracking import EventLog
from tauon.train import JobConfig, JobSettings, TrainJob, build_job
from tauon.types import Dataset

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["SITES", "Federation", "deal", "federation", "rounds_of", "site_job", "splits_of"]

SITES = "federate/sites.json"
"""What each site measured of the trained model, written when training ends."""
LOOK = 1024
"""Examples that are read at once for their labels."""


def federation(ctx: Context, checkpoint: Checkpoint | None) -> Federation | None:
    """Return the extension if the recipe has `federate`."""
    config = ctx.section("federate", FederateConfig) if getattr(ctx.recipe, "federate", None) is not None else None
    return None if config is None else Federation(ctx, config)


class Federation(TrainExtension):
    """A run whose steps are rounds over sites."""

    takes_plain_steps = False

    def __init__(self, ctx: Context, config: FederateConfig) -> None:
        self.ctx, self.config = ctx, config
        self.transport: Any = None
        self.events: EventLog | None = None
        self.settled: Plan

    def mesh(self, model: ModelConfig) -> tuple[Mesh, Derived]:
        world = self.ctx.world
        if world.size > 1:
            message = f"the coordinator is one process, but {world.size} were started. Start one: without --on."
            raise RecipeError([Problem("federate", message)])
        device, _ = choose_device(self.ctx.train.device)
        simulate = self.config.simulate
        if simulate is None:
            message = "this recipe trains at real sites: start it with `tauon federate serve`, or add federate.simulate={sites: 3}."
            raise RecipeError([Problem("federate", message)])
        return Mesh(Layout(), world, device.type), Derived("parallel", f"{simulate.sites} simulated sites", "federate.simulate")

    def plan(self, plan: Plan) -> None:
        self.settled = plan
        rounds, train = self.config.rounds, self.ctx.train
        plan.steps = rounds
        plan.validate_every = train.validate_every or max(1, rounds // 50)
        plan.checkpoint_every = train.checkpoint_every or max(1, min(1000, rounds // 10))
        plan.derived = [
            d for d in plan.derived if d.path not in ("train.steps", "train.validate_every", "train.checkpoint_every", "optim.schedule")
        ]
        work = f"{train.epochs:g} passes" if train.epochs not in (None, 1) else "one pass" if train.epochs else f"{train.steps:,} steps"
        plan.derived.insert(0, Derived("train.steps", rounds, f"rounds; in each, a site makes {work} over its own examples"))
        plan.derived.append(
            Derived("optim.schedule", self.ctx.recipe.optim.schedule.kind_, "over the rounds: the rate is constant in a round")
        )

    def wrap(self, job: TrainJob) -> TrainJob:
        ctx, config = self.ctx, self.config
        assert config.simulate is not None
        _ = config.simulate.compare  # read by the stage that follows
        parts = deal(ctx.splits.train, config.simulate, ctx.recipe.seed)
        held_out = ctx.splits.validation if ctx.splits.validation is not None else ctx.splits.test
        shares = None if held_out is None else deal(held_out, config.simulate, ctx.recipe.seed)
        workers = 1 if draws(job.model) or job.policy.device.type != "cpu" else min(self.settled.threads, config.simulate.sites)
        self.transport = BatchedSites(
            site_job(ctx, self.settled), ctx.splits.train, parts, batch=ctx.train.batch, strategy=config.strategy, held_out=shares,
            evaluated=held_out, workers=workers,
        )  # fmt: skip
        rounds = rounds_of(config, ctx)
        coordinator = federate(job, self.transport, config.strategy, rounds, on_event=self.on_event)
        coordinator.extra["sites"] = self.transport
        return coordinator

    def on_event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Log what happens to sites, and tell the user about failures."""
        if self.events is not None:
            self.events.log(kind, **fields)
        if kind in ("site_refused", "round_repeated"):
            who = fields.get("site", f"round {fields.get('round')}")
            self.ctx.on_event("warning", message=f"{who}: {fields.get('reason', '')}")

    def running(self) -> AbstractContextManager[Any]:
        self.events = EventLog(self.ctx.run.events_path)
        return self.events

    def finish(self, job: TrainJob) -> None:
        """Record what each site measures of the trained model on its own held-out examples."""
        found: dict[str, Any] = {}
        if self.transport.held_out is not None:
            found = evaluate_sites(job, self.transport, timeout=self.config.timeout)
        (self.ctx.run.folder / SITES).parent.mkdir(exist_ok=True)
        write_json(self.ctx.run.folder / SITES, {"step": job.step, "sites": found})


def rounds_of(config: FederateConfig, ctx: Context) -> Rounds:
    """Return the rounds of a recipe, with the local steps or epochs of its `train`."""
    train, weighting = ctx.train, config.weighting
    return Rounds(
        count=config.rounds, steps=train.steps, epochs=train.epochs, fraction=config.fraction, min_answers=config.min_answers,
        attempts=config.attempts, timeout=config.timeout, seed=ctx.recipe.seed, schedule=ctx.recipe.optim.schedule, optimizer=config.optimizer,
        group=config.group, weighting=Weighting(weighting.by, weighting.max_examples, weighting.max_gain), limits=Limits(config.max_norm),
    )  # fmt: skip


def site_job(ctx: Context, settings: JobSettings) -> TrainJob:
    """Return the job of a site at step 0: the recipe's, without what is done once for a run."""
    recipe = ctx.recipe
    config = JobConfig(ctx.model, recipe.optim, ctx.train, recipe.task, ctx.splits.spec, recipe.seed)
    return build_job(config, Loader(ctx.splits.train, batch=ctx.train.batch, seed=recipe.seed), settings)


def deal(dataset: Dataset, simulate: SimulateConfig, seed: int) -> list[NDArray[np.int64]]:
    """Return the row numbers of each simulated site. By class or feature: what examples have first (their class; the mean of their inputs)."""
    classes, means = [], []
    for start in range(0, len(dataset), LOOK):
        batch = dataset.batch(np.arange(start, min(start + LOOK, len(dataset))))
        targets = batch.targets
        classes.append(targets.numpy() if targets.ndim == 1 and not targets.is_floating_point() else np.zeros(len(batch), np.int64))
        means.append(batch.inputs.double().flatten(1).mean(1).numpy())
    labels = np.concatenate(classes)
    if simulate.split.kind_ in ("dirichlet", "by-label") and len(np.unique(labels)) < 2:
        message = f"{simulate.split.kind_} deals examples by class, but this task has none. Use even or by-quantity."
        raise RecipeError([Problem("federate.simulate.split", message)])
    return simulate.split.split(simulate.sites, labels=labels, features=np.concatenate(means), seed=seed)


def splits_of(splits: DataSplits) -> Dataset | None:
    """Return the examples on which models are compared: the test part, or else the validation part."""
    return splits.test if splits.test is not None else splits.validation
