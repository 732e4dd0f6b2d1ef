"""The training loop: steps, hooks, and saving before it ends. Does not depend on the model, the data set or trackers.

Each hook is called after each step, in order, with the job and the step's metrics; it returns `STOP` to end training early. State that must
survive a resume is in the job (`job.notes`), never in a hook.

On an accelerator a step's metrics are read while the next step computes, so that the device never waits for the host. A hook is then called one step
late, with the job already one step further. `every(n, hook)` calls a hook at every n-th step; such a hook, like `save`, gets the job in the
state after that step, because the loop then reads the step immediately.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from tauon.artifacts import Checkpoint
from tauon.data import DeviceBatches
from tauon.distributed import World, counted, fill, reshard
from tauon.errors import CheckpointError, Interrupted, TrainingError
from tauon.models import load_weights, saved_weights
from tauon.optim import load_optimizer, optimizer_tensors
from tauon.train.step import REDUCED, LaunchedStep, TrainJob, launch_step
from tauon.types import Batch, StepInfo

__all__ = ["STOP", "Hook", "StopSignal", "every", "job_state", "restore", "train", "validation_loss", "validation_marks"]

STOP = "stop"


class Hook(Protocol):
    """Called after each step."""

    def __call__(self, job: TrainJob, info: StepInfo) -> str | None: ...


class every:
    """Calls a hook at each multiple of `steps` and after the last step, with the job in the state after that step."""

    def __init__(self, steps: int, hook: Hook) -> None:
        self.steps, self.hook = steps, hook

    def due(self, step: int, total_steps: int) -> bool:
        return step % self.steps == 0 or step == total_steps

    def __call__(self, job: TrainJob, info: StepInfo) -> str | None:
        return self.hook(job, info) if self.due(info.step, info.total_steps) else None


class StopSignal:
    """Inside the context, SIGTERM and Ctrl-C set `.name` instead of ending the process; a second Ctrl-C ends it at once."""

    name: str | None = None

    def __init__(self, world: World | None = None, every: int = 1) -> None:
        """`every`: steps between exchanges of signals among processes; larger for processes that seldom communicate."""
        self.world, self.every = world or World(), every

    def heard(self, job: TrainJob) -> str | None:
        """Return the name of a signal that any process received, on all processes at the same step."""
        if self.world.size == 1:
            return self.name
        if job.step % self.every:
            return None
        # On the CPU, over gloo: reading it from a GPU would make the host wait for the optimizer at every step.
        received = torch.tensor(0.0 if self.name is None else float(signal.Signals[self.name].value))
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        number = int(received.item())
        return signal.Signals(number).name if number else None

    @contextmanager
    def listening(self) -> Iterator[StopSignal]:
        if threading.current_thread() is not threading.main_thread():
            yield self  # only the main thread may handle signals
            return
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def handle(number: int, frame: Any) -> None:
            if self.name is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.name = signal.Signals(number).name

        for s in before:
            signal.signal(s, handle)
        try:
            yield self
        finally:
            for s, old in before.items():
                signal.signal(s, old)


def train(
    job: TrainJob,
    *,
    hooks: Sequence[Hook] = (),
    save: Callable[[TrainJob], None] | None = None,
    save_every: int = 1000,
    save_at: Collection[int] = (),
    stop: StopSignal | None = None,
) -> TrainJob:
    """Run the job from `job.step` to `job.policy.total_steps`.

    Args:
        job: what to train (`build_job`).
        hooks: called after each step with the job and a `StepInfo`; one that returns `STOP` ends the training.
        save: saves a checkpoint of the job. Called every `save_every` steps, at the steps `save_at`, at the end, and before an interruption.
        save_every: steps between two checkpoints.
        save_at: more steps after which a checkpoint is saved.
        stop: says whether a signal asks for the end.

    Returns:
        The same job, trained.

    Raises:
        Interrupted: `stop` was signalled; the job was saved first.
        TrainingError: gradients stay bad, or memory does not suffice.

    >>> from tauon.testing import tiny_job
    >>> train(tiny_job(steps=3)).step
    3
    """
    job.model.train()
    saved = job.step
    measured_at = job.step + 1  # not the first, which also exchanges shapes
    batches = DeviceBatches(job.loader, job.policy.device, job.policy.total_steps)
    report = _Reports(job, hooks)
    while job.step < job.policy.total_steps and not job.notes.get("stopped"):
        report.began = time.perf_counter()
        batch = batches.batch_at(job.step)
        with _memory_errors_explained(job):
            launched = _launch_counted(job, batch) if job.step == measured_at else launch_step(job, batch)
        batches.prefetch(job.step)
        saves = save is not None and (job.step % save_every == 0 or job.step in save_at or job.step == job.policy.total_steps)
        report.add(launched, at_once=saves)
        if save is not None and saves:
            save(job)
            saved = job.step
        if stop is not None and (name := stop.heard(job)) is not None:
            report.flush()
            if save is not None and saved != job.step:
                save(job)
            raise Interrupted(f"{name}: saved at step {job.step} of {job.policy.total_steps}. The same command resumes from there.")
    report.flush()
    if save is not None and saved != job.step:
        save(job)
    return job


class _Reports:
    """Reads the metrics of steps in order, immediately or when the next step was launched, and calls the hooks."""

    def __init__(self, job: TrainJob, hooks: Sequence[Hook]) -> None:
        self.job, self.hooks = job, hooks
        self.waiting: LaunchedStep | None = None
        self.began = 0.0
        """Start time of the step that is read next."""

    def add(self, launched: LaunchedStep, *, at_once: bool) -> None:
        """Queue a step. `at_once`: read it now, because the job is saved in the state after this step."""
        self.flush()
        self.waiting = launched
        total = self.job.policy.total_steps
        if at_once or not launched.late or any(h.due(launched.step, total) for h in self.hooks if isinstance(h, every)):
            self.flush()

    def flush(self) -> None:
        """Read the waiting step, if there is one."""
        launched, self.waiting = self.waiting, None
        if launched is None:
            return
        metrics = launched.read()
        now = time.perf_counter()
        metrics["seconds"], self.began = now - self.began, now
        info = StepInfo(launched.step, self.job.policy.total_steps, launched.examples, launched.tokens, metrics)
        if STOP in [hook(self.job, info) for hook in self.hooks]:
            self.job.notes["stopped"] = True  # saved, so that a resume does not continue training


def _launch_counted(job: TrainJob, batch: Batch) -> LaunchedStep:
    """Launch a step and count the bytes it sends, unless DDP counts them; every later step sends the same."""
    if job.mesh.layout.world == 1 or job.mesh.layout.only_replicas:
        return launch_step(job, batch)
    with counted() as sent:
        launched = launch_step(job, batch)
    job.traffic.each = launched.metrics["sent"] = dict(sent)
    launched.metrics["sent_bytes"] = sum(sent.values())
    return launched


@contextmanager
def _memory_errors_explained(job: TrainJob) -> Iterator[None]:
    """Turn an out-of-memory error into a `TrainingError` that names the setting to change."""
    step = job.step + 1
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as err:
        if not isinstance(err, torch.OutOfMemoryError) and "can't allocate memory" not in str(err):
            raise
        remedy = f"with microbatch {job.policy.microbatch}. Try train.microbatch={max(1, job.policy.microbatch // 2)}."
        if job.mesh.layout.pipeline > 1:
            remedy = "in a pipeline. Split the batch into more microbatches: raise parallel.stage_microbatches."
        raise TrainingError(f"out of memory at step {step} {remedy}") from err


@torch.no_grad()
def validation_loss(job: TrainJob, batches: Sequence[Any] | Iterator[Any]) -> float:
    """Return the mean loss over `batches`, weighted by tokens or examples, in eval mode and with the evaluation weights: the EMA if there is
    one, the anchor of local SGD, else the model's own.

    Over a mesh, each data-parallel process gets its own batches, and all get the same number.
    """
    job.functions.gather(job)
    was_training = job.model.training
    job.model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    try:
        average = job.ema or job.eval_weights
        with average.swapped_in() if average is not None else _nothing():
            for batch in batches:
                sums += torch.stack(job.functions.score(job, batch.to(job.policy.device))).cpu()
            reshard(job.model)
    finally:
        job.model.train(was_training)
    if not job.mesh.last_stage:
        sums[1] = 0  # losses are known on the last stage only: count weights there
    total, weight = job.mesh.sum(sums, *REDUCED, "pipeline").tolist()
    return total / weight if weight else float("nan")


@torch.no_grad()
def validation_marks(job: TrainJob, batches: Sequence[Any] | Iterator[Any]) -> dict[str, float]:
    """Return the task's other validation metrics, averaged over `batches` like `validation_loss`. Not for pipeline parallelism."""
    job.functions.gather(job)
    was_training = job.model.training
    job.model.eval()
    sums: dict[str, Tensor] = {}
    try:
        average = job.ema or job.eval_weights
        with average.swapped_in() if average is not None else _nothing(), job.policy.precision.context():
            for batch in batches:
                for name, pair in job.task.observe(job.model, batch.to(job.policy.device)).items():
                    sums[name] = sums.get(name, torch.zeros(2, dtype=torch.float64)) + torch.stack(pair).double().cpu()
            reshard(job.model)
    finally:
        job.model.train(was_training)
    totals = {name: job.mesh.sum(pair, *REDUCED).tolist() for name, pair in sums.items()}
    return {name: total / weight if weight else float("nan") for name, (total, weight) in totals.items()}


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def job_state(job: TrainJob) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return (groups of tensors, JSON state): everything an exact resume needs, except pure functions of the step."""
    job.functions.gather(job)
    reshard(job.model)
    optim, numbers = optimizer_tensors(job.optimizer, job.model)
    if "replica" in job.extra:
        optim = {}  # each replica saves its own
    groups = {"model": saved_weights(job.model), "optim": optim}
    if job.eval_weights is not None:
        standing = {p: job.eval_weights.anchor[name] for name, p in job.model.named_parameters() if name in job.eval_weights.anchor}
        shown = {name: standing[p] for name, p in job.model.named_parameters(remove_duplicate=False) if p in standing}
        groups["model"] |= {name: t for name, t in shown.items() if name in groups["model"]}
    if job.ema is not None:
        groups["ema"] = job.ema.shadow
    groups |= {name: part.tensors() for name, part in job.extra.items()}
    state = {
        "step": job.step,
        "total_steps": job.policy.total_steps,
        "examples": job.examples,
        "tokens": job.tokens,
        "seed": job.policy.seed,
        "optimizer_kind": _kind(job),
        "optimizer": numbers,
        "health": job.health.state(),
        "notes": job.notes,
    }
    return groups, state


def _kind(job: TrainJob) -> str:
    """Return the names of the optimizer classes: states of different optimizers can have the same names and shapes."""
    return "+".join(type(part).__name__ for part in getattr(job.optimizer, "parts", [job.optimizer]))


def restore(job: TrainJob, checkpoint: Checkpoint) -> None:
    """Restore a job exactly from a checkpoint. Raises `CheckpointError` if the checkpoint belongs to another job."""
    state = checkpoint.state
    partial = job.mesh.layout.pipeline > 1
    load_weights(job.model, checkpoint.lazy("model"), where=str(checkpoint.path), partial=partial)
    if state["optimizer_kind"] != _kind(job):
        raise CheckpointError(
            f"{checkpoint.path} has the state of optimizer {state['optimizer_kind']}, but this run uses {_kind(job)}. "
            "Use the recipe it was trained with, or start over with --fresh."
        )
    if "replica" in checkpoint.groups() and "replica" not in job.extra:
        raise CheckpointError(
            f"{checkpoint.path} was trained with local steps, one optimizer per replica (parallel: local-sgd or diloco), but this run was "
            "not. Use the same `parallel`, or start over with --fresh."
        )
    optim = checkpoint.lazy("optim") if "optim" in checkpoint.groups() else {}  # with replicas, they are in `extra`
    load_optimizer(job.optimizer, job.model, optim, state["optimizer"], partial=partial)
    if (job.ema is not None) != ("ema" in checkpoint.groups()):
        has, ema = ("no averaged weights", "is set") if job.ema is not None else ("averaged weights", "is not set")
        raise CheckpointError(
            f"{checkpoint.path} has {has}, but train.ema {ema}. Use the recipe it was trained with, or start over with --fresh."
        )
    if job.ema is not None:
        average = checkpoint.lazy("ema")
        for k, v in job.ema.shadow.items():
            fill(v, average[k])
    if state["total_steps"] != job.policy.total_steps:
        raise CheckpointError(
            f"{checkpoint.path} is from a run of {state['total_steps']} steps, but this one has {job.policy.total_steps}: the learning rate would "
            "jump. Use the same train.steps, or start over with --fresh."
        )
    job.step, job.examples, job.tokens = state["step"], state["examples"], state["tokens"]
    job.health.load(state["health"])
    job.notes = dict(state["notes"])
    for name, part in job.extra.items():
        if name not in checkpoint.groups():
            raise CheckpointError(
                f"{checkpoint.path} has no {name!r}: it was trained with another `parallel`. Use the same, or start over with --fresh."
            )
        part.load(checkpoint.tensors(name))
