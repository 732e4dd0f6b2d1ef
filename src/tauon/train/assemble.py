"""From choices to a job: the one place where a model is dressed, in the fixed order, with every derived setting and its reason.

1 build the plain model; 2 choose what trains; 3 layer rules of privacy; 4 tensor, sequence and context parallel; 5 activation
checkpointing; 6 compile, block by block; 7 data parallel; 8 materialise by (seed, parameter name); 9 the optimizer over what came
out. Steps 2 and 3 are the identity until a room brings them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tauon.distributed import (
    PER_PROCESS,
    AutoParallel,
    Layout,
    Mesh,
    MeshParallel,
    ParallelConfig,
    Stages,
    World,
    apply_data,
    cut_blocks,
    needs_batch_statistics,
    parallelize,
    pieces_of_batch,
    register_hook,
    shard_targets,
    share_statistics,
    stages_of,
)
from tauon.errors import Problem, RecipeError
from tauon.models import AdaptedLinear, Model, ModelConfig, materialize, parameter_count, still
from tauon.optim import Muon, OptimConfig, scale_rates
from tauon.tasks import Task
from tauon.train.config import TrainConfig
from tauon.train.ema import EMA
from tauon.train.freeze import freeze, trainable
from tauon.train.health import GradientHealth
from tauon.train.precision import available_memory, batch_that_fits, choose_compile, choose_device, choose_precision, dress, gather_dtype
from tauon.train.ramp import Ramps, Shortened
from tauon.train.staged import staged
from tauon.train.statistics import RunningStatistics, running_statistics
from tauon.train.step import BatchSource, StepPolicy, TrainJob, train_step
from tauon.types import DataSpec

__all__ = ["Derived", "Plan", "build_job", "fits_whole", "make_plan", "weights_are_few"]

CPU_FLOPS = {"fp32": 0.15e12, "bf16": 0.6e12}
"""Operations a second that two cores reach here: only to guess how long training takes, and so whether compiling pays."""
RECORDED = ("steps", "precision", "compile", "microbatch", "threads")
"""What a run records at its start and keeps when it resumes, so that the second half computes as the first did."""


@dataclass(frozen=True)
class Derived:
    """A setting that nobody wrote: what it is, and where it comes from."""

    path: str
    value: Any
    source: str

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "value": self.value, "source": self.source}


@dataclass
class Plan:
    """Every choice made before the first step."""

    steps: int
    device: torch.device
    precision: str
    compile: bool
    microbatch: int
    validate_every: int
    checkpoint_every: int
    threads: int
    flops_per_example: float = 0.0
    derived: list[Derived] = field(default_factory=list)
    layout: Layout = field(default_factory=Layout)
    reshard_after_forward: bool = True
    """Where the recipe leaves it open: free gathered weights of a sharded model between forward and backward."""

    def record(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in RECORDED} | {"device": self.device.type, "layout": self.layout.to_json()}


def make_plan(
    model: ModelConfig, optim: OptimConfig, config: TrainConfig, task: Task, spec: DataSpec, *, examples: int, loader: BatchSource, seed: int,
    recorded: Mapping[str, Any] | None = None, tell: Callable[[str], None] = lambda _: None,
    mesh: Mesh | None = None, parallel: ParallelConfig | None = None,
) -> Plan:  # fmt: skip
    """Settle steps, device, precision, compile and microbatch. `recorded` is an earlier `Plan.record()` of the same run.

    Collective over the processes of `mesh`: what is measured is measured together, and rank 0's choices are everybody's.
    """
    mesh = mesh or Mesh(Layout())
    world, layout = mesh.world, mesh.layout
    derived: list[Derived] = []

    def settle(name: str, value: Any, source: str) -> Any:
        derived.append(Derived(f"train.{name}", value, source))
        return value

    device, why = choose_device(config.device)
    settle("device", str(device), why)
    # Read here, whatever this run recorded earlier: what was recorded came from these.
    asked = {k: getattr(config, k) for k in ("steps", "epochs", "tokens", "time", "precision", "compile", "microbatch")}
    kept = dict(recorded) if recorded and recorded.get("device") == device.type else {}
    if kept and kept.get("layout", Layout().to_json()) != layout.to_json():
        for name in ("microbatch", "threads"):  # of another number of processes: found anew
            kept.pop(name, None)
    bare = model.bare()
    freeze(bare, config.freeze)
    settle("parameters", parameter_count(bare), "the model's shapes")
    if trainable(bare) < parameter_count(bare):
        settle("trainable", trainable(bare), "what adapt and train.freeze leave to train")
    if "threads" in kept:
        torch.set_num_threads(kept["threads"])
    threads = torch.get_num_threads()

    precision, why = choose_precision(kept.get("precision", asked["precision"]), device, bare)
    settle("precision", precision.name, "recorded by this run" if kept else why)

    width = 2 if precision.name == "bf16" else 4
    per_example = bare.activations_per_example(spec) * width
    cut = layout.shard * layout.tensor * layout.pipeline
    fixed = weight_bytes(bare, config) / cut
    share = config if layout.data == 1 else config.model_copy(update={"batch": -(-config.batch // layout.data)})
    per_example /= layout.context * layout.pipeline
    neighbours = world.local_size if device.type == "cpu" else 1
    microbatch, why = batch_that_fits(share, per_example, fixed, device, bytes_of_an_example(spec), neighbours=neighbours)
    if kept.get("microbatch"):
        microbatch, why = kept["microbatch"], "recorded by this run"
    if layout.pipeline > 1 and isinstance(parallel, MeshParallel):
        pieces, microbatch = pieces_of_batch(parallel, share.batch), share.batch
        settle("microbatch", microbatch // pieces, f"a batch goes through the {layout.pipeline} stages in {pieces} pieces")
    else:
        settle("microbatch", microbatch, why)

    if needs_batch_statistics(bare):
        rows = microbatch * layout.data
        derived.append(Derived("model.statistics", f"of {rows} examples", "batch norm counts over a microbatch, on all processes together"))
        if layout.data > 1 and config.peek("batch_warmup") is not None:
            message = "batches that grow do not divide among processes, and batch norm would count what fills them up. Drop it, or take model.norm=group."
            raise RecipeError([Problem("train.batch_warmup", message)])
    ramps = Ramps.of(config, spec.seq_len)
    flops = bare.flops_per_example(spec) * (1 - frozen_share(bare) / 3)  # a frozen weight has no gradient: 4 operations of 6
    per_step = flops * config.batch
    timed: dict[int, float] = {}
    if recorded and "steps" in recorded:
        steps, why = int(recorded["steps"]), "recorded by this run"
    elif config.time is not None:
        # On a CPU compiling must first pay for itself; on a GPU it is taken in any case, and changes the time of a step too much to leave out.
        compiled = device.type != "cpu" and choose_compile(asked["compile"], device, bare, None)[0]
        trial = Plan(10**9, device, precision.name, compiled, microbatch, 1, 1, threads)
        tell(f"measuring the time of a step, to fit {config.time:,.0f} s")
        # Half the threads too: where something else uses the cores, threads that wait for one another are slower than fewer.
        counts = {threads, max(1, threads // 2)} if device.type == "cpu" else {threads}
        for count in sorted(counts, reverse=True):
            torch.set_num_threads(count)
            trial_job = build_job(
                model, optim, config, task, spec, loader, trial, seed=seed,
                mesh=mesh if isinstance(parallel, MeshParallel | AutoParallel | None) else None, parallel=parallel,
            )  # fmt: skip
            timed[count] = _seconds_a_step(trial_job, min(8.0, config.time / 10) / len(counts), world)
        seconds, threads = min((s, t) for t, s in timed.items())
        torch.set_num_threads(threads)
        steps, why = max(1, int(config.time / seconds)), f"{config.time:,.0f} s at {seconds * 1e3:,.0f} ms a step, measured here"
    elif config.epochs is not None:
        steps, why = ramps.steps_for(config.epochs * examples), f"{config.epochs:g} epochs of {examples:,} examples, {config.batch} a step"
    elif config.tokens is not None:
        if spec.seq_len is None:
            raise RecipeError([Problem("train.tokens", "this data is not made of tokens. Give steps, epochs or time.")])
        steps = ramps.steps_for(config.tokens, tokens=True)
        why = f"{config.tokens:,} tokens, {config.batch * spec.seq_len:,} a step"
    else:
        steps, why = config.steps or 1, "asked for"
    settle("steps", steps, why)
    settle(
        "threads",
        threads,
        "recorded by this run"
        if "threads" in kept
        else "the fastest of those tried here"
        if timed
        else "torch's choice: cores, or OMP_NUM_THREADS",
    )
    formula = (
        "6 x (weights that multiply) + causal attention at half its square, for each token"
        if spec.seq_len
        else "6 x (weights that multiply), for each example"
    )
    derived.append(Derived("train.tflop_per_step", round(per_step / 1e12, 6), f"model operations of forward and backward: {formula}"))

    guess = config.time if config.time is not None else steps * per_step / CPU_FLOPS[precision.name] if device.type == "cpu" else None
    compiled, why = choose_compile(asked["compile"], device, bare, guess)
    if kept:
        compiled, why = kept["compile"], "recorded by this run"
    settle("compile", compiled, why)
    validate_every = config.validate_every or max(1, math.ceil(steps / 10))
    if config.validate_every is None:
        settle("validate_every", validate_every, "ten validations in a run")
    checkpoint_every = config.checkpoint_every or max(1, min(1000, math.ceil(steps / 10)))
    if config.checkpoint_every is None:
        settle("checkpoint_every", checkpoint_every, "ten checkpoints in a run, at most 1,000 steps apart")
    if optim.peek("lr") is None:  # a look, no use: whether the optimizer reads it is for `build` to show
        derived.append(Derived("optim.lr", optim.peak, f"the usual peak rate of {optim.kind_}"))
    # Of the last step that there is: a key of the schedule that no step of so short a run comes to is told to be unread.
    rise, last = optim.schedule.warmup_steps(steps), optim.schedule.factor(steps - 1, steps)
    derived.append(Derived("optim.schedule", f"{optim.schedule.kind_}, {rise} steps of warm-up", f"ends at {last:.2%} of the peak"))
    plan = Plan(
        steps,
        device,
        precision.name,
        compiled,
        microbatch,
        validate_every,
        checkpoint_every,
        threads,
        flops,
        derived,
        layout=layout,
    )
    if (
        layout.shard > 1
        and isinstance(parallel, AutoParallel | MeshParallel | None)
        and getattr(parallel, "reshard_after_forward", "auto") == "auto"
    ):
        few = all(world.gather(weights_are_few(model, device, layout, world.local_size)))
        plan.reshard_after_forward = not few
        why = (
            "the whole weights take less than a tenth of the free memory"
            if few
            else "the whole weights would take over a tenth of the free memory"
        )
        derived.append(Derived("parallel.reshard_after_forward", not few, why))
    if world.size > 1:  # machines may differ in free memory and speed
        first = world.gather([steps, precision.name, compiled, validate_every, checkpoint_every])[0]
        plan.steps, plan.precision, plan.compile, plan.validate_every, plan.checkpoint_every = first
        plan.microbatch = min(world.gather(microbatch))
    return plan


def memory_copies(config: TrainConfig) -> int:
    """Copies of the weights that training holds: themselves, gradients, two moments, the checkpoint's snapshot; and the average."""
    return 5 if config.ema is None else 6


