"""Simulated clients that train together: one batched step for all clients of a round, by `torch.func.vmap`.

It pays where a step is smaller than its overhead: logistic regression and small perceptrons. Each client has its own weights and batches; the update of
each equals the sequential one within rounding. What it cannot do alike (running statistics, dropout, other optimizers than SGD, control variates,
privacy) is trained sequentially.

Shapes: K clients, S steps, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.optim import SGD

from tauon.data import Loader
from tauon.errors import TauonError
from tauon.federated.local import RoundOrder
from tauon.federated.messages import Failure, Message
from tauon.federated.simulation.sites import SimulatedSites, draws
from tauon.tasks import Task
from tauon.train import plain_gradients
from tauon.train.step import clip_local_gradients, optimizer_update
from tauon.types import Batch

__all__ = ["BatchedSites"]

CHUNK = 2**26
"""Bytes of inputs that are read at once."""
SMALL, LARGE = 2**20, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)
"""Models of more parameters, or with such layers, gain nothing from being batched on a CPU."""
CLIENTS = 64
"""Most clients that train together."""


class BatchedSites(SimulatedSites):
    """Simulated sites whose clients of a round train together where that gives the same; else as `SimulatedSites`."""

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | Failure]:
        """Answer all messages. The time is not limited: it is this computer's, not a client's."""
        names = [n for n, m in messages.items() if m.kind == "train"]
        if len(names) < 2 or len(names) < len(messages) or not self._can_batch(messages[names[0]]):
            return super().ask(messages, timeout=timeout)
        try:
            order = RoundOrder.of(messages[names[0]])
            self.locals[0].load(messages[names[0]].tensors, {})
        except TauonError as err:
            return dict.fromkeys(messages, Failure(str(err)))
        answers: dict[str, Message | Failure] = {}
        for start in range(0, len(names), CLIENTS):
            answers |= self._train_together(names[start : start + CLIENTS], messages, order)
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


class _LossOf(nn.Module):
    """The mean loss of a batch as a function of the model's parameters."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        total, weight = self.task.loss(self.model, Batch(inputs, targets, weights))
        return total / weight.clamp(min=1e-9)


class _Together:
    """One round of clients, the ones with the most steps first, all with batches of the same size."""

    def __init__(self, sites: SimulatedSites, loaders: Sequence[Loader], steps: Sequence[int], order: RoundOrder) -> None:
        job = sites.locals[0].job
        self.sites, self.loaders, self.steps, self.order = sites, loaders, steps, order
        self.module = _LossOf(job.model, job.task)
        named = {n: p for n, p in job.model.named_parameters() if p.requires_grad}
        self.sent = {n: p.detach() for n, p in named.items()}
        self.frozen = {f"model.{n}": p.detach() for n, p in job.model.named_parameters() if not p.requires_grad}
        groups = {id(p): g for g in job.optimizer.param_groups for p in g["params"]}
        self.groups = {n: groups[id(p)] for n, p in named.items()}
        self.clip_norm = job.policy.clip_norm

    def run(self) -> tuple[dict[str, Tensor], list[float]]:
        """Return (updates by name, K first; mean loss of each client)."""
        K = len(self.loaders)
        now = {n: p.expand(K, *p.shape).clone() for n, p in self.sent.items()}
        momentum = {n: torch.zeros_like(t) for n, t in now.items() if self.groups[n]["momentum"]}
        sums = torch.zeros(K, dtype=torch.float64)
        gradients = vmap(grad_and_value(self._loss))
        for first, batches in self._batches():
            for offset, (inputs, targets, weights) in enumerate(batches):
                active = len(inputs)
                part = {n: t[:active] for n, t in now.items()}
                grads, loss = gradients(part, inputs, targets, weights)
                sums[:active] += loss.detach().double()
                self._update(part, grads, {n: t[:active] for n, t in momentum.items()}, first=first + offset == 0)
        losses = (sums / torch.tensor(self.steps)).tolist()
        return {n: t - self.sent[n] for n, t in now.items()}, losses

    def _loss(self, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        loss: Tensor = functional_call(
            self.module, {f"model.{n}": t for n, t in parameters.items()} | self.frozen, (inputs, targets, weights)
        )
        return loss

    @torch.no_grad()
    def _update(self, now: dict[str, Tensor], grads: dict[str, Tensor], momentum: dict[str, Tensor], *, first: bool) -> None:
        """SGD, as torch does it, in place."""
        if self.order.proximal:
            for n, g in grads.items():
                g.add_(now[n] - self.sent[n], alpha=self.order.proximal)
        if self.clip_norm is not None:
            norms_K = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
            factor_K = (self.clip_norm / (norms_K + 1e-6)).clamp(max=1.0)
            for g in grads.values():
                g.mul_(factor_K.view(-1, *(1 for _ in g.shape[1:])))
        for n, g in grads.items():
            group = self.groups[n]
            if group["weight_decay"]:
                g = g.add(now[n], alpha=group["weight_decay"])
            if n in momentum:
                g = momentum[n].copy_(g) if first else momentum[n].mul_(group["momentum"]).add_(g)
            now[n].add_(g, alpha=-group["peak_lr"] * self.order.rate)

    def _batches(self) -> Any:
        """Yield (first step, [(inputs KB..., targets KB..., weights KB...) of each step]): in chunks that fit in memory, active clients only."""
        dataset, most = self.sites.dataset, max(self.steps)
        size = self.loaders[0].batch
        one = dataset.batch(np.zeros(1, np.int64)).inputs
        chunk = max(1, CHUNK // max(1, len(self.loaders) * size * one.numel() * one.element_size()))
        for first in range(0, most, chunk):
            last = min(most, first + chunk)
            rows, epochs = zip(*(self._rows(k, first, min(last, n)) for k, n in enumerate(self.steps) if n > first), strict=True)
            read = self._read(np.concatenate(rows), np.concatenate(epochs))
            ends = np.cumsum([0, *(len(r) for r in rows)])
            yield first, self._steps(read, ends, size, last - first)

    def _rows(self, client: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (rows of the data set, epochs) of a client's steps."""
        loader = self.loaders[client]
        start = (self.order.round - 1) * self.steps[client] + first
        each = [loader.examples_at(start + i) for i in range(last - first)]
        own: Any = loader.dataset
        return own.rows[np.concatenate([e for _, e in each])], np.concatenate([e for e, _ in each])

    def _read(self, rows: np.ndarray, epochs: np.ndarray) -> Batch:
        dataset = self.sites.dataset
        if (epochs == epochs[0]).all():
            return dataset.batch(rows, epoch=int(epochs[0]))
        parts, where = [], []
        for e in np.unique(epochs):
            at = np.flatnonzero(epochs == e)
            parts.append(dataset.batch(rows[at], epoch=int(e)))
            where.append(at)
        back = torch.from_numpy(np.argsort(np.concatenate(where), kind="stable"))
        inputs, targets, weights = (torch.cat([getattr(p, f) for p in parts])[back] for f in ("inputs", "targets", "weights"))
        return Batch(inputs, targets, weights)

    @staticmethod
    def _steps(read: Batch, ends: np.ndarray, size: int, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Cut what was read, client by client, into steps of all clients that are still active."""
        lengths = np.diff(ends) // size
        found = []
        for i in range(count):
            rows = torch.from_numpy(np.concatenate([np.arange(size) + ends[k] + i * size for k in np.flatnonzero(lengths > i)]))
            each = (t[rows] for t in (read.inputs, read.targets, read.weights))
            found.append(tuple(t.view(-1, size, *t.shape[1:]) for t in each))
        return found  # type: ignore[return-value]
