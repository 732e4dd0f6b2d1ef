"""A worker of the parameter server: builds the job, receives weights, computes and packs the gradient of a share of a batch.

A plain class: Ray makes an actor of it (`sync.py`), tests call it directly. The driver decides which share of which step it computes.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tauon.config import dump, load_plugins, parse
from tauon.data import DataConfig, DataSplits, Loader, prepare
from tauon.distributed.codec import CodecConfig, Feedback, Floats, Payload, payload_bytes
from tauon.distributed.partition import Partition
from tauon.distributed.server import Push
from tauon.errors import DataError
from tauon.models import ModelConfig
from tauon.optim import OptimConfig
from tauon.tasks import Task
from tauon.train.build import JobConfig, JobSettings, build_job
from tauon.train.config import TrainConfig
from tauon.train.step import BatchSource, TrainJob, seed_draws, step_seed, train_step
from tauon.types import Batch, DataSpec

__all__ = ["Done", "Gradients", "RecipeWork", "ShareOfTask", "Work", "versions"]


class Work(Protocol):
    """How another process builds the same job. Must be picklable; the same on every worker."""

    def job(self, worker: int) -> TrainJob:
        """Return the job at step 0."""
        ...

    def source(self, share: int, shares: int) -> BatchSource:
        """Return a source of the rows of share `share` of `shares` of every batch."""
        ...


@dataclass
class RecipeWork:
    """The job of a recipe, as plain data: the worker reads the training data itself and refuses it if it differs from the driver's."""

    sections: dict[str, Any]
    """`model` (resolved), `optim`, `train`, `task`, `data`: each as `dump` gives it."""
    spec: DataSpec
    settings: JobSettings
    seed: int
    fingerprint: str
    """Fingerprint of the data that the driver prepared."""
    splits: DataSplits | None = None
    """Prepared by the worker when first needed."""

    @classmethod
    def of(cls, config: JobConfig, data: DataConfig, settings: JobSettings, fingerprint: str) -> RecipeWork:
        named = {"model": config.model, "optim": config.optim, "train": config.train, "task": config.task, "data": data}
        plain = {f.name: getattr(settings, f.name) for f in fields(JobSettings)}
        plain["device"] = torch.device(settings.device.type)  # each worker chooses its own GPU
        return cls({k: dump(v) for k, v in named.items()}, config.spec, JobSettings(**plain), config.seed, fingerprint)

    def job(self, worker: int) -> TrainJob:
        load_plugins()
        config = JobConfig(
            parse(ModelConfig, self.sections["model"]),
            parse(OptimConfig, self.sections["optim"]),
            parse(TrainConfig, self.sections["train"]).model_copy(update={"ema": None}),  # the driver averages
            parse(Task, self.sections["task"]),
            self.spec,
            self.seed,
        )
        return build_job(config, self.source(0, 1), self.settings)

    def source(self, share: int, shares: int) -> BatchSource:
        data = parse(DataConfig, self.sections["data"])
        if self.splits is None:
            task = parse(Task, self.sections["task"])
            self.splits = prepare(data, seed=self.seed, input_kind=task.input_kind, scale_targets=task.scales_targets)
            if self.splits.fingerprint != self.fingerprint:
                raise DataError(
                    f"worker on {platform.node()}: its data differs from the driver's (fingerprint {self.splits.fingerprint[:12]}, expected "
                    f"{self.fingerprint[:12]}). Put the same files at the same paths on every machine, or run on one machine."
                )
        return Loader(
            self.splits.train, batch=self.sections["train"]["batch"], seed=self.seed, rank=share, world=shares, workers=data.workers
        )


class ShareOfTask:
    """A task that divides by a nominal weight instead of the batch's own, so that gradients of shares add up to that of the batch."""

    def __init__(self, task: Any, nominal: float) -> None:
        self.task, self.nominal = task, nominal

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        loss: tuple[Tensor, Tensor] = self.task.loss(model, batch)
        return loss

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        losses: tuple[Tensor, Tensor] = self.task.losses(model, batch)
        return losses

    def weight(self, batch: Batch) -> Tensor:
        return torch.tensor(self.nominal, device=batch.weights.device)


@dataclass(frozen=True)
class Done:
    """Result of a share, besides the gradient."""

    loss: float
    """Its part of the mean loss: sum of losses / nominal weight."""
    weight: float
    """Sum of the weights of its tokens or examples."""
    pushed: int
    """Bytes of the pushed gradients."""
    pulled: int
    """Bytes of the weights that were read; 0 if the worker had them already."""
    seconds: float
    each: tuple[tuple[float, float], ...] = ()
    """Loss and gradient norm of each step of a round."""


