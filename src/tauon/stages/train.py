"""The training stage: resolve settings, build the job, run the loop, record it; on one process or many.

It does plain training only. Anything that changes training is an extension (`extensions/`), called at each phase of `train_stage`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

from tauon.artifacts import Checkpoint, CheckpointWriter, latest_checkpoint, load_checkpoint, write_json
from tauon.config import dump
from tauon.data import Loader
from tauon.distributed import Mesh, MeshCheckpointWriter, World
from tauon.models import ModelConfig, PretrainedModel, match_weights
from tauon.plan import Derived, Plan, Work, make_plan
from tauon.stages.context import Context
from tauon.stages.extensions import StartAgain, TrainExtension, train_extensions
from tauon.stages.layout import choose_mesh, refuse_cut_pairs
from tauon.stages.sanity import sanity_checks
from tauon.stages.training_record import Checkpoints, Logs, TrainingRecord
from tauon.stages.unread import refuse_unread, refuse_unread_before_training
from tauon.tracking import EventLog, Tracker, guard, nothing_logged
from tauon.train import BatchSizeScheduler, Hook, JobConfig, StopSignal, TrainJob, build_job, early_steps, restore, seconds_a_step, train
from tauon.types import StepInfo

__all__ = ["newest", "train_stage"]


@dataclass
class Training:
    """One attempt at training: its resolved settings and its parts."""

    ctx: Context
    extensions: list[TrainExtension]
    checkpoint: Checkpoint | None
    """The checkpoint to resume from."""
    model: ModelConfig
    loader: Loader
    plan: Plan
    mesh: Mesh
    early: tuple[int, ...] = ()
    """Steps of early training whose checkpoints are kept."""


def train_stage(ctx: Context) -> dict[str, Any]:
    """Data -> checkpoints. Resumes from the newest complete checkpoint of the run."""
    while True:
        try:
            return train_once(ctx)
        except StartAgain:
            continue


def train_once(ctx: Context) -> dict[str, Any]:
    """Resolve settings, build, restore, train. However it ends, `ended` of each extension is called."""
    _ = ctx.splits  # opening the data is collective: do it here, not inside a function that only rank 0 runs
    ctx.world.rank0_broadcast(ctx.refuse_changed_data)
    ctx.world.rank0_broadcast(ctx.refuse_changed_start)
    recorded = ctx.world.rank0_broadcast(lambda: ctx.run.manifest().get("training")) or {}
    training = resolve_settings(ctx, recorded.get("plan"))
    job, extensions = build(training), training.extensions
    with EventLog(ctx.run.events_path) if ctx.world.leads else nothing_logged() as events:
        if (checkpoint := training.checkpoint) is not None:
            ctx.world.all_or_raise(lambda: restore(job, checkpoint))
            for extension in extensions:
                extension.restored(job)
            events.log("resume", step=job.step)
            ctx.on_event("resume", step=job.step, total_steps=job.policy.total_steps)
        try:
            for extension in extensions:
                extension.before_first_step(job)
            run_job(training, job, events, recorded=bool(recorded))
        finally:
            training.loader.close()
            for extension in extensions:
                extension.ended(job)
    for extension in extensions:
        extension.finish(job)
    best = job.notes.get("best") if ctx.recipe.train.early_stopping is not None else None
    step = best["step"] if best else job.step
    final = load_checkpoint(ctx.run.checkpoints / f"step-{step:06d}", verify=False)
    ctx.run.update_manifest(checkpoint={"step": step, "hash": final.hash, "parent": final.parent})
    return {"checkpoint": final.path.name, "hash": final.hash, "steps": job.step}


# ---------------------------------------------------------------------------------------------- settings


def resolve_settings(ctx: Context, recorded: dict[str, Any] | None) -> Training:
    """Derive every setting that the recipe leaves open and report it with its reason. `recorded`: settings of the run that is resumed."""
    recipe, spec = ctx.recipe, ctx.splits.spec
    checkpoint = newest(ctx)
    extensions = train_extensions(ctx, checkpoint)
    model = ctx.model
    own = (e.mesh(model) for e in extensions)
    mesh, layout = next(filter(None, own), None) or choose_mesh(model, ctx.train, recipe.parallel, spec, ctx.world)
    refuse_cut_pairs(recipe.task, mesh.layout)
    loader = make_loader(ctx, extensions, mesh)
    config = job_config(ctx, model)
    work = next(filter(None, (e.work(loader) for e in extensions)), None) or Work(loader)
    plan = make_plan(
        config, examples=loader.count, recorded=recorded, on_note=lambda m: ctx.on_event("note", message=m), mesh=mesh, parallel=recipe.parallel,
        measure=partial(seconds_a_step, config, loader, mesh, recipe.parallel), work=work,
    )  # fmt: skip
    loader.set_total(plan.steps)
    if passes := loader.passes(plan.steps):
        names = [source["name"] for source in ctx.splits.facts["mixture"]["sources"]]
        told = ", ".join(f"{name} {n:.2f}" for name, n in zip(names, passes, strict=True))
        plan.derived.append(Derived("data.source", told, "epochs of each source in all steps"))
    plan.derived.insert(1, layout)
    early = early_steps(recipe.train.keep_early, plan.steps, loader.count / ctx.train.batch)
    if early:
        plan.derived.append(Derived("train.keep_early", ", ".join(map(str, early)), "steps before the model memorises examples"))
    for extension in extensions:
        extension.plan(plan)
    if ctx.start is not None:
        plan.derived[1:1] = [
            Derived("model", model.kind_, f"{recipe.model.from_}"),
            Derived("model.from", *started_with(ctx.start, model, ctx.splits.spec.labels)),
        ]
    derived = [d.to_json() for d in plan.derived]
    if ctx.world.leads and not ctx.detached:
        write_json(ctx.run.folder / "derived.json", derived)
    ctx.on_event("derived", settings=derived)
    return Training(ctx, extensions, checkpoint, model, loader, plan, mesh, early)


def job_config(ctx: Context, model: ModelConfig) -> JobConfig:
    """Return the job's configuration from the recipe."""
    recipe = ctx.recipe
    return JobConfig(model, recipe.optim, ctx.train, recipe.task, ctx.splits.spec, recipe.seed)


