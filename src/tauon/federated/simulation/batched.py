"""Simulated clients that train together: one batched step for all clients of a round, by `torch.func.vmap`.

It pays where a step is smaller than its overhead: logistic regression and small perceptrons. Each client has its own weights and batches; the update of
each equals the sequential one within rounding. What it cannot do alike (running statistics, dropout, other optimizers than SGD, control variates,
privacy) is trained sequentially.

Shapes: K clients, S steps, B rows of a batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.optim import SGD

from tauon.data import Loader, example_at
from tauon.errors import TauonError
from tauon.federated.local import RoundOrder
from tauon.federated.messages import Failure, Message
from tauon.federated.simulation.sites import SimulatedSites, draws, side_by_side
from tauon.tasks import Task
from tauon.train import TrainJob, plain_gradients
from tauon.train.step import clip_local_gradients, optimizer_update
from tauon.types import Batch

__all__ = ["BatchedSites"]

CHUNK = 2**26
"""Bytes of inputs that are read at once."""
RECORD = 50
"""Steps from which on recording pays: it takes about 0.1 s."""
SMALL, LARGE = 2**20, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)
"""Models of more parameters, or with such layers, gain nothing from being batched on a CPU."""
TINY = 2**15
"""Models of fewer parameters train in one thread: a step of theirs is all overhead, which several threads only share."""
CLIENTS = 64
"""Most clients that train together."""


class BatchedSites(SimulatedSites):
    """Simulated sites whose clients of a round train together where that gives the same; else as `SimulatedSites`."""

    def __init__(self, job: TrainJob, *arguments: Any, **more: Any) -> None:
        super().__init__(job, *arguments, **more)
        self.gradients = _Gradients(job.model, job.task)
        self.sequential_because: str | None = None
        """Why clients are not trained together, if torch's function transforms failed on this model."""

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | Failure]:
        """Answer all messages. The time is not limited: it is this computer's, not a client's."""
        names = [n for n, m in messages.items() if m.kind == "train"]
        if self.sequential_because is not None or len(names) < 2 or len(names) < len(messages) or not self._can_batch(messages[names[0]]):
            return super().ask(messages, timeout=timeout)
        try:
            order = RoundOrder.of(messages[names[0]])
            self.locals[0].load(messages[names[0]].tensors, {})
        except TauonError as err:
            return dict.fromkeys(messages, Failure(str(err)))
        tiny = sum(p.numel() for p in self.locals[0].job.model.parameters()) < TINY
        workers = 1 if tiny else len(self.locals)
        each = max(1, min(CLIENTS, math.ceil(len(names) / workers)))
        dealt = sorted(names, key=lambda n: -len(self.parts[self.number[n]]))
        groups = [dealt[i :: math.ceil(len(names) / each)] for i in range(math.ceil(len(names) / each))]
        try:
            together = side_by_side(lambda group: self._train_together(group, messages, order), groups, workers)
        except (RuntimeError, NotImplementedError) as err:  # an operation that cannot be batched, control flow that depends on values
            self.sequential_because = str(err)
            return super().ask(messages, timeout=timeout)
        answers = {name: answer for group in together for name, answer in group.items()}
        return {name: answers[name] for name in messages}

    def _can_batch(self, message: Message) -> bool:
        job, fields = self.locals[0].job, message.fields
        optimizer = job.optimizer
        plain = isinstance(optimizer, SGD) and not any(g["nesterov"] for g in optimizer.param_groups)
        steps = (
            job.functions.make is plain_gradients
            and job.functions.clip is clip_local_gradients
            and job.functions.update is optimizer_update
        )
        policy = job.policy
        clips = policy.clip_value is None and policy.clip_layer is None and policy.clip_adaptive is None
        fp32 = policy.precision.name == "fp32" and policy.device.type == "cpu"
        asked = not fields.get("control") and not fields.get("first_loss") and fields.get("optimizer", "fresh") == "fresh"
        still = not any(b.is_floating_point() for b in job.model.buffers()) and not self.locals[0].kept and not draws(job.model)
        same = getattr(self.dataset, "mixer", None) is None and type(job.task).loss is Task.loss
        small = sum(p.numel() for p in job.model.parameters()) <= SMALL and not any(isinstance(m, LARGE) for m in job.model.modules())
        return plain and steps and clips and fp32 and asked and still and same and small and job.mesh.layout.world == 1

    def _train_together(self, names: Sequence[str], messages: Mapping[str, Message], order: RoundOrder) -> dict[str, Message]:
        loaders = [self.loader(self.number[n]) for n in names]
        steps = [order.steps if order.steps is not None else loader.steps_for(order.epochs or 1.0) for loader in loaders]
        by_length = sorted(range(len(names)), key=lambda k: (-steps[k], loaders[k].batch))
        answers: dict[str, Message] = {}
        for size in sorted({loader.batch for loader in loaders}):  # clients with fewer rows than a batch have smaller ones
            clients = [k for k in by_length if loaders[k].batch == size]
            together = _Together(self, [loaders[k] for k in clients], [steps[k] for k in clients], order)
            updates, losses = together.run()
            for at, k in enumerate(clients):
                message = messages[names[k]]
                fields = {"examples": len(self.parts[self.number[names[k]]]), "steps": steps[k], "loss": losses[at]}
                answers[names[k]] = message.answer("trained", fields, {n: t[at] for n, t in updates.items()})
        return answers


