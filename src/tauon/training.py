"""The training stage: choices, a job, the loop, and what is recorded meanwhile; on one process or many.

Sits beside `pipeline.py`, which has the other stages. Each step of `train_stage` is a function below it, in this order.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauon.artifacts import Checkpoint, CheckpointWriter, latest_checkpoint, load_checkpoint, write_json
from tauon.auditing import planted
from tauon.config import dump
from tauon.data import Loader
from tauon.distributed import (
    Layout,
    LowCommunication,
    Mesh,
    MeshCheckpointWriter,
    ParallelConfig,
    ParameterServer,
    World,
    choose_layout,
    refuse_layout,
    reshard,
)
from tauon.errors import Problem, RecipeError
from tauon.models import ModelConfig, PretrainedModel, match_weights
from tauon.plan import Derived, Plan, choose_device, fits_whole, make_plan
from tauon.privacy import PrivateRun, check_independent
from tauon.private_training import (
    charge,
    draw_statistics,
    finish,
    is_finished,
    private_run,
    publish,
    remember,
    write_account,
)
from tauon.tasks import Task
from tauon.tracking import EventLog, guard, nothing_logged
from tauon.train import (
    BatchSizeScheduler,
    Hook,
    JobConfig,
    Moved,
    RecipeWork,
    StopSignal,
    SyncParameterServer,
    TrainConfig,
    TrainJob,
    build_job,
    local_steps,
    refuse_leaks,
    refuse_wrong_mask,
    restore,
    seconds_a_step,
    train,
    use_parameter_server,
    watch_first_step,
    watch_layers,
)
from tauon.types import DataSpec, StepInfo
from tauon.watch import TrainingRecord

if TYPE_CHECKING:
    from tauon.context import Context

__all__ = ["choose_mesh", "newest", "refuse_cut_pairs", "train_stage"]


def train_stage(ctx: Context) -> dict[str, Any]:
    """Data -> checkpoints. Goes on from the newest whole checkpoint of the same run."""
    _ = ctx.splits  # all ranks open the data together: rank 0 must not begin alone, inside what it does alone
    ctx.world.rank0_broadcast(ctx.refuse_changed_data)
    ctx.world.rank0_broadcast(ctx.refuse_changed_start)
    started = ctx.world.rank0_broadcast(lambda: ctx.run.manifest().get("training")) or {}
    checkpoint = newest(ctx)
    private, key = private_run(ctx, checkpoint)
    model, loader, plan, mesh = decide(ctx, started, private)
    job, servers = assemble(ctx, model, loader, plan, mesh)
    if private is not None:
        job = private.dress(job, ctx.splits.validation, canaries=planted(ctx.run.folder) if private.config.audit is not None else None)
    with EventLog(ctx.run.events_path) if ctx.world.leads else nothing_logged() as events:
        if checkpoint is not None:
            found = checkpoint
            ctx.world.all_or_raise(lambda: restore(job, found))
            if private is not None:
                ctx.world.all_or_raise(lambda: remember(ctx, job))
            events.log("resume", step=job.step)
            ctx.tell("resume", step=job.step, total_steps=job.policy.total_steps)
        charged = private is None or is_finished(ctx, checkpoint) or charge(ctx, private, key, plan, job.step)
        try:
            if private is not None and charged:
                draw_statistics(ctx, private)
            if charged:
                run_job(ctx, job, servers, plan, events, model, parent=checkpoint, recorded=bool(started), private=private is not None)
        finally:
            loader.close()
            if private is not None and charged and ctx.world.leads:
                write_account(ctx, private, job)
    if not charged:
        return train_stage(ctx)  # with a new key
    if private is not None and ctx.world.leads:
        finish(ctx, private, job.step)
    best = job.notes.get("best") if ctx.recipe.train.early_stopping is not None else None
    step = best["step"] if best else job.step
    final = load_checkpoint(ctx.run.checkpoints / f"step-{step:06d}", verify=False)
    ctx.run.update_manifest(checkpoint={"step": step, "hash": final.hash, "parent": final.parent})
    return {"checkpoint": final.path.name, "hash": final.hash, "steps": job.step}


def decide(ctx: Context, started: dict[str, Any], private: PrivateRun | None = None) -> tuple[ModelConfig, Loader, Plan, Mesh]:
    """Every choice that the recipe leaves open, told with its reason. `started`: what an earlier part of this run recorded."""
    recipe, spec = ctx.recipe, ctx.splits.spec
    model = ctx.model
    mesh, chosen = choose_mesh(model, ctx.train, recipe.parallel, spec, ctx.world)
    refuse_cut_pairs(recipe.task, mesh.layout)
    config = JobConfig(model, recipe.optim, ctx.train, recipe.task, spec, recipe.seed)
    share: dict[str, Any] = {
        "batch": ctx.train.batch, "workers": recipe.data.workers, "rank": mesh.data_rank, "world": mesh.layout.data,
        "sizes": BatchSizeScheduler.of(ctx.train, spec.seq_len) if ctx.train.batch_warmup is not None else None,
    }  # fmt: skip
    train = ctx.splits.train
    loader = Loader(train, seed=recipe.seed, **share) if private is None else private.load(**share)
    plan = make_plan(
        config, examples=loader.count, recorded=started.get("plan"), tell=lambda m: ctx.tell("note", message=m), mesh=mesh,
        parallel=recipe.parallel, measure=partial(seconds_a_step, config, loader, mesh, recipe.parallel),
    )  # fmt: skip
    plan.derived.insert(1, chosen)
    if private is not None:
        plan.derived += [Derived(*d) for d in private.settle(plan.steps)]
    if ctx.start is not None:
        plan.derived[1:1] = [
            Derived("model", model.kind_, f"{recipe.model.from_}"),
            Derived("model.from", *started_with(ctx.start, model, ctx.splits.spec.labels)),
        ]
    derived = [d.to_json() for d in plan.derived]
    if ctx.world.leads:
        write_json(ctx.run.folder / "derived.json", derived)
    ctx.tell("derived", settings=derived)
    return model, loader, plan, mesh


def assemble(ctx: Context, model: ModelConfig, loader: Loader, plan: Plan, mesh: Mesh) -> tuple[TrainJob, SyncParameterServer | None]:
    """The job at step 0, and the servers that hold its weights where there are any."""
    recipe, spec = ctx.recipe, ctx.splits.spec
    alone = isinstance(recipe.parallel, LowCommunication)  # each process computes its own steps whole
    config = JobConfig(model, recipe.optim, ctx.train, recipe.task, spec, recipe.seed)
    job = build_job(config, loader, plan, mesh=Mesh(Layout()) if alone else mesh, parallel=recipe.parallel)
    if isinstance(recipe.parallel, LowCommunication):
        job = local_steps(job, recipe.parallel)
    if not isinstance(recipe.parallel, ParameterServer):
        return watch_layers(job, ctx.train.watch_layers or plan.validate_every), None
    if recipe.optim.layer_decay is not None or recipe.optim.lr_scale:
        message = "servers give every weight the same learning rate. Drop optim.layer_decay and optim.lr_scale, or take another layout."
        raise RecipeError([Problem("parallel.kind", message)])
    work = RecipeWork.of(config, ctx.data, plan, ctx.splits.fingerprint)
    servers = use_parameter_server(job, recipe.parallel, recipe.optim, work, tell=lambda m: ctx.tell("note", message=m))
    return servers.job, servers


def run_job(
    ctx: Context, job: TrainJob, servers: SyncParameterServer | None, plan: Plan, events: EventLog, model: ModelConfig, *, parent: Checkpoint | None,
    recorded: bool, private: bool = False,
) -> None:  # fmt: skip
    """The loop with its hooks, until the end or a signal; what goes wrong is in the event log before it is raised."""
    recipe, run, world = ctx.recipe, ctx.run, ctx.world
    about = {
        "model": model_record(model, ctx.start),
        "task": dump(recipe.task),
        "spec": spec_record(ctx.splits.spec),
        "preprocess": ctx.splits.preprocess,
    }
    if ctx.start is not None:
        about["base"] = ctx.start.reference
    trackers = [
        guard(t.build(run.folder, recipe.name, dump(recipe)), lambda m: ctx.tell("warning", message=m)) for t in recipe.track if world.leads
    ]
    first_step = job.step + 1

    def begin(job: TrainJob, info: StepInfo) -> None:
        """After the first step: every key has had its chance to be read. From here on the folder is this recipe's."""
        if info.step == first_step:
            world.all_or_raise(lambda: ctx.refuse_unread("train"))
            if not recorded:
                ctx.record_training(plan)

    every = recipe.parallel.every if isinstance(recipe.parallel, LowCommunication) else 1
    with (
        own_writer(ctx, parent, events, private=private) as writer,
        StopSignal(world, every=every).listening() as stop,
        servers or nullcontext(),
    ):
        watch = TrainingRecord(
            recipe.train, ctx.splits, plan, events, trackers, writer, about, ctx.tell, flops=plan.flops_per_example,
            publish=partial(publish, ctx) if private else None,
        )  # fmt: skip
        watch.begin(job)
        try:
            if job.step == 0 and servers is None and not isinstance(recipe.parallel, LowCommunication):
                look_closely(ctx, job, events)
            hooks: list[Hook] = [lambda job, info: ctx.heart.beat(info.step), begin, *watch.hooks()]
            go = partial(train, job, hooks=hooks, save=watch.save, save_every=plan.checkpoint_every, stop=stop)
            if servers is None:
                go()
            else:
                servers.through(go, partial(back_to_checkpoint, ctx, job, writer, watch, events))
        except RuntimeError as err:
            failure = ctx.heart.failure(err, ending=stop.name is not None)
            events.log("interrupted", step=job.step, reason=str(failure or err) or type(err).__name__)
            if failure is None:
                raise
            raise failure from err
        except BaseException as err:
            events.log("interrupted", step=job.step, reason=str(err) or type(err).__name__)
            raise
        finally:
            for tracker in trackers:
                tracker.close()


