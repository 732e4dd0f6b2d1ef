"""The coordinator of a federated run: a training job whose gradient is made by the sites.

A step of this job is a round: sample sites, ask them to train, check what they answer, combine it, and give minus the combined update to the server's
optimizer as the gradient. Checkpoints, exact resume, hooks, validation and progress are those of `train(job)`. A round with too few good answers is
repeated with other sites and an event.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tauon.errors import Problem, RecipeError, TrainingError
from tauon.federated.adapters import has_trainable_pairs, mean_of_products
from tauon.federated.messages import Message, Transport
from tauon.federated.roster import EventFn, Roster, draw_of, sample_sites
from tauon.federated.strategies import StrategyConfig
from tauon.federated.summation import Collected, PlainSummation, RoundRequest, Summation, tensor_bytes
from tauon.federated.updates import Limits, Update, Weighting, travelling
from tauon.optim import Constant, ScheduleConfig
from tauon.train import TrainJob
from tauon.train.statistics import running_statistics
from tauon.train.step import StepFn
from tauon.types import Batch

__all__ = ["FederatedGradients", "Rounds", "StrategyState", "evaluate_sites", "federate"]


@dataclass(frozen=True)
class Rounds:
    """How many rounds a federated run has, and what a round is."""

    count: int
    """Rounds."""
    steps: int | None = None
    """Local steps of each site in a round. Set this or `epochs`."""
    epochs: float | None = None
    """Passes of each site over its examples in a round."""
    fraction: float = 1.0
    """Share of the sites that is sampled for a round."""
    min_answers: int = 1
    """Good answers that a round needs; with fewer it is repeated with other sites."""
    attempts: int = 5
    """Attempts of a round before the run stops with an error."""
    timeout: float = 600.0
    """Seconds until the answers of a round are counted."""
    seed: int = 0
    """Of the sampling of sites."""
    schedule: ScheduleConfig = field(default_factory=lambda: Constant(warmup=0))
    """Factor of the sites' learning rate, over rounds."""
    optimizer: Literal["fresh", "kept"] = "fresh"
    """Whether the state of each site's optimizer starts from zero in each round."""
    group: int | None = None
    """For strategies that compare updates: compare the sums of groups of at least this many sites, instead of single updates."""
    weighting: Weighting = field(default_factory=Weighting)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise RecipeError([Problem("federated", "set exactly one of steps and epochs: how long sites train in a round.")])
        if self.count < 1 or not 0 < self.fraction <= 1 or self.min_answers < 1 or self.attempts < 1:
            raise RecipeError(
                [Problem("federated", "rounds, min_answers and attempts must be at least 1, and fraction above 0 and at most 1.")]
            )

    def sampled(self, sites: int) -> int:
        """Return the number of sites that are sampled of so many."""
        return max(1, min(sites, max(self.min_answers, round(self.fraction * sites))))


class StrategyState:
    """The strategy's own tensors, saved with each checkpoint."""

    def __init__(self, held: dict[str, Tensor]) -> None:
        self.held = held

    def tensors(self) -> dict[str, Tensor]:
        return self.held

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, t in self.held.items():
            t.copy_(tensors[name])