def make_loader(ctx: Context, extensions: list[TrainExtension], mesh: Mesh) -> Loader:
    """Return the loader of this process: that of an extension, or the plain one."""
    ramps = BatchSizeScheduler.of(ctx.train, ctx.splits.spec.seq_len) if ctx.train.batch_warmup is not None else None
    share: dict[str, Any] = {
        "batch": ctx.train.batch, "workers": ctx.recipe.data.workers, "rank": mesh.data_rank, "world": mesh.layout.data, "sizes": ramps,
    }  # fmt: skip
    own = (e.loader(ctx.splits.train, **share) for e in extensions)
    return next(filter(None, own), None) or Loader(ctx.splits.train, seed=ctx.recipe.seed, **share)


def build(training: Training) -> TrainJob:
    """Build the job at step 0, wrapped by the extensions."""
    ctx, recipe = training.ctx, training.ctx.recipe
    mesh = reduce(lambda mesh, extension: extension.compute_mesh(mesh), training.extensions, training.mesh)
    job = build_job(job_config(ctx, training.model), training.loader, training.plan, mesh=mesh, parallel=recipe.parallel)
    return reduce(lambda job, extension: extension.wrap(job), training.extensions, job)


# ---------------------------------------------------------------------------------------------- the loop


def run_job(training: Training, job: TrainJob, events: EventLog, *, recorded: bool) -> None:
    """Run the loop with its hooks until the end or a signal. An error is logged before it is raised."""
    ctx, plan, extensions = training.ctx, training.plan, training.extensions
    trackers = make_trackers(ctx)
    with ExitStack() as stack:
        writer = stack.enter_context(own_writer(training, events))
        stop = stack.enter_context(StopSignal(ctx.world, every=max([1, *(e.stop_every for e in extensions)])).listening())
        for extension in extensions:
            stack.enter_context(extension.running())
        checkpoints = Checkpoints(writer, checkpoint_metadata(training), partial(_checkpoint_state, extensions))
        record = TrainingRecord(ctx.recipe.train, ctx.splits, plan, Logs(events, trackers, ctx.on_event), checkpoints)
        record.begin(job)
        try:
            if job.step == 0:
                for extension in extensions:
                    extension.sanity_checks(job)
                if all(e.takes_plain_steps for e in extensions):
                    sanity_checks(ctx, job, events)
            whole_model = takes_whole_steps(training, job)
            ctx.world.all_or_raise(lambda: refuse_unread_before_training(ctx.recipe, job, whole_model=whole_model))
            first = first_step_hook(training, job.step + 1, recorded=recorded)
            hooks: list[Hook] = [lambda job, info: ctx.heartbeat.beat(info.step), first, *record.hooks()]
            loop: Callable[[], object] = partial(
                train, job, hooks=hooks, save=record.save, save_every=plan.checkpoint_every, save_at=training.early, stop=stop
            )  # fmt: skip
            back = partial(back_to_checkpoint, ctx, job, writer, record, events)
            for extension in reversed(extensions):
                extension.loop_parts(job, hooks, record.save)
                loop = partial(extension.run, loop, back)
            loop()
        except RuntimeError as err:
            failure = ctx.heartbeat.failure(err, ending=stop.name is not None)
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


def takes_whole_steps(training: Training, job: TrainJob) -> bool:
    """Whether this process can compute the loss of an example by itself."""
    layout = job.mesh.layout
    return all(e.takes_plain_steps for e in training.extensions) and layout.pipeline == layout.context == 1


