"""Private training (`privacy:`), in this order: the run's key, what the run may tell reserved in the ledger, statistics drawn, the account
written, settled, the key thrown away; and what its checkpoints leave out. What a kill in between leaves is in `privacy/charge.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tauon.artifacts import Checkpoint, code_fingerprint, read_json, steps_in, write_json
from tauon.config import count_as_read
from tauon.data import Loader
from tauon.distributed import reshard
from tauon.errors import PrivacyError, RecipeError, RunError
from tauon.optim import Plateau
from tauon.plan import Derived, Plan
from tauon.privacy import (
    SEEDED,
    Key,
    Owner,
    PrivateRun,
    apply_statistics,
    bind_key,
    check_independent,
    discard_key,
    discard_statistics,
    original_of,
    read_internal,
    read_key,
    reserve,
    run_key,
    seeded_key,
    settle,
    split,
    steps_done,
    write_internal,
)
from tauon.recipe import Recipe
from tauon.stages.extensions.base import StartAgain, TrainExtension
from tauon.stages.extensions.canaries import FOLDER as AUDIT_FOLDER
from tauon.stages.extensions.canaries import planted
from tauon.tracking import read_events
from tauon.train import PLATEAU, TrainJob
from tauon.types import Dataset

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = [
    "PrivateTraining",
    "charge",
    "draw_statistics",
    "is_finished",
    "is_reference_model",
    "privacy",
    "private_run",
    "publish",
    "remember",
]


def privacy(ctx: Context, checkpoint: Checkpoint | None) -> PrivateTraining | None:
    """Where the recipe promises privacy."""
    run, key = private_run(ctx, checkpoint)
    return None if run is None else PrivateTraining(ctx, run, key, is_finished(ctx, checkpoint))


class PrivateTraining(TrainExtension):
    """Training under differential privacy. `ended` and `finish` write what was told of the data, whatever ended the run."""

    logs_saved = True  # what was released must be known

    def __init__(self, ctx: Context, private: PrivateRun, key: Key | None, finished: bool) -> None:
        self.ctx, self.private, self.key = ctx, private, key
        self.charged = finished
        self.settled: Plan

    def loader(self, train: Dataset, **share: Any) -> Loader:
        return self.private.load(**share)

    def plan(self, plan: Plan) -> None:
        self.settled = plan
        plan.derived += [Derived(*d) for d in self.private.resolve(plan.steps)]

    def wrap(self, job: TrainJob) -> TrainJob:
        count_as_read(self.private.config.clipping)  # it reads its keys itself, at each step
        canaries = planted(self.ctx.run.folder) if self.private.config.audit is not None else None
        return self.private.make_private(job, self.ctx.splits.validation, canaries=canaries)

    def restored(self, job: TrainJob) -> None:
        self.ctx.world.all_or_raise(lambda: remember(self.ctx, job))

    def before_first_step(self, job: TrainJob) -> None:
        if not self.charged and not charge(self.ctx, self.private, self.key, self.settled, job.step):
            raise StartAgain  # with a new key
        self.charged = True
        draw_statistics(self.ctx, self.private)

    def sanity_checks(self, job: TrainJob) -> None:
        check_independent(job.model, job.task, job.loader.batch_at(0).to(job.policy.device))
        reshard(job.model)

    def checkpoint_state(self, step: int, state: dict[str, Any]) -> dict[str, Any]:
        return publish(self.ctx, step, state)

    def ended(self, job: TrainJob) -> None:
        if self.charged and self.ctx.world.leads:
            write_account(self.ctx, self.private, job)

    def finish(self, job: TrainJob) -> None:
        """Settled by what the steps told, and the key thrown away. Done again after a kill, it is nothing."""
        if self.ctx.world.leads:
            settle(self.ctx.run, self.private.releases(job.step))
            discard_key(self.ctx.run.folder)


def is_reference_model(recipe: Recipe, folder: Path) -> bool:
    """Whether `folder` is where an audit trains a reference model, and `recipe` that of one."""
    return recipe.data.half is not None and folder.parent.name == AUDIT_FOLDER and (folder.parent.parent / "recipe.yaml").is_file()


def is_finished(ctx: Context, checkpoint: Checkpoint | None) -> bool:
    """Whether no step is left to make after this checkpoint."""
    if checkpoint is None:
        return False
    notes = checkpoint.state.get("notes", {}) | read_internal(ctx.run.folder, checkpoint.step, needed=False)
    return checkpoint.step >= checkpoint.state["total_steps"] or bool(notes.get("stopped"))


def private_run(ctx: Context, checkpoint: Checkpoint | None) -> tuple[PrivateRun | None, Key | None]:
    """(what the recipe's `privacy` section asks for, with the run's key; its secret key). (None, None) where nothing is private; no secret key
    where anybody can make it, and where nothing is drawn any more, as the last step is there.
    """
    config = ctx.recipe.privacy
    if config is None or not config.promises:
        return None, None
    key = None
    _ = (
        config.ledger,
        config.budget and (config.budget.epsilon, config.budget.delta),
    )  # read by `charge`, to which a finished run does not come
    if config.generator == "seeded":
        secret = seeded_key(ctx.recipe.seed)
        ctx.on_event("warning", message="privacy.generator is seeded: whoever knows the seed can take the noise off again. For tests only.")
    elif is_finished(ctx, checkpoint):
        secret = os.urandom(32)
    else:
        key = ctx.world.rank0_first(lambda: own_key(ctx) if ctx.world.leads else read_key(ctx.run.folder))
        ctx.world.assert_same(
            "the key of the noise", key.hash[:12], "Every process must see the same run folder: put it on a shared file system."
        )
        secret = key.secret
    return PrivateRun(config, key=secret, train=ctx.splits.train, preprocess=ctx.splits.preprocess), key


def own_key(ctx: Context) -> Key:
    """The run's key; a copy of a run does not draw from the original's. No process tells it to another: they read the file."""
    key = run_key(ctx.run.folder, goes_on=bool(steps_in(ctx.run.checkpoints)))
    original = None if key.unused else original_of(ctx.run)
    if original is not None:
        raise RunError(
            f"{ctx.run.folder} is a copy of {original}, key included: two runs would have the same noise. Go on with the original; or start over "
            "here with --fresh."
        )
    return key


def charge(ctx: Context, private: PrivateRun, key: Key | None, plan: Plan, start: int) -> bool:
    """Bind the key to this training, and reserve what the run may tell, before it tells anything. Over budget: refused. False where the key was
    for something else of which nothing is left: it was thrown away, and the stage is to begin again with a new one.
    """
    training, how = training_of(ctx, private, plan)

    def bound_and_reserved() -> str | None:
        bound = key
        if key is not None:
            if key.training not in (None, training) and steps_done(ctx.run.folder) == 0:
                discard_key(ctx.run.folder)
                return None
            refuse_second_use(ctx, key, training, how, start)
            bound = bind_key(ctx.run.folder, key, training, how, start)
        return reserved(ctx, private, bound, plan, training)

    said = ctx.world.rank0_broadcast(bound_and_reserved)
    if said is not None:
        ctx.on_event("note", message=f"privacy budget: {said}")
    return said is not None


def reserved(ctx: Context, private: PrivateRun, key: Key | None, plan: Plan, training: str) -> str:
    """How the data set stands, once the run's releases are reserved. A new key of a run that is refused goes."""
    if is_reference_model(ctx.recipe, ctx.run.folder):
        return "none: a reference model of an audit is charged nothing, and like the data it must not be given away"
    folder, unused = ctx.run.folder, key is not None and key.unused
    owner = Owner(SEEDED if key is None else key.hash, training, os.path.realpath(folder), unused=unused)
    try:
        return reserve(
            ctx.run, private.config, ctx.data.source, private.releases(plan.steps, done=0), examples=private.units, unit=private.unit,
            owner=owner, on_note=lambda said: ctx.on_event("note", message=f"privacy budget: {said}"),
        )  # fmt: skip
    except (PrivacyError, RecipeError):
        if unused:
            discard_key(folder)
        raise