def weight_bytes(bare: Model, config: TrainConfig) -> float:
    """Bytes of weights and of what training holds for each that trains."""
    small = {id(m.weight) for m in bare.modules() if isinstance(m, AdaptedLinear) and m.will_round}
    held = sum(p.numel() * (0.5625 if id(p) in small else 4.0) for p in bare.parameters())
    return held + 4.0 * trainable(bare) * (memory_copies(config) - 1)


def frozen_share(bare: Model) -> float:
    """Share of the matrices' weights that does not train."""
    sizes = [(p.numel(), p.requires_grad) for p in bare.parameters() if p.ndim >= 2]
    return sum(n for n, trains in sizes if not trains) / max(1, sum(n for n, _ in sizes))


def fits_whole(model: ModelConfig, config: TrainConfig, device: torch.device, processes: int) -> bool:
    """Whether weights and optimizer fit, whole, what each of `processes` on this machine has; half is left to activations."""
    free = available_memory(device)
    if free is None:
        return True
    return weight_bytes(model.bare(), config) < 0.5 * free / (processes if device.type == "cpu" else 1)


def weights_are_few(model: ModelConfig, device: torch.device, layout: Layout, processes: int) -> bool:
    """Whether a process may keep the whole of its stage's weights gathered from forward to backward: a tenth of what memory is free."""
    free = available_memory(device)
    if free is None:
        return False
    whole = parameter_count(model.bare()) * 4.0 / (layout.tensor * layout.pipeline)
    return whole < 0.1 * free / (processes if device.type == "cpu" else 1)