def federate(
    job: TrainJob, transport: Transport, strategy: StrategyConfig, rounds: Rounds, *, summation: Summation | None = None,
    identity: Mapping[str, str] | None = None, on_event: EventFn | None = None,
) -> TrainJob:  # fmt: skip
    """Return the job as the coordinator of a federated run: each step is a round. Its own loader is not read.

    Args:
        job: a job of one process at step 0, from the same recipe as the sites' (`build_job`). Its optimizer, schedule and clipping are replaced.
        transport: to the sites.
        strategy: how updates are combined.
        rounds: number and kind of rounds.
        summation: how updates are summed; None: in the clear.
        identity: what sites must have in common with the coordinator (`check_identity`).
        on_event: called with "site_joined", "site_refused", "federated_round" and "round_repeated", and their fields.

    Raises:
        RecipeError: settings that do not work together.
    """
    how: Summation = PlainSummation() if summation is None else summation
    refuse_settings(job, strategy, rounds, how)
    make = FederatedGradients(job, transport, strategy, rounds, how)
    make.roster = Roster(transport, dict(identity or {}), timeout=min(60.0, rounds.timeout), on_event=on_event)
    make.on_event = on_event
    job.optimizer = strategy.optimizer(job.model)
    job.policy = replace(
        job.policy, total_steps=rounds.count, schedule=Constant(warmup=0), clip_norm=None, clip_value=None, clip_layer=None, clip_adaptive=None,
        examples_at=make.examples_at, reads_late=False,
    )  # fmt: skip
    job.loader = _NoBatches()
    job.functions = replace(job.functions, make=make, exchange=lambda job: None, update=make.accept(job.functions.update))
    job.health.by_loss = False
    job.extra["strategy"] = make.state
    return job


def refuse_settings(job: TrainJob, strategy: StrategyConfig, rounds: Rounds, summation: Summation) -> None:
    """Raise `RecipeError` for settings that do not work together."""
    problems = []
    if job.mesh.layout.world > 1:
        problems.append(Problem("parallel", "the coordinator is one process; sites may have several."))
    if job.eval_weights is not None:
        problems.append(Problem("optim.kind", "it averages weights itself, but federated training averages over sites. Use adamw or sgd."))
    if strategy.single_updates and not summation.single and rounds.group is None:
        message = (
            f"{strategy.kind_} compares the updates of single sites, which secure aggregation hides. Set federated.group to at least "
            f"{summation.smallest_group}: then it compares the sums of groups. Or use fedavg."
        )
        problems.append(Problem("federated.strategy", message))
    if rounds.group is not None and rounds.group < summation.smallest_group:
        problems.append(
            Problem("federated.group", f"{rounds.group} is too small: a sum hides single updates from {summation.smallest_group} on.")
        )
    if strategy.reads_first_loss and rounds.group is not None:
        problems.append(Problem("federated.group", f"{strategy.kind_} needs the loss of each site, so it does not work with groups."))
    if has_trainable_pairs(job.model) and (not summation.single or strategy.single_updates):
        message = (
            "the mean of A and the mean of B are not the mean of BA: freeze A (freeze_lora_a), or use fedavg without secure aggregation."
        )
        problems.append(Problem("adapt", message))
    if summation.single is False and rounds.weighting.by == "examples" and rounds.weighting.max_examples is None:
        message = "with secure aggregation each site weights its own update: set the number of examples that counts at most."
        problems.append(Problem("federated.weighting.max_examples", message))
    if problems:
        raise RecipeError(problems)


class _NoBatches:
    """The coordinator's loader: a batch without rows that anything reads."""

    def batch_at(self, step: int) -> Batch:
        return Batch(torch.zeros(1, 1), torch.zeros(1), torch.ones(1))