class _Gradients:
    """Gradients and losses of K clients at once: `vmap` of the task's loss, recorded once for each K where many steps use it.

    The record calls the same kernels without torch's function transforms and without Python, which take four fifths of a small step.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.model, self.task = model, task
        self.names = [n for n, p in model.named_parameters() if p.requires_grad]
        self.frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
        self._recorded: dict[tuple[Any, ...], Any] = {}
        self._lock = Lock()

    def __call__(self, width: int, steps: int) -> Callable[..., tuple[list[Tensor], Tensor]]:
        """Return a function of (parameters, inputs KB..., targets KB..., weights KB...) -> (gradients, losses K), for `steps` steps of `width` clients."""

        def run(parameters: list[Tensor], *batch: Tensor) -> tuple[list[Tensor], Tensor]:
            key = (width, *(t.shape for t in batch))
            recorded = self._recorded.get(key)
            if recorded is None:
                if steps < RECORD:
                    with self._lock:  # `functional_call` exchanges the parameters of one module
                        return self._plain(parameters, *batch)
                with self._lock:
                    if key not in self._recorded:
                        self._recorded[key] = self._record(parameters, batch)
                recorded = self._recorded[key]
            with torch.no_grad():
                *grads, losses = recorded(*parameters, *batch)
            return list(grads), losses

        return run

    def _record(self, parameters: list[Tensor], batch: tuple[Tensor, ...]) -> Callable[..., Sequence[Tensor]]:
        """Return the kernels of one call as a script, which Python does not run operation by operation."""
        from torch.fx.experimental.proxy_tensor import make_fx

        def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
            grads, losses = self._plain(list(tensors[: len(parameters)]), *tensors[len(parameters) :])
            return (*grads, losses)

        graph = make_fx(flat)(*parameters, *batch)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, for which torch.export has no substitute of this speed
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
            script: Any = torch.jit.trace(graph, (*parameters, *batch), check_trace=False)
        return script  # type: ignore[no-any-return]

    def _plain(self, parameters: list[Tensor], *batch: Tensor) -> tuple[list[Tensor], Tensor]:
        found: tuple[list[Tensor], Tensor] = vmap(grad_and_value(self._loss))(parameters, *batch)
        return found

    def _loss(self, parameters: list[Tensor], inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        named = dict(zip(self.names, parameters, strict=True)) | self.frozen
        bound: Any = lambda x: functional_call(self.model, named, (x,))  # noqa: E731 - the task calls it as a model
        total, weight = self.task.loss(bound, Batch(inputs, targets, weights))
        return total / weight.clamp(min=1e-9)


class _Together:
    """One round of clients, the ones with the most steps first, all with batches of the same size."""

    def __init__(self, sites: BatchedSites, loaders: Sequence[Loader], steps: Sequence[int], order: RoundOrder) -> None:
        job = sites.locals[0].job
        self.dataset, self.loaders, self.steps, self.order = sites.dataset, loaders, steps, order
        self.gradients = sites.gradients
        named = {n: p for n, p in job.model.named_parameters() if p.requires_grad}
        self.names, self.sent = list(named), [p.detach() for p in named.values()]
        groups = {id(p): g for g in job.optimizer.param_groups for p in g["params"]}
        self.groups = [groups[id(p)] for p in named.values()]
        self.clip_norm = job.policy.clip_norm

    def run(self) -> tuple[dict[str, Tensor], list[float]]:
        """Return (updates by name, K first; mean loss of each client)."""
        K = len(self.loaders)
        now = [p.expand(K, *p.shape).clone() for p in self.sent]
        momentum = [torch.zeros_like(t) if g["momentum"] else None for t, g in zip(now, self.groups, strict=True)]
        sums = torch.zeros(K)
        for first, last, width in self._stretches():
            gradients = self.gradients(width, last - first)
            inputs_S, targets_S, weights_S = self._read(first, last, width)
            for step in range(first, last):
                active = sum(n > step for n in self.steps)
                at = step - first
                grads, loss = gradients([t[:width] for t in now], inputs_S[at], targets_S[at], weights_S[at])
                sums[:active] += loss[:active]
                if active < K:
                    grads, part = [g[:active] for g in grads], [t[:active] for t in now]
                    self._update(part, grads, [m if m is None else m[:active] for m in momentum], first=step == 0)
                else:
                    self._update(now, grads, momentum, first=step == 0)
        losses = (sums / torch.tensor(self.steps)).tolist()
        return {n: t - p for n, t, p in zip(self.names, now, self.sent, strict=True)}, losses

    @torch.no_grad()
    def _update(self, now: list[Tensor], grads: list[Tensor], momentum: list[Tensor | None], *, first: bool) -> None:
        """SGD, as torch does it, in place."""
        if self.order.proximal:
            grads = [g.add(t - p, alpha=self.order.proximal) for g, t, p in zip(grads, now, self.sent, strict=True)]
        if self.clip_norm is not None:
            norms_K = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
            factor_K = (self.clip_norm / (norms_K + 1e-6)).clamp(max=1.0)
            grads = [g * factor_K.view(-1, *(1 for _ in g.shape[1:])) for g in grads]
        grads = [g.add(t, alpha=d) if (d := group["weight_decay"]) else g for g, t, group in zip(grads, now, self.groups, strict=True)]
        for i, m in enumerate(momentum):
            if m is not None:
                grads[i] = m.copy_(grads[i]) if first else m.mul_(self.groups[i]["momentum"]).add_(grads[i])
        rates = [g["peak_lr"] * self.order.rate for g in self.groups]
        if len(set(rates)) == 1:
            torch._foreach_add_(now, grads, alpha=-rates[0])
        else:
            for t, g, rate in zip(now, grads, rates, strict=True):
                t.add_(g, alpha=-rate)

    def _stretches(self) -> Iterator[tuple[int, int, int]]:
        """Yield (first step, end step, clients that are computed): as many as are active, rounded up, so that few different numbers occur."""
        K, size, one = len(self.steps), self.loaders[0].batch, self.dataset.batch(np.zeros(1, np.int64)).inputs
        widths = [max(1, math.ceil(K / 2**i)) for i in range(K.bit_length())]
        fits = [min(w for w in widths if w >= sum(n > step for n in self.steps)) for step in range(max(self.steps))]
        first = 0
        while first < len(fits):
            width = fits[first]
            most = first + max(1, CHUNK // (width * size * one.numel() * one.element_size()))
            last = next((i for i in range(first, len(fits)) if fits[i] != width), len(fits))
            yield first, min(last, most), width
            first = min(last, most)

    def _read(self, first: int, last: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (inputs SKB..., targets SKB..., weights SKB...) of these steps; clients that are done have weight 0."""
        S, B = last - first, self.loaders[0].batch
        rows_SKB, epochs_SKB = np.zeros((S, width, B), np.int64), np.zeros((S, width, B), np.int64)
        active_SK = np.zeros((S, width), bool)
        for k, loader in enumerate(self.loaders[:width]):
            count = min(last, self.steps[k]) - first
            start = (self.order.round - 1) * self.steps[k] + first
            own: Any = loader.dataset
            if count > 0:
                epoch, example = example_at(np.arange(start * B, (start + count) * B), len(own), loader.seed)
                epochs_SKB[:count, k], rows_SKB[:count, k] = epoch.reshape(count, B), own.rows[example].reshape(count, B)
            active_SK[: max(0, count), k] = True
        read = self._examples(rows_SKB.ravel(), epochs_SKB.ravel())
        inputs, targets, weights = (t.view(S, width, B, *t.shape[1:]) for t in (read.inputs, read.targets, read.weights))
        if not active_SK.all():
            weights = weights * torch.from_numpy(active_SK).view(S, width, *(1 for _ in weights.shape[2:]))
        return inputs, targets, weights

    def _examples(self, rows: np.ndarray, epochs: np.ndarray) -> Batch:
        if (epochs == epochs[0]).all():
            return self.dataset.batch(rows, epoch=int(epochs[0]))
        where = [np.flatnonzero(epochs == e) for e in np.unique(epochs)]
        parts = [self.dataset.batch(rows[at], epoch=int(epochs[at[0]])) for at in where]
        back = torch.from_numpy(np.argsort(np.concatenate(where), kind="stable"))
        inputs, targets, weights = (torch.cat([getattr(p, f) for p in parts])[back] for f in ("inputs", "targets", "weights"))
        return Batch(inputs, targets, weights)