def look_closely(ctx: Context, job: TrainJob, events: EventLog) -> None:
    """Of fine-tuning, what goes wrong without a sign: checked before the first step, and during it."""
    recipe = ctx.recipe
    if recipe.privacy is not None and recipe.privacy.promises:
        check_independent(job.model, job.task, job.loader.batch_at(0).to(job.policy.device))
        reshard(job.model)
    if recipe.task.needs in ("chat", "pairs"):
        covers = refuse_wrong_mask(job, ctx.splits.train)
        events.log("checked", mask=covers)
        ctx.tell("note", message=f"mask: {covers}")
    if ctx.start is None and not recipe.train.freeze:
        return
    if ctx.splits.spec.vocab is not None:
        said = refuse_leaks(job)
        events.log("checked", packing=said)
        ctx.tell("note", message=f"packing: {said}")

    def told(found: Moved) -> None:
        events.log("checked", moved=found.moved, frozen=found.frozen, still=found.still)
        words = f"first step: {found.moved} parameters moved, {found.frozen} frozen ones did not"
        for reason in sorted({*found.still.values()}):
            names = [n for n, why in found.still.items() if why == reason]
            words += f"; {len(names)} did not, as {reason} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        ctx.tell("note", message=words)

    watch_first_step(job, told)


def back_to_checkpoint(ctx: Context, job: TrainJob, writer: CheckpointWriter, watch: TrainingRecord, events: EventLog, why: str) -> bool:
    """Put the job back to the newest whole checkpoint, and say so; False where there is none."""
    writer.wait()
    checkpoint = newest(ctx)
    if checkpoint is None:
        return False
    restore(job, checkpoint)
    events.log("resume", step=job.step, reason=why)
    ctx.tell("note", message=f"{why} Going on from the checkpoint of step {job.step}.")
    watch.begin(job)
    return True