class Gradients:
    """One worker: it has its own job and uses its model, task and gradient function."""

    def __init__(self, work: Work, worker: int, partition: Partition, push: CodecConfig, pull: CodecConfig, threads: int) -> None:
        """Store the arguments; slow work that can fail is in `set_up`."""
        self.work, self.worker, self.partition, self.push, self.pull, self.threads = work, worker, partition, push, pull, threads
        self.version: tuple[int, int] | None = None
        self.sources: dict[tuple[int, int], BatchSource] = {}
        self.kept: dict[int, Feedback] = {}

    def set_up(self) -> dict[str, Any]:
        """Build the job; return process id, host name and versions."""
        torch.set_num_threads(self.threads)
        self.job = self.work.job(self.worker)
        self.job.model.train()
        self.parameters = {n: p for n, p in self.job.model.named_parameters() if p.requires_grad}
        return {"pid": os.getpid(), "node": platform.node(), "versions": versions()}

    def fixed(self, tensors: dict[str, Floats]) -> None:
        """Copy frozen parameters and buffers into the model."""
        state = self.job.model.state_dict()
        with torch.no_grad():
            for name, value in tensors.items():
                state[name].copy_(torch.from_numpy(np.array(value)))

    @torch.no_grad()
    def take(self, version: tuple[int, int], payloads: tuple[Payload, ...]) -> int:
        """Copy weights into the model unless it has this version already; return the bytes read."""
        if version == self.version:
            return 0
        for pieces, size, payload in zip(self.partition.shards, self.partition.sizes, payloads, strict=True):
            flat = self.pull.decode(payload, size)
            for piece in pieces:
                whole = self.parameters[piece.name].data
                rows = whole if piece.whole else whole[piece.row : piece.row + piece.shape[0]]
                values = flat[piece.offset : piece.end].reshape(piece.shape)
                if rows.device.type == "cpu":
                    np.copyto(rows.numpy(), values)  # numpy, because torch does not accept read-only memory
                else:
                    rows.copy_(torch.from_numpy(values.copy()))
        self.version = version
        return sum(payload_bytes(p) for p in payloads)

    def gradient(self, step: int, share: int, shares: int, nominal: float, version: tuple[int, int], *weights: Payload) -> Any:
        """Compute the gradient of a share of the batch of `step`; return (`Done`, a `Push` for each shard)."""
        began = time.perf_counter()
        pulled = self.take(version, weights)
        job = self.job
        batch = self.source(share, shares).batch_at(step).to(job.policy.device)
        weight = job.task.weight(batch).item()
        job.step = step
        seed_draws(step_seed(job.policy.seed, step, share), job.policy.device)
        task = job.task
        job.task = ShareOfTask(task, nominal)  # type: ignore[assignment]
        try:
            loss = job.functions.make(job, batch)
        finally:
            job.task = task
        pushes = self.pack(share)
        job.model.zero_grad(set_to_none=True)
        sent = sum(payload_bytes(p.payload) for p in pushes)
        return Done(loss.item(), weight, sent, pulled, time.perf_counter() - began), *pushes

    def round(self, first: int, last: int, version: tuple[int, int], *weights: Payload) -> Any:
        """Do steps [first, last) of the job alone, starting from `weights`; push the weights at the start minus those at the end."""
        began = time.perf_counter()
        pulled = self.take(version, weights)
        self.version = None
        job, source = self.job, self.source(0, 1)
        job.step = first
        each = []
        for step in range(first, last):
            metrics = train_step(job, source.batch_at(step).to(job.policy.device))
            each.append((metrics["loss"], metrics["grad_norm"]))
        with torch.no_grad():
            for pieces, size, payload in zip(self.partition.shards, self.partition.sizes, weights, strict=True):
                anchor = self.pull.decode(payload, size)
                for piece in pieces:
                    p = self.parameters[piece.name]
                    p.grad = torch.empty_like(p) if p.grad is None else p.grad
                    rows = slice(None) if piece.whole else slice(piece.row, piece.row + piece.shape[0])
                    old = torch.from_numpy(anchor[piece.offset : piece.end].reshape(piece.shape).copy()).to(p.device)
                    p.grad[rows if p.ndim else ...] = old - p[rows if p.ndim else ...]
        pushes = self.pack(0)
        job.model.zero_grad(set_to_none=True)
        sent = sum(payload_bytes(p.payload) for p in pushes)
        return Done(each[-1][0], 1.0, sent, pulled, time.perf_counter() - began, tuple(each)), *pushes

    def source(self, share: int, shares: int) -> BatchSource:
        """Return the source of a share's rows; opened when first needed."""
        if (share, shares) not in self.sources:
            self.sources[share, shares] = self.work.source(share, shares)
        return self.sources[share, shares]

    def pack(self, share: int) -> list[Push]:
        """Encode `.grad` of every parameter, shard by shard."""
        feedback = self.feedback(share)
        pushes = []
        for number, (pieces, size) in enumerate(zip(self.partition.shards, self.partition.sizes, strict=True)):
            flat = np.empty(size, np.float32)
            present = np.ones(len(pieces), np.bool_)
            for i, piece in enumerate(pieces):
                g = self.parameters[piece.name].grad
                into = flat[piece.offset : piece.end].reshape(piece.shape)
                if g is None:
                    present[i], into[...] = False, 0
                    continue
                rows = g if piece.whole else g[piece.row : piece.row + piece.shape[0]]
                torch.from_numpy(into).copy_(rows)
            pushes.append(Push(feedback.encode(number, flat), None if present.all() else present))
        return pushes

    def feedback(self, share: int) -> Feedback:
        """Return the error feedback of this share."""
        if share not in self.kept:
            self.kept[share] = Feedback(self.push, self.partition.sizes)
        return self.kept[share]

    def left_out(self, share: int) -> list[Floats]:
        """Return, for a checkpoint, the compression error of each shard that has not been sent yet."""
        return self.feedback(share).kept

    def put_back(self, share: int, kept: list[Floats]) -> None:
        """Restore the result of `left_out`."""
        self.feedback(share).kept = [np.array(k) for k in kept]

    def ping(self) -> int:
        return os.getpid()


def versions() -> dict[str, str]:
    """Return the versions that must be the same in every process of a run."""
    from tauon import __version__

    return {"tauon": __version__, "torch": torch.__version__.split("+")[0], "python": platform.python_version()}