def bytes_of_an_example(spec: DataSpec) -> int:
    """Of a `Batch`, as the loader makes it: inputs, targets, weights, segments and index."""
    if spec.seq_len is not None:
        return spec.seq_len * (8 + 8 + 4 + 4) + 8
    return 4 * math.prod(spec.input_shape or (1,)) + 8 + 4 + 8


def build_job(
    model: ModelConfig, optim: OptimConfig, config: TrainConfig, task: Task, spec: DataSpec, loader: BatchSource, plan: Plan, *,
    seed: int, mesh: Mesh | None = None, parallel: ParallelConfig | None = None,
) -> TrainJob:  # fmt: skip
    """A job at step 0. The same arguments give the same weights to the last bit, on every mesh."""
    precision, _ = choose_precision(plan.precision, plan.device, None)
    mesh = mesh or Mesh(Layout())
    asked = parallel if isinstance(parallel, MeshParallel) else MeshParallel()
    ramps = Ramps.of(config, spec.seq_len)
    refuse_ramps(config, ramps, spec, mesh.layout, parallel)

    parts: list[Model] = []

    def divide(bare: Model) -> None:
        """Everything that must happen before weights exist, in the fixed order; adapters are there already."""
        freeze(bare, config.freeze)
        optim.refuse_model(bare)  # while it is whole
        if mesh.layout.pipeline > 1:
            cuts = cut_blocks(len(bare.blocks_to_compile()), mesh.layout.pipeline * PER_PROCESS[asked.schedule])
            parts.extend(bare.keep_stages([cuts[i] for i in stages_of(asked, mesh)]))
        parallelize(bare, mesh, parts=parts or None, sequence=mesh.layout.tensor > 1 and asked.sequence_parallel)
        share_statistics(bare, mesh)
        dress(bare, checkpointing=config.activation_checkpointing, compiled=plan.compile)
        if mesh.reduce_size > 1:
            reshard = plan.reshard_after_forward if asked.reshard_after_forward == "auto" else asked.reshard_after_forward
            whole = mesh.layout.shard == 1 or reshard
            gathered = gather_dtype(plan.device, precision)
            for part in parts or [bare]:
                apply_data(part, mesh, blocks=part.blocks_to_compile(), reshard_after_forward=whole, gather_dtype=gathered)

    half = precision.name == "bf16" and mesh.replicas_only
    net: Model = materialize(model, seed=seed, device=plan.device, dress=divide, half=half)
    optimizer = optim.build(net)
    scale_rates(optimizer, net, net.layer_of, optim.layer_decay, optim.lr_scale)
    job = TrainJob(
        model=net,
        optimizer=optimizer,
        loader=Shortened(loader, ramps) if ramps.seq_steps else loader,
        task=task,
        policy=StepPolicy(
            total_steps=plan.steps, seed=seed, schedule=optim.schedule, precision=precision, device=plan.device, microbatch=plan.microbatch,
            clip_norm=optim.clip_norm, clip_value=optim.clip_value, clip_layer=optim.clip_layer, clip_adaptive=optim.clip_adaptive,
            examples_at=ramps.size, reads_late=plan.device.type != "cpu",
        ),
        health=GradientHealth(config.spike_factor, config.max_bad_steps),
        ema=EMA(net, config.ema) if config.ema is not None else None,
        statistics=RunningStatistics(net) if running_statistics(net) else None,
        mesh=mesh,
    )  # fmt: skip
    job.eval_weights = optim.averaged_weights(net, job.optimizer)
    if job.eval_weights is not None and job.ema is not None:
        raise RecipeError([Problem("train.ema", f"{optim.kind_} averages the weights already. Drop it.")])
    if job.eval_weights is not None and needs_batch_statistics(net):
        said = f"{optim.kind_} evaluates an average whose activations batch norm has never counted. Take model.norm=group, or another optimizer."
        raise RecipeError([Problem("optim.kind", said)])
    if mesh.world.size > 1 and mesh.replicas_only:
        replicas = mesh.group("replicate", "context")
        kept = register_hook(net, asked, job.traffic, replicas)
        if kept is not None:
            job.extra["compression"] = kept
        elif mesh.reduce_size > 2:
            _settle_buckets(job)
    for part in getattr(job.optimizer, "parts", [job.optimizer]):
        if isinstance(part, Muon):  # one process computes each matrix's step
            part.traffic = job.traffic
            part.group = mesh.group("replicate", "context") if mesh.replicas_only else None
    return staged(job, Stages(asked, mesh, parts, plan.device)) if parts else job