def started_with(start: PretrainedModel, model: ModelConfig, labels: tuple[str, ...]) -> tuple[str, str]:
    """(weights taken, and what is not, in words; where they come from). `labels`: names of the data's classes."""
    found = match_weights(model.build_on_meta(), start)
    said = found.describe()
    if labels and start.labels and labels != start.labels and not found.fresh:
        said += f"; its head was trained for the classes {', '.join(start.labels[:4])}, these are {', '.join(labels[:4])}"
    return said, f"{start.layout}, {start.fingerprint[:12]}"


def model_record(model: ModelConfig, start: PretrainedModel | None) -> dict[str, Any]:
    """What a checkpoint keeps of the architecture. One of adapters needs its base again; any other is complete."""
    base = str(start.path) if start is not None and model.adapt is not None else None
    adapt = None if model.adapt is None else model.adapt.model_copy(update={"from_": None})
    return dump(model.model_copy(update={"from_": base, "adapt": adapt}))


def choose_mesh(model: ModelConfig, config: TrainConfig, parallel: ParallelConfig, spec: DataSpec, world: World) -> tuple[Mesh, Derived]:
    """The layout that `parallel` asks for or leaves open, refused on every rank where model, batch and processes do not fit it."""
    device, _ = choose_device(config.device)
    if isinstance(parallel, ParameterServer):
        if world.size > 1:
            asked = f"parameter-server starts its workers by itself, and {world.size} processes were started. Start one: without --on."
            raise RecipeError([Problem("parallel.kind", asked)])
        what = f"parameter server: {parallel.workers} workers, {parallel.servers} servers, {parallel.mode}"
        return Mesh(Layout(), world, device.type), Derived("parallel", what, "asked for")
    fits = fits_whole(model, config, device, world.local_size)
    layout, why = choose_layout(parallel, world.size, fits=all(world.gather(fits)))
    refuse_layout(model.build_on_meta(), layout, parallel, batch=config.batch, seq_len=spec.seq_len, microbatch=config.peek("microbatch"))
    return Mesh(layout, world, device.type), Derived("parallel", str(layout), why)


