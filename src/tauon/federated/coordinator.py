"""The coordinator of a federated run: a training job whose gradient is made by the sites.

A step of this job is a round: sample sites, ask them to train, check what they answer, combine it, and give minus the combined update to the server's
optimizer as the gradient. Checkpoints, exact resume, hooks, validation and progress are those of `train(job)`. A round with too few good answers is
repeated with other sites and an event.
"""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from tauon.errors import Problem, RecipeError
from tauon.federated.adapters import has_trainable_pairs
from tauon.federated.asynchronous import Arrivals, BufferedGradients, ThreadedArrivals
from tauon.federated.gradients import FederatedGradients
from tauon.federated.messages import Message, Transport
from tauon.federated.roster import EventFn, Roster
from tauon.federated.rounds import Rounds
from tauon.federated.strategies import FedBuff, StrategyConfig
from tauon.federated.summation import PlainSummation, Summation
from tauon.federated.updates import LARGEST_COUNT, copies, finite_number, travelling
from tauon.optim import Constant
from tauon.train import TrainJob
from tauon.train.statistics import running_statistics
from tauon.types import Batch

__all__ = ["evaluate_sites", "fairness", "federate", "weights_for"]


def federate(
    job: TrainJob, transport: Transport, strategy: StrategyConfig, rounds: Rounds, *, summation: Summation | None = None,
    identity: Mapping[str, str] | None = None, on_event: EventFn | None = None, arrivals: Arrivals | None = None,
) -> TrainJob:  # fmt: skip
    """Return the job as the coordinator of a federated run: each step is a round. Its own loader is not read.

    Args:
        job: a job of one process at step 0, from the same recipe as the sites' (`build_job`). Its optimizer, schedule and clipping are replaced.
        transport: to the sites.
        strategy: how updates are combined.
        rounds: number and kind of rounds.
        summation: how updates are summed; None: in the clear.
        identity: what sites must have in common with the coordinator (`check_identity`).
        on_event: called with the kind of an event and its fields: "site_joined" (of many at once "sites_joined"), "site_refused",
            "waiting_for_sites", "site_outweighs", "federated_round" and "round_repeated".
        arrivals: for an asynchronous strategy, how answers arrive one by one; None: `transport` is asked by threads.

    Raises:
        RecipeError: settings that do not work together.
    """
    how: Summation = PlainSummation() if summation is None else summation
    refuse_settings(job, strategy, rounds, how)
    make = FederatedGradients(job, transport, strategy, rounds, how)
    if isinstance(strategy, FedBuff):
        make = BufferedGradients(job, transport, strategy, rounds, arrivals or ThreadedArrivals(transport, strategy.concurrency))
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
            f"{strategy.kind_} compares the updates of single sites, which secure aggregation hides. Set federate.group to at least "
            f"{summation.smallest_group}: then it compares the sums of groups. Or use fedavg."
        )
        problems.append(Problem("federate.strategy", message))
    if strategy.asynchronous and (rounds.group is not None or not summation.single):
        problems.append(
            Problem("federate.strategy", f"{strategy.kind_} applies updates as they arrive, one by one: no sums of sites are possible.")
        )
    if rounds.group is not None and rounds.group < summation.smallest_group:
        problems.append(
            Problem("federate.group", f"{rounds.group} is too small: a sum hides single updates from {summation.smallest_group} on.")
        )
    if strategy.reads_first_loss and rounds.group is not None:
        problems.append(Problem("federate.group", f"{strategy.kind_} needs the loss of each site, so it does not work with groups."))
    if has_trainable_pairs(job.model) and (not summation.single or strategy.single_updates):
        message = (
            "the mean of A and the mean of B are not the mean of BA: freeze A (freeze_lora_a), or use fedavg without secure aggregation."
        )
        problems.append(Problem("adapt", message))
    if hasattr(summation, "privacy") and running_statistics(job.model).keys() & travelling(job.model, keep=strategy.keep(job.model)).keys():
        message = (
            "noises the running statistics of batch norm too, and a variance may become negative. Set model.norm=group, or the strategy fedbn, "
            "which leaves batch norm at the sites."
        )
        problems.append(Problem("federate.privacy", message))
    if summation.single is False and rounds.weighting.by == "examples" and rounds.weighting.max_examples is None:
        message = "with secure aggregation each site weights its own update: set the number of examples that counts at most."
        problems.append(Problem("federate.weighting.max_examples", message))
    if problems:
        raise RecipeError(problems)


class _NoBatches:
    """The coordinator's loader: a batch without rows that anything reads."""

    def batch_at(self, step: int) -> Batch:
        return Batch(torch.zeros(1, 1), torch.zeros(1), torch.ones(1))


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
    messages = weights_for(job, transport, "evaluate", keep=keep, fields={"fine_tune": fine_tune})
    return {n: _evaluation(answer, messages[n].nonce) for n, answer in transport.ask(messages, timeout=timeout).items()}


def weights_for(
    job: TrainJob, transport: Transport, kind: str, *, keep: Sequence[str] = (), fields: Mapping[str, Any] | None = None
) -> dict[str, Message]:
    """Return a message of a kind with the job's weights (of an average, if it has one) for each site that can be reached: "evaluate", or "final",
    which says that these are the weights that training ended with.
    """
    make = job.functions.make
    roster = make.roster if isinstance(make, FederatedGradients) else Roster(transport)
    keep = make.keep if isinstance(make, FederatedGradients) else keep
    names = roster.update(job.step)
    average = job.ema
    tensors = copies(travelling(job.model, keep=keep))
    if average is not None:
        tensors |= copies({n: average.shadow[n] for n in tensors if n in average.shadow})
    nonce = secrets.token_hex(16)
    return {n: Message(kind, job.step, nonce, {**(fields or {}), "session": roster.joined[n].session}, tensors) for n in names}


def _evaluation(answer: Any, nonce: str) -> dict[str, Any]:
    if not isinstance(answer, Message):
        return {"failed": answer.reason}
    examples, metrics, tuned = (answer.fields.get(k) for k in ("examples", "metrics", "tuned"))
    if answer.kind != "evaluated" or answer.nonce != nonce or not isinstance(examples, int) or not 0 <= examples <= LARGEST_COUNT:
        return {"failed": "not an answer to this request"}
    figures = {"metrics": metrics, **({} if tuned is None else {"tuned": tuned})}
    for each in figures.values():
        if not isinstance(each, Mapping) or any(finite_number(v) is None for v in each.values()):
            return {"failed": "its metrics are not finite numbers by name"}
    return {"examples": examples, **{kind: {str(n): float(v) for n, v in each.items()} for kind, each in figures.items()}}


def fairness(evaluations: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, float]:
    """Return how unequal a metric is over sites: its mean over sites (each alike), standard deviation, smallest and largest value.

    Args:
        evaluations: what `evaluate_sites` returned; sites without the metric are left out.
        metric: "loss", "accuracy", ...

    >>> fairness({"a": {"metrics": {"loss": 1.0}}, "b": {"metrics": {"loss": 3.0}}, "c": {"failed": "no answer"}}, "loss")
    {'sites': 2, 'mean': 2.0, 'std': 1.0, 'smallest': 1.0, 'largest': 3.0}
    """
    values = [float(e["metrics"][metric]) for e in evaluations.values() if metric in e.get("metrics", {})]
    if not values:
        return {"sites": 0}
    return {
        "sites": len(values), "mean": statistics.fmean(values), "std": statistics.pstdev(values), "smallest": min(values), "largest": max(values),
    }  # fmt: skip
