"""Federated training (`federate:`): the run's job becomes that of the coordinator, whose steps are rounds over simulated or real sites; at a real site
(`federated.network`) it stays that of the site, which trains when it is asked to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tauon import __version__
from tauon.artifacts import write_json
from tauon.config import count_as_read, dump
from tauon.data import DataSplits, Loader
from tauon.distributed import Layout, Mesh
from tauon.errors import Interrupted, LaunchError, Problem, RecipeError, TauonError
from tauon.federated import Failure, Limits, Message, Rounds, Weighting, evaluate_sites, federate, freeze_lora_a, weights_for
from tauon.federated.config import FederateConfig, SimulateConfig
from tauon.federated.network import ServeAt, Trouble
from tauon.federated.protection import SecuredSimulation, most_held_out, summation_of
from tauon.federated.secagg import PinnedKeys
from tauon.federated.simulation.batched import BatchedSites
from tauon.federated.simulation.sites import draws
from tauon.federated.stopping import StopWaiting
from tauon.models import ModelConfig
from tauon.plan import Derived, Plan, choose_device
from tauon.privacy.accounting import refuse_delta
from tauon.stages.extensions.base import TrainExtension
from tauon.stages.extensions.federation_ledger import RoundsAccount
from tauon.stages.train import spec_record
from tauon.tracking import EventLog
from tauon.train import JobConfig, JobSettings, TrainJob, build_job
from tauon.types import Dataset

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["SITES", "Federation", "common_recipe", "deal", "identity_of", "rounds_of", "site_job", "splits_of"]

SITES = "federate/sites.json"
"""What each site measured of the trained model, written when training ends."""
LOOK = 1024
"""Examples that are read at once for their labels."""
COMMON = ("task", "model", "adapt", "optim", "train", "federate")
"""Sections that coordinator and sites must have in common."""


class Federation(TrainExtension):
    """A run whose steps are rounds over sites."""

    takes_plain_steps = False

    def __init__(self, ctx: Context, config: FederateConfig, end: ServeAt | None) -> None:
        self.ctx, self.config, self.end = ctx, config, end
        self.transport: Any = None
        self.summation: Any = None
        self.events: EventLog | None = None
        self.settled: Plan
        self.account = None if config.privacy is None else RoundsAccount(ctx, config, end, self._sites())

    def mesh(self, model: ModelConfig) -> tuple[Mesh, Derived]:
        world = self.ctx.world
        if world.size > 1:
            message = f"the coordinator is one process, but {world.size} were started. Start one: without --on."
            raise RecipeError([Problem("federate", message)])
        device, _ = choose_device(self.ctx.train.device)
        simulate = self.config.simulate
        if simulate is None and self.end is None:
            message = "this recipe trains at real sites: start it with `tauon federate serve`, or add federate.simulate={sites: 3}."
            raise RecipeError([Problem("federate", message)])
        where = f"sites on {self.end.address}" if self.end else f"{simulate.sites} simulated sites" if simulate else ""
        return Mesh(Layout(), world, device.type), Derived("parallel", where, "the coordinator is one process")

    def plan(self, plan: Plan) -> None:
        self.settled = plan
        rounds, train = self.config.rounds, self.ctx.train
        plan.steps = rounds
        plan.validate_every = train.validate_every or max(1, rounds // 50)
        plan.checkpoint_every = train.checkpoint_every or (1 if self.end or self.account else max(1, min(1000, rounds // 10)))
        plan.derived = [
            d for d in plan.derived if d.path not in ("train.steps", "train.validate_every", "train.checkpoint_every", "optim.schedule")
        ]
        work = f"{train.epochs:g} passes" if train.epochs not in (None, 1) else "one pass" if train.epochs else f"{train.steps:,} steps"
        plan.derived.insert(0, Derived("train.steps", rounds, f"rounds; in each, a site makes {work} over its own examples"))
        plan.derived.append(
            Derived("optim.schedule", self.ctx.recipe.optim.schedule.kind_, "over the rounds: the rate is constant in a round")
        )
        if self.account is not None:
            plan.derived += self.account.derived()

    def wrap(self, job: TrainJob) -> TrainJob:
        ctx, config = self.ctx, self.config
        freeze_products(job, config)
        if self.end is None:
            self.transport, pinned, sites = self._simulated(job)
        else:
            self.transport, pinned = _Later(config.timeout), PinnedKeys(path=ctx.run.folder / "federate" / "pinned.json")
            sites = self.config.sites or self.end.sites
            count_as_read(ctx.recipe.task)  # only sites compute the loss
            if config.secure_aggregation is not None:
                count_as_read(config.secure_aggregation)  # only sites pin keys
            (ctx.run.folder / "federate").mkdir(exist_ok=True)
        self.summation = summation_of(config, sites, run_name(ctx), pinned)
        if self.end is not None:
            self.transport.least = max(config.min_answers, self.summation.smallest_group)
        coordinator = federate(
            job,
            self.transport,
            config.strategy,
            rounds_of(config, ctx),
            summation=self.summation,
            identity=identity_of(ctx),
            on_event=self.on_event,
        )
        if config.privacy is not None:
            refuse_delta(config.privacy.delta, sites)
        if ctx.recipe.privacy is not None and ctx.recipe.privacy.promises:
            message = "protects single examples, which the coordinator has none of: each site adds it to its own recipe. Remove it here."
            raise RecipeError([Problem("privacy", message)])
        if hasattr(self.summation, "tensors"):
            coordinator.extra["update_privacy"] = self.summation
        return coordinator

    def _simulated(self, job: TrainJob) -> tuple[Any, PinnedKeys, int]:
        ctx, config = self.ctx, self.config
        assert config.simulate is not None
        _ = config.simulate.compare, config.sites  # the stage that follows reads one, the command line the other
        parts = deal(ctx.splits.train, config.simulate, ctx.recipe.seed)
        held_out = ctx.splits.validation if ctx.splits.validation is not None else ctx.splits.test
        shares = None if held_out is None else deal(held_out, config.simulate, ctx.recipe.seed)
        workers = 1 if draws(job.model) or job.policy.device.type != "cpu" else min(self.settled.threads, config.simulate.sites)
        sites = BatchedSites(
            site_job(ctx, self.settled), ctx.splits.train, parts, batch=ctx.train.batch, strategy=config.strategy, held_out=shares,
            evaluated=held_out, workers=workers,
        )  # fmt: skip
        job.extra["sites"] = sites
        if config.secure_aggregation is None and config.privacy is None:
            return sites, PinnedKeys(), len(parts)
        examples = {name: len(rows) for name, rows in zip(sites.names, parts, strict=True)}
        secured = SecuredSimulation(sites, config, examples, run_name(ctx))
        return secured, secured.pinned, len(parts)

    def _sites(self) -> int:
        if self.end is not None:
            return self.config.sites or self.end.sites
        return self.config.simulate.sites if self.config.simulate is not None else 1

    def on_event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Log what happens to sites, and tell the user about failures."""
        if self.events is not None:
            self.events.log(kind, **fields)
        if kind in ("site_refused", "site_outweighs", "round_repeated"):
            who = fields.get("site", f"round {fields.get('round')}")
            self.ctx.on_event("warning", message=f"{who}: {fields.get('reason', '')}")

    def running(self) -> AbstractContextManager[Any]:
        self.events = EventLog(self.ctx.run.events_path)
        return self.events

    def run(self, loop: Callable[[], object], back_to_checkpoint: Callable[[str], bool]) -> None:
        """Run the loop; over the network, from when enough sites have joined until they have the final weights."""
        if self.end is None:
            loop()
            return
        from tauon.federated.flower import serve

        end, keys, stop = self.end, self.end.keys, StopWaiting(self._note)
        serving = serve(end.address, folder=keys, roster=keys / "roster", recipe=common_recipe(self.ctx), note=self._note)
        try:
            with stop.listening(), serving as coordinator:
                self.transport.inner, self.transport.stop = coordinator, stop
                self._note(f"serving on port {coordinator.port}; waiting for {end.sites} sites")
                with stop.waiting():
                    coordinator.wait_for(end.sites, timeout=end.wait)
                loop()
                self._ask_for_results()
        except KeyboardInterrupt:
            raise Interrupted(
                "The coordinator was stopped. The same command continues from the last checkpoint; sites wait for it."
            ) from None

    def _note(self, message: str) -> None:
        self.ctx.on_event("warning" if isinstance(message, Trouble) else "note", message=str(message))

    def finish(self, job: TrainJob) -> None:
        """Record what each site measures of the trained model on its own held-out examples, and what the updates spent of the sites' privacy."""
        record = self.ctx.run.folder / SITES
        if self.end is None:
            self.evaluate(job)
        elif not record.is_file():  # killed after the last round: the sites have gone
            write_sites(record, {}, None if self.account is None else self.account.record(float(self.summation.privacy.clip_norm)))

    def before_first_step(self, job: TrainJob) -> None:
        if self.account is not None:
            self.account.open(job, self.summation)

    def checkpoint_state(self, step: int, state: dict[str, Any]) -> dict[str, Any]:
        """The planned rounds: a run that lost some to an interruption (`RoundsAccount.open`) still resumes, also after a second one."""
        return state | {"total_steps": self.settled.steps}

    def ended(self, job: TrainJob) -> None:
        if self.account is not None:
            self.account.settle()
            self.account.record(float(self.summation.privacy.clip_norm))

    def loop_parts(self, job: TrainJob, hooks: Sequence[Any], save: Callable[..., None]) -> None:
        self.job = job

    def _ask_for_results(self) -> None:
        self.evaluate(self.job)

    def evaluate(self, job: TrainJob) -> None:
        """Ask the sites, and write the record."""
        if self.end is not None:
            self.transport.ask(weights_for(job, self.transport, "final"), timeout=self.config.timeout)
        held_out = self.end is not None or self.ctx.splits.validation is not None or self.ctx.splits.test is not None
        found = self._figures(job) if self.account is None and held_out else {}
        spent = None
        if self.account is not None:
            self.account.settle()
            spent = self.account.record(float(self.summation.privacy.clip_norm))
        write_sites(self.ctx.run.folder / SITES, found, spent)

    def _figures(self, job: TrainJob) -> dict[str, Any]:
        """Return what sites measure: each, or, where single sites stay unknown, the mean over all."""
        if self.config.secure_aggregation is None:
            return evaluate_sites(job, self.transport, timeout=self.config.timeout)
        names = ["loss", "accuracy"] if self.ctx.recipe.task.kind_ == "classification" else ["loss"]
        messages = weights_for(job, self.transport, "evaluate")
        try:
            means = self.summation.evaluate(
                self.transport, messages, names, most_examples=most_held_out(self.config), timeout=self.config.timeout
            )
        except TauonError as err:
            return {"all sites": {"failed": str(err)}}
        return {"all sites": {"metrics": means}}