def refuse_cut_pairs(task: Task, layout: Layout) -> None:
    """`RecipeError` where a layout would cut the two rows that one example of preferences is."""
    for name in ("pipeline", "context", "tensor"):
        if task.needs == "pairs" and getattr(layout, name) > 1:
            message = f"task {task.kind_} reads two rows at once, which this layout cuts. Take replicate or shard."
            raise RecipeError([Problem(f"parallel.{name}", message)])


def newest(ctx: Context) -> Checkpoint | None:
    """The newest whole checkpoint. Rank 0 looks and checks every byte; the others open what it found."""
    mine: list[Checkpoint | None] = [None]

    def look() -> str | None:
        mine[0] = latest_checkpoint(ctx.run.checkpoints, warn=lambda m: ctx.tell("warning", message=m))
        return None if mine[0] is None else mine[0].path.name

    name = ctx.world.rank0_broadcast(look)
    if ctx.world.leads or name is None:
        return mine[0]
    return load_checkpoint(ctx.run.checkpoints / name, verify=False)


def own_writer(ctx: Context, parent: Checkpoint | None, events: EventLog, *, private: bool) -> CheckpointWriter:
    """The writer of the run's checkpoints. Of a private run it is logged which of them became whole: what was released must be known."""
    config = ctx.recipe.train
    saved = (lambda saved: events.log("saved", step=saved.step)) if private else None
    return checkpoint_writer(
        ctx.run.checkpoints,
        ctx.world,
        keep_last=config.keep_last,
        keep_every=config.keep_every,
        parent=parent.hash if parent else None,
        on_saved=saved,
    )


def checkpoint_writer(folder: Path, world: World, **options: Any) -> CheckpointWriter:
    """Of one process, or of several that write together."""
    return CheckpointWriter(folder, **options) if world.size == 1 else MeshCheckpointWriter(folder, world, **options)


def spec_record(spec: Any) -> dict[str, Any]:
    """A `DataSpec` as JSON."""
    return {
        "vocab": spec.vocab,
        "seq_len": spec.seq_len,
        "input_shape": spec.input_shape,
        "outputs": spec.outputs,
        "labels": list(spec.labels),
        "categories": list(spec.categories),
        "horizon": spec.horizon,
    }
