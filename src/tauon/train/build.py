"""Builds a job: the one place where a model is transformed, in a fixed order.

1 build the plain model; 2 choose what trains; 3 layer rules of privacy; 4 tensor, sequence and context parallel; 5 activation
checkpointing; 6 compile, block by block; 7 data parallel; 8 materialise by (seed, parameter name); 9 the optimizer over what came
out. Step 3 is done by `make_private`, around the job.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tauon.distributed import (
    PER_PROCESS,
    AutoParallel,
    Layout,
    Mesh,
    MeshParallel,
    ParallelConfig,
    PipelineStages,
    apply_data,
    cut_blocks,
    needs_batch_statistics,
    parallelize,
    register_hook,
    shard_targets,
    share_statistics,
    stages_of,
)
from tauon.errors import Problem, RecipeError
from tauon.models import Model, ModelConfig, freeze_running_stats, materialize
from tauon.models.attention import set_attention
from tauon.optim import Muon, OptimConfig, scale_rates
from tauon.tasks import Task
from tauon.train.allocator import keep_freed_memory
from tauon.train.config import TrainConfig
from tauon.train.ema import EMA
from tauon.train.freeze import freeze
from tauon.train.health import GradientHealth
from tauon.train.pipeline_parallel import through_pipeline
from tauon.train.precision import Precision, apply_checkpointing_and_compile, gather_dtype
from tauon.train.sizes import BatchSizeScheduler, SeqLenTruncation
from tauon.train.statistics import RunningStatistics, running_statistics
from tauon.train.step import BatchSource, StepPolicy, TrainJob
from tauon.types import DataSpec

__all__ = ["JobConfig", "JobSettings", "build_job"]


@dataclass(frozen=True)
class JobConfig:
    """What a job trains, from the recipe."""

    model: ModelConfig
    """Resolved: without `auto`."""
    optim: OptimConfig
    train: TrainConfig
    task: Task
    spec: DataSpec
    """Of the data."""
    seed: int


@dataclass
class JobSettings:
    """Settings of a job that a recipe may leave open. `tauon.plan` decides them: its `Plan` is a subclass."""

    steps: int
    device: torch.device
    precision: str
    compile: bool
    microbatch: int
    attention: str = field(default="fused", kw_only=True)
    """How attention is computed: one of `tauon.models.attention.KERNELS`."""
    reshard_after_forward: bool = field(default=True, kw_only=True)
    """Free gathered weights of a sharded model between forward and backward, if the recipe leaves that open."""


def build_job(
    config: JobConfig, loader: BatchSource, settings: JobSettings, *, mesh: Mesh | None = None, parallel: ParallelConfig | None = None
) -> TrainJob:
    """Build a job at step 0. The same arguments give bit-identical weights on every mesh."""
    keep_freed_memory(settings.device)
    mesh = mesh or Mesh(Layout())
    asked = parallel if isinstance(parallel, MeshParallel) else MeshParallel()
    sizes = BatchSizeScheduler.of(config.train, config.spec.seq_len)
    refuse_warm_ups(sizes, config.spec, mesh.layout, parallel)
    parts: list[Model] = []
    half = settings.precision == "bf16" and mesh.replicas_only
    net: Model = materialize(
        config.model, seed=config.seed, device=settings.device, half=half,
        transform=lambda bare: parts.extend(transform(bare, config, settings, mesh, asked)),
    )  # fmt: skip
    optimizer = config.optim.build(net)
    scale_rates(optimizer, net, net.layer_of, config.optim.layer_decay, config.optim.lr_scale)
    job = TrainJob(
        model=net,
        optimizer=optimizer,
        loader=SeqLenTruncation(loader, sizes) if sizes.seq_steps else loader,
        task=config.task,
        policy=step_policy(config, settings, sizes),
        health=GradientHealth(config.train.spike_factor, config.train.max_bad_steps),
        mesh=mesh,
        ema=EMA(net, config.train.ema) if config.train.ema is not None else None,
        statistics=RunningStatistics(net) if running_statistics(net) else None,
        eval_weights=config.optim.averaged_weights(net, optimizer),
    )
    refuse_two_averages(job, config.optim)
    connect_replicas(job, asked)
    return through_pipeline(job, PipelineStages(asked, mesh, parts, settings.device)) if parts else job


def transform(bare: Model, config: JobConfig, settings: JobSettings, mesh: Mesh, asked: MeshParallel) -> list[Model]:
    """Transform the model on the meta device, in the fixed order; adapters exist already. Returns this process's pipeline stages."""
    freeze(bare, config.train.freeze)
    config.optim.refuse_model(bare)  # before it is sharded
    parts: list[Model] = []
    if mesh.layout.pipeline > 1:
        cuts = cut_blocks(len(bare.blocks_to_compile()), mesh.layout.pipeline * PER_PROCESS[asked.schedule])
        parts.extend(bare.keep_stages([cuts[i] for i in stages_of(asked, mesh)]))
    parallelize(bare, mesh, parts=parts or None, sequence=mesh.layout.tensor > 1 and asked.sequence_parallel)
    share_statistics(bare, mesh)
    set_attention(bare, settings.attention)
    apply_checkpointing_and_compile(bare, checkpointing=config.train.activation_checkpointing, compiled=settings.compile)
    if mesh.reduce_size > 1:
        reshard = settings.reshard_after_forward if asked.reshard_after_forward == "auto" else asked.reshard_after_forward
        whole = mesh.layout.shard == 1 or reshard
        gathered = gather_dtype(settings.device, Precision(settings.precision, str(settings.device)))
        for part in parts or [bare]:
            apply_data(part, mesh, blocks=part.blocks_to_compile(), reshard_after_forward=whole, gather_dtype=gathered)
    return parts