def refuse_ramps(config: TrainConfig, ramps: Ramps, spec: DataSpec, layout: Layout, parallel: ParallelConfig | None) -> None:
    """Raise `RecipeError` for a warm-up of sizes that the data or the layout cannot follow."""
    wrong = []
    if ramps.seq_steps and (spec.seq_len is None or ramps.seq_start >= spec.seq_len):
        asked = "needs text" if spec.seq_len is None else f"{ramps.seq_start} is not below data.seq_len {spec.seq_len}"
        wrong.append(Problem("train.seq_len_warmup.start", f"{asked}. Start lower, or drop seq_len_warmup."))
    for name, on in (("batch_warmup", ramps.batch_steps), ("seq_len_warmup", ramps.seq_steps)):
        if on and (layout.pipeline > 1 or layout.context > 1 or not isinstance(parallel, MeshParallel | AutoParallel | None)):
            wrong.append(
                Problem(f"train.{name}", "needs parallel: auto, replicate, shard or tensor: others share out steps of one size. Drop it.")
            )
    if ramps.batch_steps and ramps.batch_start < layout.data:
        wrong.append(
            Problem("train.batch_warmup.start", f"{ramps.batch_start} examples for {layout.data} processes: some would have none.")
        )
    if wrong:
        raise RecipeError(wrong)