def training_of(ctx: Context, private: PrivateRun, plan: Plan) -> tuple[str, str]:
    """(what stands for all that decides which numbers the steps are, what stands for how they are rounded: layout, precision, versions)."""
    base = None if ctx.start is None else ctx.start.fingerprint
    releases = [r.to_json() for r in private.releases(plan.steps, done=0)]
    what: list[Any] = [ctx.recipe_fingerprint("train"), ctx.prepared, base, plan.steps, releases]
    how: list[Any] = [plan.record(), code_fingerprint(), torch.__version__]
    training, way = (hashlib.sha256(json.dumps(x, sort_keys=True).encode()).hexdigest() for x in (what, how))
    return training, way


def refuse_second_use(ctx: Context, key: Key, training: str, how: str, start: int) -> None:
    """`RunError` where the key was used for another training, or where steps that a checkpoint held would be computed again in another way:
    the same noise on sums that differ shows the difference, exactly.
    """
    folder = ctx.run.folder
    begun = ctx.run.manifest().get("training") is not None
    if key.training not in (None, training) or (key.training is None and not key.unused and not begun and steps_done(folder) != 0):
        raise RunError(
            f"{folder / 'privacy.key'} was used for another training (recipe, data, steps or noise): the same noise twice would show the "
            "difference. Put the recipe and the checkpoints back; or start over with --fresh, or another name (name=...), with a new key."
        )
    if key.unused:
        return
    saved = [int(e["step"]) for e in read_events(ctx.run.events_path) if e["kind"] == "saved"]  # whole, on disk
    reached = max(saved, default=0)
    if key.ways(start, reached) - {how}:
        raise RunError(
            f"{folder}: steps {start + 1} to {reached} were in checkpoints that are gone, and would be computed again in another way (processes, "
            "precision, threads, device, or the version of Tauon or torch): with the same noise, that shows how the sums differ. Restore the "
            "checkpoints, train as before, or start over with --fresh."
        )


