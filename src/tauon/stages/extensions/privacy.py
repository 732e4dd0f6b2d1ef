"""Private training (`privacy:`), in this order: create the noise key, reserve budget in the ledger, draw statistics, train, write
`privacy.json`, settle the reservation, delete the key. Also: what checkpoints leave out. Recovery from a kill is in `privacy/charge.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tauon.artifacts import Checkpoint, code_fingerprint, read_json, steps_in, write_json
from tauon.config import count_as_read
from tauon.data import Loader
from tauon.distributed import reshard
from tauon.errors import PrivacyError, RecipeError, RunError
from tauon.optim import Plateau
from tauon.plan import Derived, Plan, Work
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
    give_up,
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
from tauon.privacy.trial import MadeUpRows, clipped_gradients
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
    "release_budget",
    "remember",
]


def privacy(ctx: Context, checkpoint: Checkpoint | None) -> PrivateTraining | None:
    """Return the extension if the recipe trains with privacy."""
    run, key = private_run(ctx, checkpoint)
    return None if run is None else PrivateTraining(ctx, run, key, is_finished(ctx, checkpoint))


class PrivateTraining(TrainExtension):
    """Training under differential privacy. `ended` and `finish` record the privacy spent, however the run ends."""

    logs_saved = True  # the log must show which checkpoints were released

    def __init__(self, ctx: Context, private: PrivateRun, key: Key | None, finished: bool) -> None:
        self.ctx, self.private, self.key = ctx, private, key
        self.charged = finished
        self.settled: Plan

    def loader(self, train: Dataset, **share: Any) -> Loader:
        return self.private.load(**share)

    def work(self, loader: Loader) -> Work:
        clipping, unit = self.private.config.clipping, self.private.loader.rows_per_unit
        rows = MadeUpRows(self.ctx.splits.train, self.ctx.recipe.train.batch)
        return Work(rows, clipped_gradients(clipping, unit), name=f"clipped, {clipping.kind_}", unit=unit)

    def plan(self, plan: Plan) -> None:
        self.settled = plan
        plan.derived += [Derived(*d) for d in self.private.resolve(plan.steps)]

    def wrap(self, job: TrainJob) -> TrainJob:
        count_as_read(self.private.config.clipping)  # it reads its keys itself, at each step
        audited = self.private.config.audit is not None and not self.ctx.detached
        canaries = planted(self.ctx.run.folder) if audited else None
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
        """Charge the steps that were done and delete the key. Repeated after a kill, this changes nothing."""
        if self.ctx.world.leads:
            settle(self.ctx.run, self.private.releases(job.step))
            discard_key(self.ctx.run.folder)


def release_budget(folder: Path, on_event: Callable[..., None]) -> None:
    """Settle a run that is set aside by the steps it made, and delete its keys."""
    give_up(folder, lambda message: on_event("note", message=f"privacy: {message}"))


def is_reference_model(recipe: Recipe, folder: Path) -> bool:
    """Return whether `folder` and `recipe` are those of an audit's shadow model."""
    return recipe.data.half is not None and folder.parent.name == AUDIT_FOLDER and (folder.parent.parent / "recipe.yaml").is_file()


def is_finished(ctx: Context, checkpoint: Checkpoint | None) -> bool:
    """Return whether training is finished at this checkpoint."""
    if checkpoint is None:
        return False
    notes = checkpoint.state.get("notes", {}) | read_internal(ctx.run.folder, checkpoint.step, needed=False)
    return checkpoint.step >= checkpoint.state["total_steps"] or bool(notes.get("stopped"))


def private_run(ctx: Context, checkpoint: Checkpoint | None) -> tuple[PrivateRun | None, Key | None]:
    """Return (private run, noise key). (None, None) without privacy; the key is None if the generator is seeded or training is finished."""
    config = ctx.recipe.privacy
    if config is None or not config.promises:
        return None, None
    key = None
    # Read here as well, because a finished run does not call `charge`, which reads them.
    _ = (config.ledger, config.budget and (config.budget.epsilon, config.budget.delta))
    if config.generator == "seeded":
        secret = seeded_key(ctx.recipe.seed)
        ctx.on_event("warning", message="privacy.generator is seeded: anyone who knows the seed can remove the noise. For tests only.")
    elif ctx.detached or is_finished(ctx, checkpoint):
        secret = os.urandom(32)
    else:
        key = ctx.world.rank0_first(lambda: own_key(ctx) if ctx.world.leads else read_key(ctx.run.folder))
        ctx.world.assert_same(
            "the key of the noise", key.hash[:12], "Every process must see the same run folder: use a shared file system."
        )
        secret = key.secret
    return PrivateRun(config, key=secret, train=ctx.splits.train, preprocess=ctx.splits.preprocess), key


def own_key(ctx: Context) -> Key:
    """Return the run's noise key; refuse a copy of a run. Processes never send the key: each reads the file."""
    key = run_key(ctx.run.folder, goes_on=bool(steps_in(ctx.run.checkpoints)))
    original = None if key.unused else original_of(ctx.run)
    if original is not None:
        raise RunError(
            f"{ctx.run.folder} is a copy of {original}, with its key: two runs would have the same noise. Resume the original, or start over "
            "here with --fresh."
        )
    return key