def step_policy(config: JobConfig, settings: JobSettings, sizes: BatchSizeScheduler) -> StepPolicy:
    """Return the policy of the job's steps."""
    optim = config.optim
    return StepPolicy(
        total_steps=settings.steps,
        seed=config.seed,
        schedule=optim.schedule,
        precision=Precision(settings.precision, str(settings.device)),
        device=settings.device,
        microbatch=settings.microbatch,
        clip_norm=optim.clip_norm,
        clip_value=optim.clip_value,
        clip_layer=optim.clip_layer,
        clip_adaptive=optim.clip_adaptive,
        examples_at=sizes.size,
        reads_late=settings.device.type == "cuda",  # fused kernels that skip are not tested on other accelerators
    )


def refuse_two_averages(job: TrainJob, optim: OptimConfig) -> None:
    """Raise `RecipeError` for two averages of weights, or an average with running statistics."""
    if job.eval_weights is None:
        return
    if job.ema is not None:
        raise RecipeError([Problem("train.ema", f"{optim.kind_} already averages the weights. Remove train.ema.")])
    if needs_batch_statistics(job.model):
        message = (
            f"{optim.kind_} evaluates averaged weights, for which batch norm has no statistics. Use model.norm=group, or another optimizer."
        )
        raise RecipeError([Problem("optim.kind", message)])


def refuse_warm_ups(sizes: BatchSizeScheduler, spec: DataSpec, layout: Layout, parallel: ParallelConfig | None) -> None:
    """Raise `RecipeError` for a warm-up of batch or sequence length that the data or the layout does not allow."""
    problems = []
    if sizes.seq_steps and (spec.seq_len is None or sizes.seq_start >= spec.seq_len):
        reason = "needs text" if spec.seq_len is None else f"{sizes.seq_start} is not below data.seq_len {spec.seq_len}"
        problems.append(Problem("train.seq_len_warmup.start", f"{reason}. Start lower, or remove seq_len_warmup."))
    for name, on in (("batch_warmup", sizes.batch_steps), ("seq_len_warmup", sizes.seq_steps)):
        if on and (layout.pipeline > 1 or layout.context > 1 or not isinstance(parallel, MeshParallel | AutoParallel | None)):
            message = "works only with parallel auto, replicate, shard or tensor: other layouts need steps of one size. Remove it."
            problems.append(Problem(f"train.{name}", message))
    if sizes.batch_steps and sizes.batch_start < layout.data:
        message = f"{sizes.batch_start} examples are fewer than {layout.data} data-parallel processes. Start at {layout.data} or more."
        problems.append(Problem("train.batch_warmup.start", message))
    if problems:
        raise RecipeError(problems)


def connect_replicas(job: TrainJob, asked: MeshParallel) -> None:
    """Set up what replicas exchange in addition to DDP's sums: compressed gradients, and Muon's matrices, each computed by one process."""
    mesh = job.mesh
    replicas = mesh.group("replicate", "context") if mesh.replicas_only else None
    if mesh.world.size > 1 and mesh.replicas_only:
        compression = register_hook(job.model, asked, job.traffic, replicas)
        if compression is not None:
            job.extra["compression"] = compression
        elif mesh.reduce_size > 2:
            _warm_up_buckets(job)
    for part in getattr(job.optimizer, "parts", [job.optimizer]):
        if isinstance(part, Muon):  # one process computes each matrix's step
            part.traffic, part.group = job.traffic, replicas


def _warm_up_buckets(job: TrainJob) -> None:
    """Do a backward pass and discard the gradients. DDP rearranges its buckets after the first pass of a process, and sums over more than
    two ranks depend on the arrangement: without this, a resumed run would differ in the last bits from one that was never stopped.
    """
    job.model.train()
    batch = job.loader.batch_at(job.step).rows(0, 1).to(job.policy.device)
    with freeze_running_stats(job.model):
        with job.policy.precision.context():
            total, _ = job.task.loss(job.model, shard_targets(batch, job.mesh.at["context"], job.mesh.layout.context))
        total.backward()  # type: ignore[no-untyped-call]
    job.optimizer.zero_grad(set_to_none=True)
    job.traffic.take()
    job.traffic.total.clear()
