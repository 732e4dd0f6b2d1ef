"""The loop: steps, hooks, and saving before anything ends. Knows no model, no dataset, no tracker by name.

A hook is called for each step, in order, with the job and what happened; it returns `STOP` to end training early. State that must survive a
resume lives in the job (`job.notes`), never in a hook.

On an accelerator a step's metrics are read while the next step computes, so that the device never waits for the host. A hook is then called one step
late, with the job already one step further. `every(n, hook)` thins a hook out to each n-th step; such a hook, like `save`, finds the job as
that step left it: the loop reads that step at once.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
    """The hook at each multiple of `steps`, and after the last step, with the job as that step left it."""

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
        """`every`: steps between two looks at what others heard; processes that seldom exchange anything should not do so for this."""
        self.world, self.every = world or World(), every

    def heard(self, job: TrainJob) -> str | None:
        """The signal that any process got, for all of them at the same step."""
        if self.world.size == 1:
            return self.name
        if job.step % self.every:
            return None
        # On the CPU, so over gloo: read from a GPU, it would make the host wait for the optimizer before each next step.
        heard = torch.tensor(0.0 if self.name is None else float(signal.Signals[self.name].value))
        dist.all_reduce(heard, op=dist.ReduceOp.MAX)
        number = int(heard.item())
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
    stop: StopSignal | None = None,
) -> TrainJob:
    """Run the job from `job.step` to `job.policy.total_steps`. `save` is called every `save_every` steps, at the end, and before an interruption.

    Raises `Interrupted` after saving when `stop` was signalled, and `TrainingError` when gradients stay bad or memory ends.
    """
    job.model.train()
    saved = job.step
    measured_at = job.step + 1  # not the first, which also exchanges shapes and the like
    batches = DeviceBatches(job.loader, job.policy.device, job.policy.total_steps)
    report = _Reports(job, hooks)
    while job.step < job.policy.total_steps and not job.notes.get("stopped"):
        report.began = time.perf_counter()
        batch = batches.batch_at(job.step)
        with _memory_errors_explained(job):
            launched = _launch_counted(job, batch) if job.step == measured_at else launch_step(job, batch)
        batches.prefetch(job.step)
        saves = save is not None and (job.step % save_every == 0 or job.step == job.policy.total_steps)
        report.add(launched, at_once=saves)
        if save is not None and saves:
            save(job)
            saved = job.step
        if stop is not None and (name := stop.heard(job)) is not None:
            report.flush()
            if save is not None and saved != job.step:
                save(job)
            raise Interrupted(f"{name}: saved at step {job.step} of {job.policy.total_steps}. The same command goes on from there.")
    report.flush()
    if save is not None and saved != job.step:
        save(job)
    return job


class _Reports:
    """Reads steps in order, each at once or when the next one is on its way, and calls the hooks with what came of them."""

    def __init__(self, job: TrainJob, hooks: Sequence[Hook]) -> None:
        self.job, self.hooks = job, hooks
        self.waiting: LaunchedStep | None = None
        self.began = 0.0
        """When the time began that counts for the step which is read next."""

    def add(self, launched: LaunchedStep, *, at_once: bool) -> None:
        """`at_once`: the job is looked at as this step left it."""
        self.flush()
        self.waiting = launched
        total = self.job.policy.total_steps
        if at_once or not launched.late or any(h.due(launched.step, total) for h in self.hooks if isinstance(h, every)):
            self.flush()

    def flush(self) -> None:
        """Read the step that waits, if one does."""
        launched, self.waiting = self.waiting, None
        if launched is None:
            return
        metrics = launched.read()
        now = time.perf_counter()
        metrics["seconds"], self.began = now - self.began, now
        info = StepInfo(launched.step, self.job.policy.total_steps, launched.examples, launched.tokens, metrics)
        if STOP in [hook(self.job, info) for hook in self.hooks]:
            self.job.notes["stopped"] = True  # saved, so that a resume does not go on


def _launch_counted(job: TrainJob, batch: Batch) -> LaunchedStep:
    """A step whose bytes are counted, where DDP does not do so by itself; every later one sends the same."""
    if job.mesh.layout.world == 1 or job.mesh.layout.only_replicas:
        return launch_step(job, batch)
    with counted() as sent:
        launched = launch_step(job, batch)
    job.traffic.each = launched.metrics["sent"] = dict(sent)
    launched.metrics["sent_bytes"] = sum(sent.values())
    return launched


@contextmanager
def _memory_errors_explained(job: TrainJob) -> Iterator[None]:
    """Memory that ended is a `TrainingError` that names the setting to change."""
    step = job.step + 1
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as err:
        if not isinstance(err, torch.OutOfMemoryError) and "can't allocate memory" not in str(err):
            raise
        way_out = f"with microbatch {job.policy.microbatch}. Try train.microbatch={max(1, job.policy.microbatch // 2)}."
        if job.mesh.layout.pipeline > 1:
            way_out = "in a pipeline. Cut the batch into more pieces: parallel.stage_microbatches."
        raise TrainingError(f"out of memory at step {step} {way_out}") from err


@torch.no_grad()
def validation_loss(job: TrainJob, batches: Sequence[Any] | Iterator[Any]) -> float:
    """Mean loss over `batches`, weighted by tokens or examples, in eval mode; with the weights that stand for the job: the average
    where there is an EMA, the anchor where replicas train on their own.

    Over a mesh, each data-parallel process is given batches of its own, all of them the same number.
    """
    job.functions.gather(job)
    was = job.model.training
    job.model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    try:
        standing = job.ema or job.eval_weights
        with standing.swapped_in() if standing is not None else _nothing():
            for batch in batches:
                sums += torch.stack(job.functions.score(job, batch.to(job.policy.device))).cpu()
            reshard(job.model)
    finally:
        job.model.train(was)
    if not job.mesh.last_stage:
        sums[1] = 0  # losses are known on the last stage only: count weights there
    total, weight = job.mesh.sum(sums, *REDUCED, "pipeline").tolist()
    return total / weight if weight else float("nan")


@torch.no_grad()
def validation_marks(job: TrainJob, batches: Sequence[Any] | Iterator[Any]) -> dict[str, float]:
    """What the task observes beside the loss, averaged over `batches`; as `validation_loss` in all else. Not for a pipeline of stages."""
    job.functions.gather(job)
    was = job.model.training
    job.model.eval()
    sums: dict[str, Tensor] = {}
    try:
        standing = job.ema or job.eval_weights
        with standing.swapped_in() if standing is not None else _nothing(), job.policy.precision.context():
            for batch in batches:
                for name, pair in job.task.observe(job.model, batch.to(job.policy.device)).items():
                    sums[name] = sums.get(name, torch.zeros(2, dtype=torch.float64)) + torch.stack(pair).double().cpu()
            reshard(job.model)
    finally:
        job.model.train(was)
    found = {name: job.mesh.sum(pair, *REDUCED).tolist() for name, pair in sums.items()}
    return {name: total / weight if weight else float("nan") for name, (total, weight) in found.items()}


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def job_state(job: TrainJob) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(groups of tensors, JSON state): all that an exact resume needs, and nothing that is a pure function of the step."""
    job.functions.gather(job)
    reshard(job.model)
    optim, numbers = optimizer_tensors(job.optimizer, job.model)
    if "replica" in job.extra:
        optim = {}  # every replica has its own
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
    """Names of the optimizer classes: their states look alike by name and shape, and mean something else."""
    return "+".join(type(part).__name__ for part in getattr(job.optimizer, "parts", [job.optimizer]))