class FederatedGradients:
    """The gradient function of a coordinator: does a round, and writes minus the combined update to `.grad`."""

    def __init__(self, job: TrainJob, transport: Transport, strategy: StrategyConfig, rounds: Rounds, summation: Summation) -> None:
        self.transport, self.strategy, self.rounds, self.summation = transport, strategy, rounds, summation
        self.keep = strategy.keep(job.model)
        self.travels = travelling(job.model, keep=self.keep)
        self.statistics = {n: t for n, t in running_statistics(job.model).items() if n in self.travels}
        self.parameters = {n: p for n, p in job.model.named_parameters() if n in self.travels}
        self.state = StrategyState(strategy.state(self.travels))
        self.products = has_trainable_pairs(job.model)
        self.roster = Roster(transport)
        self.on_event: EventFn | None = None
        self.examples = 0
        self.combined: dict[str, Tensor] = {}
        self.share = 1.0

    def __call__(self, job: TrainJob, batch: Batch) -> Tensor:
        """Do round `job.step + 1`; return the mean loss of the sites' training."""
        number = job.step + 1
        collected = self._collect(job, number)
        self.combined = self._combine(collected.updates)
        for name, p in self.parameters.items():
            p.grad = self.combined[name].to(p.dtype).neg()
        with torch.no_grad():
            for name, t in self.statistics.items():  # if the step is skipped, the job puts them back
                t.add_(self.combined[name].to(t.dtype))
        self.examples = sum(u.examples for u in collected.updates)
        losses = [(u.weight, u.loss) for u in collected.updates if not math.isnan(u.loss)]
        total = sum(w for w, _ in losses)
        return torch.tensor(sum(w * x for w, x in losses) / total if total else math.nan)

    def examples_at(self, step: int) -> int:
        """Return the examples of the sites that took part in the last round."""
        return self.examples

    def accept(self, update: StepFn) -> StepFn:
        """Return the update function: the server's optimizer, then the strategy's state. Not called for a round that is skipped."""

        def accepted(job: TrainJob) -> None:
            update(job)
            self.strategy.after(self.state.held, self.combined, self.share)

        return accepted

    def _combine(self, updates: Sequence[Update]) -> dict[str, Tensor]:
        if self.products and not self.strategy.single_updates:
            return mean_of_products(updates, self.travels)
        return self.strategy.combine(updates)

    def _collect(self, job: TrainJob, number: int) -> Collected:
        """Ask sites until enough gave a good answer. Raises `TrainingError` after too many attempts."""
        why = "no site has joined"
        for attempt in range(self.rounds.attempts):
            present = self.roster.update(number)
            if not present:
                why = "; ".join(f"{n}: {r}" for n, r in list(self.roster.refused.items())[:3]) or why
                self._report("round_repeated", {"round": number, "attempt": attempt, "reason": why})
                continue
            asked = sample_sites(present, self.rounds.sampled(len(present)), seed=self.rounds.seed, number=number, attempt=attempt)
            self.strategy.refuse(len(self._groups(asked, number, attempt)))
            request = self._request(job, number, attempt, asked, present)
            collected = self.summation.collect(self.transport, request)
            for name, reason in collected.failed.items():
                self.roster.forget(name, reason)
            good, enough = len(collected.sites), self._is_enough(collected)
            event: dict[str, Any] = {"round": number, "attempt": attempt, "asked": len(asked), "good": good}
            event |= {"sites": collected.sites, "failed": collected.failed, "refused": collected.refused}
            if enough:
                sent = sum(tensor_bytes(m) for m in request.messages.values())
                job.measured |= {"sites": good, "refused": len(collected.refused), "failed": len(collected.failed), "attempt": attempt}
                self._report("federated_round", event | {"sent_bytes": sent, "received_bytes": collected.received_bytes})
                self.share = self._share_of(collected.sites)
                return collected
            why = f"{good} good answers of {len(asked)} sites, at least {self._least()} are needed"
            some = {**collected.refused, **collected.failed}
            why += "".join(f"; {n}: {r}" for n, r in list(some.items())[:3])
            self._report("round_repeated", event | {"reason": why})
        raise TrainingError(f"round {number} failed {self.rounds.attempts} times; the last: {why}. Check the sites, or lower min_answers.")

    def _least(self) -> int:
        return max(self.rounds.min_answers, self.summation.smallest_group)

    def _is_enough(self, collected: Collected) -> bool:
        if len(collected.sites) < self._least() or not collected.updates:
            return False
        try:
            self.strategy.refuse(len(collected.updates))
        except RecipeError:
            return False  # sites vanished: a robust rule no longer has enough updates
        return True

    def _groups(self, asked: Sequence[str], number: int, attempt: int) -> list[list[str]]:
        """Return the groups of sites whose updates are summed: all together, each alone, or groups by chance, which change with the round."""
        if not (self.strategy.single_updates or self.products):
            return [list(asked)]
        if self.rounds.group is None:
            return [[name] for name in asked]
        shuffled = sorted(asked, key=lambda name: draw_of(name, self.rounds.seed + 1, number, attempt))
        count = max(1, len(shuffled) // self.rounds.group)
        return [sorted(shuffled[i::count]) for i in range(count)]

    def _request(self, job: TrainJob, number: int, attempt: int, asked: Sequence[str], present: Sequence[str]) -> RoundRequest:
        rounds, strategy = self.rounds, self.strategy
        own = strategy.send(self.state.held)
        tensors = {n: t.clone() for n, t in self.travels.items()} | {n: t.clone() for n, t in own.items()}
        fields: dict[str, Any] = {"steps": rounds.steps, "epochs": rounds.epochs, "optimizer": rounds.optimizer, "attempt": attempt}
        fields |= {
            "rate": rounds.schedule.factor(number - 1, rounds.count),
            "rounds": rounds.count,
            "max_examples": rounds.weighting.max_examples,
        }
        fields |= {"weight_by": rounds.weighting.by}
        fields |= {"first_loss": True} if strategy.reads_first_loss else {}
        fields |= strategy.order()
        nonce = secrets.token_hex(16)
        joined = self.roster.joined
        messages = {n: Message("train", number, nonce, fields | {"session": joined[n].session}, tensors) for n in asked}
        everyone = rounds.weighting.of([joined[n].examples for n in present])
        return RoundRequest(
            messages, self._groups(asked, number, attempt), {n: joined[n].examples for n in asked}, rounds.timeout, rounds.weighting, rounds.limits,
            sum(everyone) * len(asked) / len(present), list(own),
        )  # fmt: skip

    def _share_of(self, good: Mapping[str, Any]) -> float:
        """Return the weight of the sites that answered, of all that have joined."""
        everyone = self.rounds.weighting.of([j.examples for j in self.roster.joined.values()])
        mine = self.rounds.weighting.of([self.roster.joined[n].examples for n in good])
        return sum(mine) / sum(everyone)

    def _report(self, kind: str, fields: Mapping[str, Any]) -> None:
        if self.on_event is not None:
            self.on_event(kind, fields)


def evaluate_sites(
    job: TrainJob, transport: Transport, *, keep: Sequence[str] = (), timeout: float = 600.0, fine_tune: int = 0
) -> dict[str, dict[str, Any]]:
    """Return what each reachable site measures of the job's weights on its own held-out examples: {"examples": n, "metrics": {"loss": ...}}, or
    {"failed": reason}.

    Args:
        job: the coordinator's.
        transport: to the sites.
        keep: names of tensors that stay at the sites (`StrategyConfig.keep`).
        timeout: seconds.
        fine_tune: also measure after this many local steps from these weights: "tuned" (personalisation).
    """
    make = job.functions.make
    roster = make.roster if isinstance(make, FederatedGradients) else Roster(transport)
    keep = make.keep if isinstance(make, FederatedGradients) else keep
    names = roster.update(job.step)
    average = job.ema
    tensors = {n: t.clone() for n, t in travelling(job.model, keep=keep).items()}
    if average is not None:
        tensors |= {n: average.shadow[n].clone() for n in tensors if n in average.shadow}
    nonce = secrets.token_hex(16)
    messages = {
        n: Message("evaluate", job.step, nonce, {"session": roster.joined[n].session, "fine_tune": fine_tune}, tensors) for n in names
    }
    return {n: _evaluation(answer, nonce) for n, answer in transport.ask(messages, timeout=timeout).items()}


def _evaluation(answer: Any, nonce: str) -> dict[str, Any]:
    if not isinstance(answer, Message):
        return {"failed": answer.reason}
    fields = dict(answer.fields)
    good = answer.kind == "evaluated" and answer.nonce == nonce and isinstance(fields.get("examples"), int)
    return fields if good else {"failed": "not an answer to this request"}