def write_sites(path: Any, sites: Mapping[str, Any], privacy: Mapping[str, Any] | None) -> None:
    """Write the record of the end of training."""
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"sites": dict(sites), "privacy": privacy})


class _Later:
    """A transport that is opened when the loop begins, and waits for sites that are away."""

    inner: Any
    stop: StopWaiting

    def __init__(self, patience: float) -> None:
        self.patience, self.least = patience, 1

    def sites(self) -> list[str]:
        """Return the sites that have joined; wait while there are fewer than a round needs."""
        try:
            with self.stop.waiting():
                found: list[str] = self.inner.wait_for(self.least, timeout=self.patience)
        except LaunchError:
            found = self.inner.sites()
        return found

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | Failure]:
        answers: dict[str, Message | Failure] = self.inner.ask(messages, timeout=timeout)
        return answers


def run_name(ctx: Context) -> str:
    """Return the identifier of the run for secure aggregation: of the recipe that all parties have."""
    return recipe_hash(ctx)[:32]


def recipe_hash(ctx: Context) -> str:
    """Return the hash of what coordinator and sites must have in common of their recipes."""
    return hashlib.sha256(common_recipe(ctx).encode()).hexdigest()


def common_recipe(ctx: Context) -> str:
    """Return what coordinator and sites must have in common of their recipes, as JSON."""
    tree = dump(ctx.recipe)
    common = {name: tree.get(name) for name in COMMON} | {"seed": ctx.recipe.seed}
    federate = {k: v for k, v in tree["federate"].items() if k != "simulate"}
    if isinstance(privacy := federate.get("privacy"), dict):  # the ledger is a folder at the coordinator
        federate["privacy"] = {k: v for k, v in privacy.items() if k != "ledger"}
    common["federate"] = federate
    common["train"] = {k: v for k, v in tree["train"].items() if k in ("steps", "epochs", "batch", "freeze")}
    return json.dumps(common, sort_keys=True, default=str)