def _settle_buckets(job: TrainJob) -> None:
    """A backward pass whose gradients are thrown away. DDP arranges its buckets anew after a process's first, and sums over more than
    two ranks depend on the arrangement: without this, a run that goes on would differ in last bits from one that was never stopped.
    """
    job.model.train()
    batch = job.loader.batch_at(job.step).rows(0, 1).to(job.policy.device)
    with still(job.model):
        with job.policy.precision.context():
            total, _ = job.task.loss(job.model, shard_targets(batch, job.mesh.at["context"], job.mesh.layout.context))
        total.backward()  # type: ignore[no-untyped-call]
    job.optimizer.zero_grad(set_to_none=True)
    job.traffic.take()
    job.traffic.total.clear()


def _seconds_a_step(job: TrainJob, budget: float, world: World) -> float:
    """Median seconds of a step after two that warm up, within about `budget` seconds: rank 0's. The job is spent by it."""
    job.model.train()
    job.policy = replace(job.policy, total_steps=10**9)
    times: list[float] = []
    steps = 3
    while len(times) < steps:
        start = time.perf_counter()
        train_step(job, job.loader.batch_at(job.step).to(job.policy.device))
        times.append(time.perf_counter() - start)
        if len(times) == 3:  # as many steps on every rank
            steps = world.gather(max(3, min(50, int(budget / max(times[2], 1e-6)))))[0]
    return float(world.gather(_median(times))[0])


def _median(times: list[float]) -> float:
    return sorted(times[2:])[len(times[2:]) // 2]