def restore(job: TrainJob, checkpoint: Checkpoint) -> None:
    """Put a job exactly where it was when the checkpoint was saved. Raises `CheckpointError` if it is of another job."""
    state = checkpoint.state
    partial = job.mesh.layout.pipeline > 1
    load_weights(job.model, checkpoint.lazy("model"), where=str(checkpoint.path), partial=partial)
    if state["optimizer_kind"] != _kind(job):
        raise CheckpointError(
            f"{checkpoint.path} holds the state of optimizer {state['optimizer_kind']}, and this run has {_kind(job)}. "
            "Use the recipe it was trained with, or start over with --fresh."
        )
    if "replica" in checkpoint.groups() and "replica" not in job.extra:
        raise CheckpointError(
            f"{checkpoint.path} is of replicas that train on their own, each with its optimizer (parallel: local-sgd or diloco), and this run is "
            "not. Use the same, or start over with --fresh."
        )
    optim = checkpoint.lazy("optim") if "optim" in checkpoint.groups() else {}  # replicas have theirs among `extra`
    load_optimizer(job.optimizer, job.model, optim, state["optimizer"], partial=partial)
    if (job.ema is not None) != ("ema" in checkpoint.groups()):
        held, asked = ("no", "is set") if job.ema is not None else ("", "is not set")
        raise CheckpointError(
            f"{checkpoint.path} holds {held} averaged weights, and train.ema {asked}. Use the recipe it was trained with, or --fresh."
        )
    if job.ema is not None:
        average = checkpoint.lazy("ema")
        for k, v in job.ema.shadow.items():
            fill(v, average[k])
    if state["total_steps"] != job.policy.total_steps:
        raise CheckpointError(
            f"{checkpoint.path} is of a run of {state['total_steps']} steps, this one has {job.policy.total_steps}: the learning rate would jump. "
            "Start over with --fresh, or use the same train.steps."
        )
    job.step, job.examples, job.tokens = state["step"], state["examples"], state["tokens"]
    job.health.load(state["health"])
    job.notes = dict(state["notes"])
    for name, part in job.extra.items():
        if name not in checkpoint.groups():
            raise CheckpointError(f"{checkpoint.path} holds no {name!r}: it was trained another way (parallel). Use the same, or --fresh.")
        part.load(checkpoint.tensors(name))