def draw_statistics(ctx: Context, private: PrivateRun) -> None:
    """Means and deviations with noise, now that they are reserved, unless an earlier part of this run has drawn them."""
    splits = ctx.splits
    if private.config.statistics is None or splits.preprocess["normalize"]["kind"] != "bounds":
        return
    record = ctx.world.rank0_broadcast(lambda: private.draw_statistics(ctx.run.folder, splits))
    ctx.splits = apply_statistics(splits, record)
    ctx.world.assert_same("the statistics", ctx.splits.fingerprint[:12], "PretrainedModel over with --fresh.")
    ctx.on_event("note", message="privacy: means and deviations of the columns were drawn, with noise (statistics.json)")


def write_account(ctx: Context, private: PrivateRun, job: TrainJob) -> None:
    """`privacy.json`: what the steps that were done promise, whatever ended them. A run that failed before its first has told nothing."""
    if not job.step and not steps_done(ctx.run.folder):
        discard_statistics(ctx.run.folder)
        settle(ctx.run, [])
    elif job.step:
        record, path = private.record(job.step), ctx.run.folder / "privacy.json"
        before = read_json(path) if path.exists() else {}
        if "cost" in before and before["guarantee"] == record["guarantee"]:
            record |= {"cost": before["cost"]}  # of a finished run that comes here again
        write_json(path, record)
        promise = {k: record["guarantee"][k] for k in ("epsilon", "delta", "unit", "neighbouring", "accountant")}
        ctx.run.update_manifest(privacy=(ctx.run.manifest().get("privacy") or {}) | promise)


def publish(ctx: Context, step: int, state: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint of a private run may hold of its state; the rest is kept in the run's folder, for a resume."""
    public, internal = split(state)
    if ctx.world.leads:
        write_internal(ctx.run.folder, step, internal, checkpoints=ctx.run.checkpoints)
    return public


def remember(ctx: Context, job: TrainJob) -> None:
    """Put back what the checkpoint of a private run does not hold."""
    needed = ctx.recipe.train.early_stopping is not None or isinstance(job.policy.schedule, Plateau)
    job.notes = read_internal(ctx.run.folder, job.step, needed=needed and PLATEAU not in job.notes and "best" not in job.notes) | job.notes