def first_step_hook(training: Training, first_step: int, *, recorded: bool) -> Hook:
    """Return a hook that, after the first step, refuses unread keys (also those of a loss) and records what the folder trains."""
    ctx = training.ctx

    def begin(job: TrainJob, info: StepInfo) -> None:
        if info.step == first_step:
            ctx.world.all_or_raise(lambda: refuse_unread(ctx.recipe, "train"))
            if not recorded:
                ctx.record_training(training.plan)

    return begin


def make_trackers(ctx: Context) -> list[Tracker]:
    """Build the trackers. If one fails, there is one warning and training continues."""
    recipe, folder = ctx.recipe, ctx.run.folder
    if not ctx.world.leads:
        return []
    return [guard(t.build(folder, recipe.name, dump(recipe)), lambda m: ctx.on_event("warning", message=m)) for t in recipe.track]


def _checkpoint_state(extensions: list[TrainExtension], step: int, state: dict[str, Any]) -> dict[str, Any]:
    return reduce(lambda state, extension: extension.checkpoint_state(step, state), extensions, state)


def back_to_checkpoint(ctx: Context, job: TrainJob, writer: CheckpointWriter, record: TrainingRecord, events: EventLog, why: str) -> bool:
    """Restore the job from the newest complete checkpoint; return False if there is none."""
    writer.wait()
    checkpoint = newest(ctx)
    if checkpoint is None:
        return False
    restore(job, checkpoint)
    events.log("resume", step=job.step, reason=why)
    ctx.on_event("note", message=f"{why} Resuming from the checkpoint of step {job.step}.")
    record.begin(job)
    return True


# ---------------------------------------------------------------------------------------------- checkpoints


def newest(ctx: Context) -> Checkpoint | None:
    """Return the newest complete checkpoint. Rank 0 verifies every byte; the other ranks open the same one."""
    if ctx.detached:
        return None
    verified: list[Checkpoint | None] = [None]

    def look() -> str | None:
        verified[0] = latest_checkpoint(ctx.run.checkpoints, warn=lambda m: ctx.on_event("warning", message=m))
        return None if verified[0] is None else verified[0].path.name

    name = ctx.world.rank0_broadcast(look)
    if ctx.world.leads or name is None:
        return verified[0]
    return load_checkpoint(ctx.run.checkpoints / name, verify=False)


def own_writer(training: Training, events: EventLog) -> CheckpointWriter:
    """Return the writer of the run's checkpoints; if an extension needs it, completed checkpoints are logged."""
    ctx, config, parent = training.ctx, training.ctx.recipe.train, training.checkpoint
    logged = any(e.logs_saved for e in training.extensions)
    return checkpoint_writer(
        ctx.run.checkpoints,
        ctx.world,
        keep_last=config.keep_last,
        keep_every=config.keep_every,
        keep_steps=training.early,
        parent=parent.hash if parent else None,
        on_saved=(lambda saved: events.log("saved", step=saved.step)) if logged else None,
    )


def checkpoint_writer(folder: Path, world: World, **options: Any) -> CheckpointWriter:
    """Return a writer for one process, or for several that write together."""
    return CheckpointWriter(folder, **options) if world.size == 1 else MeshCheckpointWriter(folder, world, **options)


def checkpoint_metadata(training: Training) -> dict[str, Any]:
    """What a checkpoint holds beside weights and counters, so that the model can be used with nothing else."""
    ctx = training.ctx
    metadata = {
        "model": model_record(training.model, ctx.start),
        "task": dump(ctx.recipe.task),
        "spec": spec_record(ctx.splits.spec),
        "preprocess": ctx.splits.preprocess,
    }
    return metadata if ctx.start is None else metadata | {"base": ctx.start.reference}


def started_with(start: PretrainedModel, model: ModelConfig, labels: tuple[str, ...]) -> tuple[str, str]:
    """Return (which weights are loaded and which are not, where they come from). `labels`: names of the data's classes."""
    loaded = match_weights(model.build_on_meta(), start)
    description = loaded.describe()
    if labels and start.labels and labels != start.labels and not loaded.fresh:
        description += f"; its head was trained for the classes {', '.join(start.labels[:4])}, these are {', '.join(labels[:4])}"
    return description, f"{start.layout}, {start.fingerprint[:12]}"


def model_record(model: ModelConfig, start: PretrainedModel | None) -> dict[str, Any]:
    """Return the architecture as a checkpoint stores it. A checkpoint of adapters refers to its base; any other is complete."""
    base = str(start.path) if start is not None and model.adapt is not None else None
    adapt = None if model.adapt is None else model.adapt.model_copy(update={"from_": None})
    return dump(model.model_copy(update={"from_": base, "adapt": adapt}))


def spec_record(spec: Any) -> dict[str, Any]:
    """Return a `DataSpec` as JSON."""
    return {
        "vocab": spec.vocab,
        "seq_len": spec.seq_len,
        "input_shape": spec.input_shape,
        "outputs": spec.outputs,
        "labels": list(spec.labels),
        "categories": list(spec.categories),
        "horizon": spec.horizon,
    }