def charge(ctx: Context, private: PrivateRun, key: Key | None, plan: Plan, start: int) -> bool:
    """Bind the key to this training and reserve its privacy budget before the first step. `PrivacyError` if that exceeds the budget.

    Returns False if the key belonged to another training without any steps: the key was deleted, and the stage must restart with a new one.
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

    budget = ctx.world.rank0_broadcast(bound_and_reserved)
    if budget is not None:
        ctx.on_event("note", message=f"privacy budget: {budget}")
    return budget is not None


def reserved(ctx: Context, private: PrivateRun, key: Key | None, plan: Plan, training: str) -> str:
    """Reserve the run's releases and return a sentence about the budget. If refused, a new key is deleted."""
    if is_reference_model(ctx.recipe, ctx.run.folder):
        return "none: a shadow model of an audit is not charged; like the data itself, it must not be shared"
    folder, unused = ctx.run.folder, key is not None and key.unused
    owner = Owner(SEEDED if key is None else key.hash, training, os.path.realpath(folder), unused=unused)
    try:
        return reserve(
            ctx.run, private.config, ctx.data.source, private.releases(plan.steps, done=0), examples=private.units, unit=private.unit,
            owner=owner, on_note=lambda note: ctx.on_event("note", message=f"privacy budget: {note}"),
        )  # fmt: skip
    except (PrivacyError, RecipeError):
        if unused:
            discard_key(folder)
        raise


def training_of(ctx: Context, private: PrivateRun, plan: Plan) -> tuple[str, str]:
    """Return (hash of everything that determines the steps mathematically, hash of what affects rounding: layout, precision, versions)."""
    base = None if ctx.start is None else ctx.start.fingerprint
    releases = [r.to_json() for r in private.releases(plan.steps, done=0)]
    what: list[Any] = [ctx.recipe_fingerprint("train"), ctx.prepared, base, plan.steps, releases]
    how: list[Any] = [plan.record(), code_fingerprint(), torch.__version__]
    training, way = (hashlib.sha256(json.dumps(x, sort_keys=True).encode()).hexdigest() for x in (what, how))
    return training, way


def refuse_second_use(ctx: Context, key: Key, training: str, how: str, start: int) -> None:
    """Raise `RunError` if the key was used for another training, or if saved steps would be recomputed with other rounding.

    The same noise on two different sums would reveal their difference exactly.
    """
    folder = ctx.run.folder
    begun = ctx.run.manifest().get("training") is not None
    if key.training not in (None, training) or (key.training is None and not key.unused and not begun and steps_done(folder) != 0):
        raise RunError(
            f"{folder / 'privacy.key'} was used for another training (recipe, data, steps or noise): using the same noise twice would reveal "
            "the difference. Restore the recipe and the checkpoints; or start with a new key: --fresh, or another name (name=...)."
        )
    if key.unused:
        return
    saved = [int(e["step"]) for e in read_events(ctx.run.events_path) if e["kind"] == "saved"]  # complete, on disk
    reached = max(saved, default=0)
    if key.ways(start, reached) - {how}:
        raise RunError(
            f"{folder}: the checkpoints of steps {start + 1} to {reached} are missing, and these steps would be recomputed differently (processes, "
            "precision, threads, device, or the version of Tauon or torch): with the same noise, that reveals how the sums differ. Restore the "
            "checkpoints, use the same settings as before, or start over with --fresh."
        )


def draw_statistics(ctx: Context, private: PrivateRun) -> None:
    """Draw noisy means and standard deviations, after their budget was reserved, unless the run has drawn them before."""
    splits = ctx.splits
    if private.config.statistics is None or splits.preprocess["normalize"]["kind"] != "bounds":
        return
    record = ctx.world.rank0_broadcast(lambda: private.draw_statistics(ctx.run.folder, splits))
    ctx.splits = apply_statistics(splits, record)
    ctx.world.assert_same("the statistics", ctx.splits.fingerprint[:12], "Start over with --fresh.")
    ctx.on_event("note", message="privacy: noisy means and standard deviations of the columns were drawn (statistics.json)")


def write_account(ctx: Context, private: PrivateRun, job: TrainJob) -> None:
    """Write `privacy.json`: the guarantee for the steps that were done. A run that failed before its first step has spent nothing."""
    if not job.step and not steps_done(ctx.run.folder):
        discard_statistics(ctx.run.folder)
        settle(ctx.run, [])
        _without_promise(ctx)
    elif job.step:
        record, path = private.record(job.step), ctx.run.folder / "privacy.json"
        before = read_json(path) if path.exists() else {}
        if "cost" in before and before["guarantee"] == record["guarantee"]:
            record |= {"cost": before["cost"]}  # a finished run that is run again
        write_json(path, record)
        promise = {k: record["guarantee"][k] for k in PROMISE}
        ctx.run.update_manifest(privacy=(ctx.run.manifest().get("privacy") or {}) | promise)


def _without_promise(ctx: Context) -> None:
    """Remove what a run without a single step cannot promise, from its folder and its manifest."""
    (ctx.run.folder / "privacy.json").unlink(missing_ok=True)
    recorded = ctx.run.manifest().get("privacy") or {}
    if "epsilon" in recorded:
        ctx.run.update_manifest(privacy={k: v for k, v in recorded.items() if k not in PROMISE})
    ctx.on_event("note", message="privacy: no step was made, so no epsilon was spent, and none is promised")


PROMISE = ("epsilon", "delta", "unit", "neighbouring", "accountant")
"""What the manifest records of a guarantee."""


def publish(ctx: Context, step: int, state: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the state that may be in a private run's checkpoint; the rest stays in the run's folder, for a resume."""
    public, internal = split(state)
    if ctx.world.leads:
        write_internal(ctx.run.folder, step, internal, checkpoints=ctx.run.checkpoints)
    return public


def remember(ctx: Context, job: TrainJob) -> None:
    """Restore the state that a private run's checkpoint does not hold."""
    needed = ctx.recipe.train.early_stopping is not None or isinstance(job.policy.schedule, Plateau)
    job.notes = read_internal(ctx.run.folder, job.step, needed=needed and PLATEAU not in job.notes and "best" not in job.notes) | job.notes
