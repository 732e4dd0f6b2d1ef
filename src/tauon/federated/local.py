"""A site's work: one training job stays alive and trains from the weights that each round sends.

A round is `train(job)` over the round's steps, so precision, privacy, clipping, adapters and a mesh of several processes come with the job. The
proximal term (FedProx) and control variates (SCAFFOLD) are added to the gradient after it was exchanged.

Batches and random draws of round r are those of the steps from (r - 1) K on, K steps a round: a function of the round, so that a repeated or resumed
round gives the same update. A private job never uses a step twice, since the same noise under two updates would cancel; it makes no more steps than
were reserved, and its answer has no loss, which would be exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD

from tauon.distributed import fill
from tauon.errors import Problem, RecipeError
from tauon.federated.messages import Message, MessageError
from tauon.federated.site_state import SiteState
from tauon.federated.updates import CONTROL, difference, travelling, whole
from tauon.optim import Constant, load_optimizer, optimizer_tensors
from tauon.privacy import PrivateGradients
from tauon.train import TrainJob, train, validation_loss
from tauon.types import Batch, StepInfo

__all__ = ["LocalTraining", "RoundOrder"]

Batches = Callable[[], Iterable[Batch]]
"""Returns batches of all examples, each time from the start."""


@dataclass(frozen=True)
class RoundOrder:
    """What a message "train" asks a site to do, besides the weights to start from."""

    round: int
    steps: int | None = None
    """Local steps; None: `epochs` passes over the site's examples."""
    epochs: float | None = None
    rate: float = 1.0
    """Factor of the learning rate in this round: the recipe's schedule over rounds."""
    proximal: float = 0.0
    """Weight mu of the proximal term mu / 2 ||x - x_sent||^2."""
    control: bool = False
    """Correct the gradient with control variates."""
    optimizer: Literal["fresh", "kept"] = "fresh"
    """Whether the state of the local optimizer (momentum) starts from zero in each round."""
    first_loss: bool = False
    """Report the loss of the weights that were sent, on all training examples."""

    @classmethod
    def of(cls, message: Message) -> RoundOrder:
        """Read the fields of a message; others are ignored. Raises `MessageError` for values that make no sense."""
        kinds: dict[str, tuple[type, ...]] = {
            "steps": (int,), "epochs": (int, float), "rate": (int, float), "proximal": (int, float), "control": (bool,), "optimizer": (str,),
            "first_loss": (bool,),
        }  # fmt: skip
        given = {k: v for k, v in message.fields.items() if k in kinds and v is not None}
        for name, value in given.items():
            fine = isinstance(value, kinds[name]) and isinstance(value, bool) == (kinds[name] == (bool,))
            if not fine or (isinstance(value, int | float) and not (math.isfinite(value) and value >= 0)):
                raise MessageError(f"a request to train with {name} {value!r}")
        order = cls(message.round, **given)
        if (
            (order.steps is None) == (order.epochs is None)
            or order.steps == 0
            or order.epochs == 0
            or order.optimizer not in ("fresh", "kept")
        ):
            raise MessageError("a request to train needs steps or epochs, above 0, and optimizer fresh or kept")
        if order.round < 1:
            raise MessageError(f"a request to train in round {order.round}: rounds count from 1")
        return order


