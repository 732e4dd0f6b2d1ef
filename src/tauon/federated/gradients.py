"""The gradient function of a coordinator: one call is one round."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tauon.errors import RecipeError, TrainingError
from tauon.federated.adapters import has_trainable_pairs, mean_of_products
from tauon.federated.messages import Message, Transport
from tauon.federated.roster import EventFn, Roster, draw_of, sample_sites
from tauon.federated.rounds import Rounds
from tauon.federated.strategies import StrategyConfig
from tauon.federated.summation import Collected, RoundRequest, Summation, tensor_bytes
from tauon.federated.updates import Update, copies, travelling
from tauon.train import TrainJob
from tauon.train.statistics import running_statistics
from tauon.train.step import StepFn
from tauon.types import Batch

__all__ = ["FederatedGradients", "StrategyState"]


POLL = 1.0
"""Seconds between two looks for sites that have not joined yet."""
OUTWEIGHS = 10
"""A site with more examples than this many times those of all others together is reported."""


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


class FederatedGradients:
    """The gradient function of a coordinator: does a round, and writes minus the combined update to `.grad`."""

    def __init__(self, job: TrainJob, transport: Transport, strategy: StrategyConfig, rounds: Rounds, summation: Summation) -> None:
        self.transport, self.strategy, self.rounds, self.summation = transport, strategy, rounds, summation
        self.keep = strategy.keep(job.model)
        self.travels = travelling(job.model, keep=self.keep)
        self.statistics = {n: t for n, t in running_statistics(job.model).items() if n in self.travels}
        self.parameters = {n: p for n, p in job.model.named_parameters() if n in self.travels}
        self.state = StrategyState(strategy.state(copies(self.travels)))
        self.products = has_trainable_pairs(job.model)
        self.roster = Roster(transport)
        self.on_event: EventFn | None = None
        self.examples = 0
        self.combined: dict[str, Tensor] = {}
        self.share, self.part = 1.0, 1.0
        self._heavy: set[str] = set()
        """Sites of which was said that they outweigh the others."""

    def __call__(self, job: TrainJob, batch: Batch) -> Tensor:
        """Do round `job.step + 1`; return the mean loss of the sites' training."""
        number = job.step + 1
        collected = self.collect(job, number)
        self.combined = self._combine(collected.updates)
        for name, p in self.parameters.items():
            p.grad = self.combined[name].to(p.device, p.dtype).neg()
        with torch.no_grad():
            for name, t in self.statistics.items():  # if the step is skipped, the job puts them back
                t.add_(self.combined[name].to(t.device, t.dtype))
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
            return mean_of_products(updates, copies(self.travels), part=self.part)
        return self.strategy.combine(updates)

    def collect(self, job: TrainJob, number: int) -> Collected:
        """Ask sites until enough gave a good answer. Raises `TrainingError` after too many attempts."""
        why = ""
        for attempt in range(self.rounds.attempts):
            present, asked, missing = self._sites(number, attempt)
            if missing is not None:
                why = missing
                self.report("round_repeated", {"round": number, "attempt": attempt, "reason": why})
                continue
            request = self._request(number, attempt, asked, present)
            collected = self.summation.collect(self.transport, request)
            for name, reason in collected.failed.items():
                self.roster.forget(name, reason)
            good, enough = len(collected.sites), self._is_enough(len(collected.sites), len(collected.updates))
            event: dict[str, Any] = {"round": number, "attempt": attempt, "asked": len(asked), "good": good}
            event |= {"sites": collected.sites, "failed": collected.failed, "refused": collected.refused}
            event |= {"sent_bytes": sum(tensor_bytes(m) for m in request.messages.values()), "received_bytes": collected.received_bytes}
            if enough:
                job.measured |= {"sites": good, "refused": len(collected.refused), "failed": len(collected.failed), "attempt": attempt}
                self.report("federated_round", event)
                self.share = self._share_of(collected.sites)
                total = sum(u.weight for u in collected.updates)
                limit = request.weighting.divisor(total, request.expected)
                self.part = total / limit if len(request.groups) > 1 else 1.0  # of one group, the summation has limited the mean
                return collected
            why = f"{good} good answers of {len(asked)} sites, at least {self._least()} are needed"
            some = {**collected.refused, **collected.failed}
            why += "".join(f"; {n}: {r}" for n, r in list(some.items())[:3])
            self.report("round_repeated", event | {"reason": why})
        raise TrainingError(f"round {number} failed {self.rounds.attempts} times; the last: {why}. Check the sites, or lower min_answers.")

    def _sites(self, number: int, attempt: int) -> tuple[list[str], list[str], str | None]:
        """Return (sites that take part, sites that are asked, None), waiting for them if there are too few; after that, why there are too few.
        Raises `RecipeError` if the strategy cannot work with so few, unless it did in an earlier round.
        """
        until, announced = time.monotonic() + self.rounds.wait, False
        while True:
            present = self.roster.update(number)
            asked = sample_sites(present, self.rounds.sampled(len(present)), seed=self.rounds.seed, number=number, attempt=attempt)
            refusal: RecipeError | None = None
            missing = None
            if len(present) < self._least():
                refused = "".join(f"; {n}: {r}" for n, r in list(self.roster.refused.items())[:3])
                missing = f"{len(present)} sites have joined, at least {self._least()} are needed{refused}"
            else:
                try:
                    self.strategy.refuse(len(self._groups(asked, number, attempt)))
                except RecipeError as err:
                    refusal, missing = err, str(err)
            if missing is None or time.monotonic() >= until:
                if refusal is not None and number == 1:
                    raise refusal
                return present, asked, missing
            if not announced:
                self.report("waiting_for_sites", {"round": number, "seconds": self.rounds.wait, "reason": missing})
            announced = True
            time.sleep(min(POLL, self.rounds.wait))

    def _least(self) -> int:
        return max(self.rounds.min_answers, self.summation.smallest_group)

    def _is_enough(self, sites: int, groups: int) -> bool:
        if sites < self._least() or not groups:
            return False
        try:
            self.strategy.refuse(groups)
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

    def _request(self, number: int, attempt: int, asked: Sequence[str], present: Sequence[str]) -> RoundRequest:
        rounds, joined = self.rounds, self.roster.joined
        messages = self.messages(number, attempt, asked, self.tensors())
        everyone = rounds.weighting.of([joined[n].examples for n in present])
        self._say_who_decides(number, dict(zip(present, everyone, strict=True)))
        return RoundRequest(
            messages, self._groups(asked, number, attempt), {n: joined[n].examples for n in asked}, rounds.timeout, rounds.weighting, rounds.limits,
            sum(everyone) * len(asked) / len(present), list(self.strategy.send(self.state.held)), self._is_enough,
        )  # fmt: skip

    def _say_who_decides(self, number: int, weights: Mapping[str, float]) -> None:
        """Report a site that counts more than `OUTWEIGHS` times as much as all others together, once: what a site declares cannot be checked."""
        name = max(weights, key=lambda n: weights[n])
        others = sum(weights.values()) - weights[name]
        if self.strategy.weighted and len(weights) > 1 and weights[name] > OUTWEIGHS * others and name not in self._heavy:
            self._heavy.add(name)
            reason = (
                f"declares {weights[name]:,.0f} examples, the other {len(weights) - 1} sites {others:,.0f} together: it decides the model. "
            )
            reason += "federate.weighting.max_examples limits what a site counts as"
            self.report("site_outweighs", {"site": name, "round": number, "reason": reason})

    def tensors(self) -> dict[str, Tensor]:
        """Return a copy of what sites get."""
        return copies({**self.travels, **self.strategy.send(self.state.held)})

    def messages(self, number: int, attempt: int, asked: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Message]:
        """Return the request to train of each site, all with one nonce."""
        rounds, strategy, nonce = self.rounds, self.strategy, secrets.token_hex(16)
        fields: dict[str, Any] = {"steps": rounds.steps, "epochs": rounds.epochs, "optimizer": rounds.optimizer, "attempt": attempt}
        fields |= {"rate": rounds.schedule.factor(number - 1, rounds.count), "rounds": rounds.count}
        fields |= {"weight_by": rounds.weighting.by, "max_examples": rounds.weighting.max_examples}
        fields |= {"first_loss": True} if strategy.reads_first_loss else {}
        fields |= strategy.order()
        return {n: Message("train", number, nonce, fields | {"session": self.roster.joined[n].session}, tensors) for n in asked}

    def _share_of(self, good: Mapping[str, Any]) -> float:
        """Return the weight of the sites that answered, of all that ever joined: those that failed in this round are among them."""
        declared, weights = self.roster.declared, self.rounds.weighting.of
        return sum(weights([declared[n] for n in good])) / sum(weights(list(declared.values())))

    def report(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Pass an event to the callback, if there is one."""
        if self.on_event is not None:
            self.on_event(kind, fields)
