"""A real site of a federated run: its training answers the coordinator's messages; a checkpoint after each round makes it resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tauon.config import count_as_read
from tauon.data import Loader
from tauon.errors import Problem, RecipeError, RunError
from tauon.federated import LocalTraining, Message, Site, SiteState, TrainingSite
from tauon.federated.config import FederateConfig
from tauon.federated.network import JoinAt, Trouble
from tauon.federated.protection import Who, protect
from tauon.federated.secagg import Identity, PinnedKeys, fingerprint
from tauon.federated.simulation.sites import ClientRows
from tauon.plan import Derived, Plan
from tauon.privacy import PrivateGradients
from tauon.stages.extensions.base import TrainExtension
from tauon.stages.extensions.federation import common_recipe, freeze_products, identity_of, run_name
from tauon.stages.unread import refuse_unread
from tauon.tracking import EventLog
from tauon.train import TrainJob

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["SiteTraining"]

FINAL = "federated"
"""Key in `job.notes`: the run has the weights that training ended with, not those of the site's own last round."""


class SiteTraining(TrainExtension):
    """Waits for the coordinator, trains when it is asked to, and ends when the coordinator says so. The run's model is then the federated one."""

    takes_plain_steps = False

    def __init__(self, ctx: Context, config: FederateConfig, end: JoinAt) -> None:
        self.ctx, self.config, self.end = ctx, config, end
        self.state = SiteState()
        self.settled: Plan
        self.batches: Loader
        self.events: EventLog | None = None
        self.save: Callable[..., None] | None = None
        count_as_read(config)  # the coordinator uses it

    def work(self, loader: Loader) -> None:
        self.batches = loader

    def plan(self, plan: Plan) -> None:
        if not self.ctx.recipe.data.rows:
            raise RecipeError([Problem("data.rows", "is false, but a site trains on its own data. Remove it.")])
        self.settled = plan
        train = self.ctx.train
        steps = (
            train.steps if train.steps is not None else self.batches.steps_for(train.epochs or 1)
        )  # as in a round: of units, if they are private
        plan.steps = self.config.rounds * steps  # in all rounds: what a private site accounts for
        reason = f"{self.config.rounds} rounds, as many as the coordinator asks for"
        others = (
            "train.steps",
            "optim.schedule",
            "train.validate_every",
            "train.checkpoint_every",
        )  # a site saves each round, and validates none
        plan.derived = [d for d in plan.derived if d.path not in others]
        plan.derived.insert(0, Derived("train.steps", plan.steps, reason))

    def wrap(self, job: TrainJob) -> TrainJob:
        freeze_products(job, self.config)
        job.extra["site"] = self.state
        return job

    def loop_parts(self, job: TrainJob, hooks: Sequence[Any], save: Callable[..., None]) -> None:
        self.job, self.save = job, save

    def running(self) -> AbstractContextManager[Any]:
        if not self.ctx.world.leads:
            return nullcontext()
        self.events = EventLog(self.ctx.run.events_path)
        return self.events

    def run(self, loop: Callable[[], object], back_to_checkpoint: Callable[[str], bool]) -> None:
        """Take part until the coordinator ends it; then save the model of the last message as the run's. Raises `RunError` if it did not come."""
        from tauon.federated.flower import join

        job, ctx, keys = self.job, self.ctx, self.end.keys
        if job.notes.get(FINAL):
            return
        keep = self.config.strategy.keep(job.model)
        self.local = local = LocalTraining(job, len(ctx.splits.train), keep=keep, data=self._examples, most_steps=self.settled.steps)
        held_out = ctx.splits.validation if ctx.splits.validation is not None else ctx.splits.test
        evaluated = None if held_out is None else ClientRows(held_out, np.arange(len(held_out))).batches
        site = TrainingSite(
            local, identity=identity_of(ctx), held_out=evaluated, state=self.state, save=self._saved, measure=self._accuracy
        )
        if not ctx.world.leads:  # the first process of the site speaks with the coordinator
            site.follow()
            self._finish(site)
            return
        end = protect(_Watched(site, self._trained), self.config, self._who())
        try:
            join(
                self.end.address, end, key=keys / f"{self.end.name}.key", authority=keys / "ca.crt", recipe=common_recipe(ctx),
                note=lambda text: ctx.on_event("warning" if isinstance(text, Trouble) else "note", message=str(text)),
            )  # fmt: skip
        finally:
            site.stop()
        self._finish(site)

    def _finish(self, site: TrainingSite) -> None:
        """Save the final weights as the run's."""
        if not site.is_final:
            raise RunError(
                f"{self.ctx.run.folder}: the coordinator ended before this site had the final weights; what is here is the model of the site's own last "
                "round. Ask for the coordinator's model; or let it serve again, and run the same command."
            )
        self.job.notes[FINAL] = True
        self._save(self.settled.steps, again=True)

    def _accuracy(self, job: TrainJob) -> dict[str, float]:
        """The accuracy of a classifier on the held-out examples."""
        held_out = self.ctx.splits.validation if self.ctx.splits.validation is not None else self.ctx.splits.test
        if self.ctx.recipe.task.kind_ != "classification" or held_out is None:
            return {}
        right = [
            (job.task.predict(job.model, batch.to(job.policy.device))["scores"].argmax(1).cpu() == batch.targets).float()
            for batch in ClientRows(held_out, np.arange(len(held_out))).batches()
        ]
        return {"accuracy": float(torch.cat(right).mean())}

    def _who(self) -> Who:
        secure = self.config.secure_aggregation is not None
        folder = self.ctx.run.folder / "federate"
        folder.mkdir(exist_ok=True)
        identity = Identity.of(self.end.keys / f"{self.end.name}.identity") if secure else None
        pinned = PinnedKeys(path=self.end.keys / "pinned.json") if secure else None
        if pinned is not None:
            pinned.on_pin = self._pinned
        sites = self._sites() if self.config.privacy is not None or secure else 1
        return Who(self.end.name, len(self.ctx.splits.train), sites, run_name(self.ctx), identity, pinned, folder / "round.json")

    def _pinned(self, name: str, public: bytes) -> None:
        if name != self.end.name:
            message = (
                f"{name} is pinned for the first time, as the coordinator said: compare its fingerprint by telephone: {fingerprint(public)}"
            )
            self.ctx.on_event("warning", message=message)

    def _sites(self) -> int:
        if self.config.sites is None:
            message = "is needed for secure aggregation and for privacy of updates at real sites: the number of sites that may take part, the same everywhere."
            raise RecipeError([Problem("federate.sites", message)])
        return self.config.sites

    def _examples(self) -> Any:
        return ClientRows(self.ctx.splits.train, np.arange(len(self.ctx.splits.train))).batches()

    def _saved(self, state: SiteState) -> None:
        """Save a checkpoint after a round. It is on disk before the answer leaves, where a site that forgot the round would do harm: use its noise twice, or
        lose what it keeps (control variates, statistics).
        """
        self._save(self.job.step, wait=bool(state.rounds) or isinstance(self.job.functions.make, PrivateGradients))

    def _save(self, step: int, *, again: bool = False, wait: bool = False) -> None:
        job, total = self.job, self.job.policy.total_steps
        job.step, job.policy = step, replace(job.policy, total_steps=self.settled.steps)
        if not self.ctx.run.manifest().get("training"):
            refuse_unread(self.ctx.recipe, "train")
            self.ctx.record_training(self.settled)
        assert self.save is not None
        self.save(job, again=again, wait=wait)
        job.policy = replace(job.policy, total_steps=total)

    def _trained(self, answer: Message) -> None:
        """Log a round, and show it."""
        job, loss = self.job, self.local.loss  # that of a private site is not in its answer
        facts = {"step": job.step, "examples": answer.fields["examples"], "tokens": 0, "loss": loss, "round": answer.round}
        if self.events is not None:
            self.events.log("step", **facts)
        self.ctx.on_event("step", total_steps=self.settled.steps, **facts)


class _Watched:
    """A site whose answers to "train" are seen here, before they are masked or noised."""

    def __init__(self, site: Site, trained: Callable[[Message], None]) -> None:
        self.site, self.trained = site, trained

    def answer(self, message: Message) -> Message:
        answer = self.site.answer(message)
        if message.kind == "train":
            self.trained(answer)
        return answer