class LocalTraining:
    """The training of one site, over rounds.

    Args:
        job: built on the site's data (`build_job`), and wrapped (`make_private`) as in training at one place. It belongs to this object from now on.
        examples: number of the site's training examples.
        keep: names of tensors that stay at the site (`StrategyConfig.keep`).
        data: batches of all its training examples, for strategies that need their loss (q-FedAvg).
        most_steps: of a private job: local steps whose privacy was reserved, in all rounds; more are refused. None: not limited.

    Raises:
        RecipeError: the optimizer averages weights itself, so that there is no one set of weights to send.
    """

    def __init__(
        self, job: TrainJob, examples: int, *, keep: Collection[str] = (), data: Batches | None = None, most_steps: int | None = None
    ) -> None:
        if job.eval_weights is not None:
            raise RecipeError(
                [Problem("optim.kind", "it averages weights itself, but federated training averages over sites. Use adamw or sgd.")]
            )
        job.ema = None  # the average is over rounds, at the coordinator
        self.job, self.examples, self.data = job, examples, data
        self.private, self.most_steps = isinstance(job.functions.make, PrivateGradients), most_steps
        self.loss = math.nan
        """Mean training loss of the last round: for the site's own log."""
        self._pull = _Pull(job)
        job.policy = replace(job.policy, schedule=_RoundRate())
        self.keep_names(keep)

    def keep_names(self, keep: Collection[str]) -> None:
        """Set which tensors stay at the site."""
        self.kept = {n: t for n, t in travelling(self.job.model).items() if n in set(keep)}
        self._kept_at_start = {n: t.clone() for n, t in self.kept.items()}
        self.travels = travelling(self.job.model, keep=keep)

    def load(self, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Load the weights that were sent, and the site's own tensors. Raises `MessageError` for another model's weights."""
        sent = {n: t for n, t in tensors.items() if not n.startswith(CONTROL)}
        if sent.keys() != self.travels.keys():
            odd = sorted(sent.keys() ^ self.travels.keys())
            raise MessageError(f"the weights that were sent are of another model: {', '.join(odd[:3])} is only on one side")
        for name, t in self.travels.items():
            if sent[name].shape != t.shape:
                raise MessageError(f"the weights that were sent have {name} of {tuple(sent[name].shape)}, expected {tuple(t.shape)}")
            fill(t, sent[name])
        for name, t in self.kept.items():
            t.copy_(own.get(f"kept/{name}", self._kept_at_start[name]))

    def train(self, message: Message, state: SiteState) -> Message:
        """Do one round and return the answer, "trained": local weights minus sent weights, examples, steps, loss (not of a private job). Collective
        over the job's processes. Raises `MessageError` for a request that does not fit, `TrainingError` if local training fails.
        """
        order, job = RoundOrder.of(message), self.job
        own = state.before(order.round)
        self.load(message.tensors, own)
        self._reset_optimizer(order, own)
        self._pull.start(order.proximal, *self._control(order, message, own))
        losses: list[float] = []

        def note(job: TrainJob, info: StepInfo) -> None:
            if "skipped" not in info.metrics:
                losses.append(float(info.metrics["loss"]))

        first_loss = self._first_loss() if order.first_loss else None
        steps = self._set_steps(order, state)
        train(job, hooks=[note])
        if not losses:
            raise MessageError("all local steps were skipped: their gradients were not finite")
        self.loss = sum(losses) / len(losses)
        fields: dict[str, Any] = {"examples": self.examples, "steps": steps} | ({} if self.private else {"loss": self.loss})
        if first_loss is not None:
            fields["first_loss"] = first_loss
        update = {n: difference(whole(t), message.tensors[n]) for n, t in self.travels.items()}
        kept = {f"kept/{n}": t.clone() for n, t in self.kept.items()}
        if order.control:
            kept |= (changed := self._new_control(order, message, own, len(losses)))
            update |= {n: t - own.get(n, torch.zeros_like(t)) for n, t in changed.items()}
        if order.optimizer == "kept":
            kept |= {f"optim/{n}": t.clone() for n, t in self._optimizer_state().items()}
        state.put(order.round, kept, job.step)
        return message.answer("trained", fields, update)

    def fine_tune(self, steps: int) -> None:
        """Train further from the weights that are loaded, with a fresh optimizer: personalisation. The model's weights change."""
        self._reset_optimizer(RoundOrder(1, steps=steps), {})
        self._pull.start(0.0, None, None)
        start = self.job.step if self.private else 0
        self._refuse_more(start, steps)
        self.job.step, self.job.policy = start, replace(self.job.policy, total_steps=start + steps, schedule=_RoundRate())
        self.job.notes.pop("stopped", None)
        train(self.job)

    def _set_steps(self, order: RoundOrder, state: SiteState) -> int:
        """Set the job's steps to those of the round, and return their number."""
        loader: Any = self.job.loader
        steps = order.steps if order.steps is not None else loader.steps_for(order.epochs)
        start = max(state.steps, self.job.step) if self.private else (order.round - 1) * steps
        self._refuse_more(start, steps)
        self.job.step = start
        self.job.notes.pop("stopped", None)
        self.job.policy = replace(self.job.policy, total_steps=start + steps, schedule=_RoundRate(share=order.rate))
        return int(steps)

    def _refuse_more(self, done: int, steps: int) -> None:
        """Raise `MessageError` if a private job would make more steps than were reserved."""
        if self.private and self.most_steps is not None and done + steps > self.most_steps:
            raise MessageError(
                f"this site reserved privacy for {self.most_steps:,} local steps and has made {done:,}: it refuses {steps:,} more. "
                "Its examples would be protected less than it promises."
            )

    def _reset_optimizer(self, order: RoundOrder, own: Mapping[str, Tensor]) -> None:
        for part in getattr(self.job.optimizer, "parts", [self.job.optimizer]):
            part.state.clear()
        held = {n.removeprefix("optim/"): t.clone() for n, t in own.items() if n.startswith("optim/")}
        if order.optimizer == "kept" and held:
            load_optimizer(self.job.optimizer, self.job.model, held, {})

    def _optimizer_state(self) -> dict[str, Tensor]:
        tensors, numbers = optimizer_tensors(self.job.optimizer, self.job.model)
        if numbers:
            raise RecipeError([Problem("federate.optimizer", "kept is not possible for this local optimizer. Use fresh, or adamw or sgd.")])
        return tensors

    def _first_loss(self) -> float:
        if self.private:
            raise MessageError("this site trains with privacy for its examples, and gives no exact loss of them: use another strategy")
        if self.data is None:
            raise MessageError("this site was set up without the loss over its training examples, which the strategy needs")
        return validation_loss(self.job, iter(self.data()))

    def _control(self, order: RoundOrder, message: Message, own: Mapping[str, Tensor]) -> tuple[Any, Any]:
        """Return (c, c_k) by parameter name, or None twice."""
        if not order.control:
            return None, None
        optimizer = self.job.optimizer
        if not isinstance(optimizer, SGD) or any(g["momentum"] for g in optimizer.param_groups):
            raise RecipeError(
                [Problem("optim", "scaffold needs plain SGD at the sites. Set optim: {kind: sgd, momentum: 0}, or another strategy.")]
            )
        names = [n for n in self.travels if CONTROL + n in message.tensors]
        zeros = {n: torch.zeros_like(message.tensors[CONTROL + n]) for n in names}
        return {n: message.tensors[CONTROL + n] for n in names}, {n: own.get(CONTROL + n, zeros[n]) for n in names}

    def _new_control(self, order: RoundOrder, message: Message, own: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
        """c_k - c + (x - x_k) / (K lr), by name with the prefix; 0 for running statistics, which have no gradient."""
        rates = {id(p): g["lr"] for g in self.job.optimizer.param_groups for p in g["params"]}
        parameters = dict(self.job.model.named_parameters())
        found = {}
        for name, t in self.travels.items():
            if (c := message.tensors.get(CONTROL + name)) is None:
                continue
            moved = torch.zeros_like(c)
            if name in parameters:
                moved = (message.tensors[name] - whole(t)) / (steps * rates[id(parameters[name])])
            mine = own.get(CONTROL + name, torch.zeros_like(c))
            found[CONTROL + name] = mine - c + moved if name in parameters else moved
        return found


class _RoundRate(Constant):
    """A schedule that is constant within a round."""

    warmup: float = 0
    share: float = 1.0
    """Of the peak rate."""

    def factor(self, step: int, total: int) -> float:
        return self.share


class _Pull:
    """Adds mu (x - x_sent) and c - c_k to the gradient of a job, after it was exchanged."""

    def __init__(self, job: TrainJob) -> None:
        self.mu = 0.0
        self.anchor: list[Tensor] = []
        self.shift: dict[str, Tensor] | None = None
        self.named: dict[str, nn.Parameter] = {n: p for n, p in job.model.named_parameters() if p.requires_grad}
        self._exchange = job.functions.exchange
        job.functions = replace(job.functions, exchange=self)

    @torch.no_grad()
    def start(self, mu: float, c: Mapping[str, Tensor] | None, own: Mapping[str, Tensor] | None) -> None:
        """Set both terms for a round; the model has the weights that were sent."""
        self.mu = mu
        self.anchor = [p.detach().clone() for p in self.named.values()] if mu else []
        self.shift = None
        if c is not None and own is not None:
            self.shift = {n: torch.empty_like(p.detach()) for n, p in self.named.items() if n in c}
            for n, t in self.shift.items():
                fill(t, c[n] - own[n])

    @torch.no_grad()
    def __call__(self, job: TrainJob) -> None:
        self._exchange(job)
        if not self.mu and self.shift is None:
            return
        for p in self.named.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.mu:
            for p, x in zip(self.named.values(), self.anchor, strict=True):
                assert p.grad is not None
                p.grad.add_(p.detach() - x, alpha=self.mu)
        for n, shift in (self.shift or {}).items():
            grad = self.named[n].grad
            assert grad is not None
            grad.add_(shift)