def identity_of(ctx: Context) -> dict[str, str]:
    """Return the hashes that coordinator and sites compare when a site joins: version, recipe, shape and names of the data, preprocessing."""
    splits = ctx.splits
    return {
        "version": __version__,
        "recipe": recipe_hash(ctx),
        "schema": _hash(spec_record(splits.spec)),
        "preprocessing": _hash(splits.preprocess),
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def freeze_products(job: TrainJob, config: FederateConfig) -> None:
    """Freeze A of LoRA adapters where updates are summed unseen, or noised: the mean of B times A is then the mean of the products."""
    if config.secure_aggregation is None and config.privacy is None:
        return
    if freeze_lora_a(job.model):
        for group in job.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p.requires_grad]


def rounds_of(config: FederateConfig, ctx: Context) -> Rounds:
    """Return the rounds of a recipe, with the local steps or epochs of its `train`."""
    train, weighting = ctx.train, config.weighting
    fraction = config.fraction if config.privacy is None else 1.0  # with privacy, sites are sampled in secret
    return Rounds(
        count=config.rounds, steps=train.steps, epochs=train.epochs, fraction=fraction, min_answers=config.min_answers,
        attempts=config.attempts, timeout=config.timeout, seed=ctx.recipe.seed, schedule=ctx.recipe.optim.schedule, optimizer=config.optimizer,
        group=config.group, weighting=Weighting(weighting.by, weighting.max_examples, weighting.max_gain), limits=Limits(config.max_norm),
    )  # fmt: skip


def site_job(ctx: Context, settings: JobSettings) -> TrainJob:
    """Return the job of a site at step 0: the recipe's, without what is done once for a run."""
    recipe = ctx.recipe
    config = JobConfig(ctx.model, recipe.optim, ctx.train, recipe.task, ctx.splits.spec, recipe.seed)
    job = build_job(config, Loader(ctx.splits.train, batch=ctx.train.batch, seed=recipe.seed), settings)
    freeze_products(job, ctx.section("federate", FederateConfig))
    return job


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
