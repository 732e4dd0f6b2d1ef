"""Knowledge distillation (`distil:`): opens the teacher, refuses one that reads the data otherwise, and records which it was."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from tauon.artifacts import Checkpoint, find_checkpoint, run_of_compressed
from tauon.compress.training import DistilConfig, distilled
from tauon.data import DataSplits, has_tokenizer, tokenizer_of
from tauon.errors import CheckpointError, Problem, RecipeError, RunError
from tauon.models import Model, PretrainedModel, materialize, open_model_folder, parameter_count
from tauon.models.attention import set_attention
from tauon.plan import Derived, Plan
from tauon.recipe import differences
from tauon.stages.extensions.base import TrainExtension
from tauon.train import TrainJob, apply_checkpointing_and_compile

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["Distillation", "distillation", "open_teacher", "refuse_another_preparation"]


def distillation(ctx: Context, checkpoint: Checkpoint | None) -> Distillation | None:
    """Return the extension if the recipe has `distil` and training is not finished: a finished run does not need its teacher."""
    config = ctx.recipe.distil
    if config is None:
        return None
    for name in type(config).model_fields:  # a finished run does not use them
        getattr(config, name)
    if checkpoint is not None and (checkpoint.step >= checkpoint.state["total_steps"] or checkpoint.state["notes"].get("stopped")):
        return None
    return Distillation(ctx, config)


class Distillation(TrainExtension):
    """Trains against a teacher as well."""

    def __init__(self, ctx: Context, config: DistilConfig) -> None:
        self.ctx, self.config = ctx, config
        self.settled: Plan

    @cached_property
    def teacher(self) -> PretrainedModel:
        """The teacher on disk."""
        teacher = open_teacher(self.config.teacher)
        refuse_another_preparation(teacher, self.ctx.splits)
        before = None if self.ctx.detached else self.ctx.run.manifest().get("teacher")
        if before is not None and before["fingerprint"] != teacher.fingerprint:
            raise RunError(
                f"{self.ctx.run.folder}: the teacher {self.config.teacher} changed since this run began. Restore it, start over with --fresh, or "
                "give the run another name (name=...)."
            )
        return teacher

    def plan(self, plan: Plan) -> None:
        self.settled = plan
        size = parameter_count(self.teacher.config.build_on_meta())
        plan.derived.append(Derived("distil.teacher", self.teacher.config.kind_, f"{size:,} parameters, {self.teacher.fingerprint[:12]}"))

    def wrap(self, job: TrainJob) -> TrainJob:
        config = self.config
        return distilled(
            job, self._model(job), temperature=config.temperature, weight=config.weight, features=config.features,
            feature_weight=config.feature_weight,
        )  # fmt: skip

    def _model(self, job: TrainJob) -> Model:
        def transform(bare: Model) -> None:
            set_attention(bare, self.settled.attention)
            apply_checkpointing_and_compile(bare, checkpointing=False, compiled=self.settled.compile)

        config = self.teacher.config.model_copy(update={"from_": None, "adapt": None})
        return materialize(config, seed=0, device=job.policy.device, transform=transform, weights=self.teacher.tensors)

    def before_first_step(self, job: TrainJob) -> None:
        if self.ctx.world.leads and not self.ctx.detached:
            self.ctx.run.update_manifest(teacher=self.teacher.reference)

    def checkpoint_state(self, step: int, state: dict[str, Any]) -> dict[str, Any]:
        return state | {"teacher": self.teacher.reference}


def open_teacher(ref: str) -> PretrainedModel:
    """Open a trained model. Raises `CheckpointError` if it does not exist or cannot be read."""
    try:
        return open_model_folder(ref)
    except CheckpointError as err:
        raise CheckpointError(str(err).replace("model.from", "distil.teacher")) from err


def refuse_another_preparation(teacher: PretrainedModel, splits: DataSplits) -> None:
    """Raise `RecipeError` that names what differs if the teacher would read other inputs, or answer with other outputs, than the student."""
    wrong: list[str] = []
    if splits.tokenizer is not None:
        theirs = tokenizer_of(teacher.path) if has_tokenizer(teacher.path) else None
        if theirs is None:
            wrong.append("it includes no tokenizer")
        elif theirs.sha256 != splits.tokenizer.sha256:
            wrong.append(
                f"tokenizer: {theirs.vocab_size:,} ids {theirs.sha256[:8]}, not {splits.tokenizer.vocab_size:,} ids {splits.tokenizer.sha256[:8]}"
            )
    longest = getattr(teacher.config, "seq_len", None)
    if longest is not None and splits.spec.seq_len is not None and longest < splits.spec.seq_len:
        wrong.append(f"its longest sequence is {longest} tokens, not {splits.spec.seq_len}")
    run = run_of_compressed(teacher.path)
    if teacher.layout == "tauon" or run != teacher.path:
        prepared = find_checkpoint(run).state.get("preprocess") or {}
        both = prepared.keys() & splits.preprocess.keys() - {"tokenizer", "augment"}
        wrong += [d[:120] for k in sorted(both) for d in differences(prepared[k], splits.preprocess[k], k)]
    if teacher.labels and splits.spec.labels and teacher.labels != splits.spec.labels:
        wrong.append(f"classes: {', '.join(teacher.labels[:6])}, not {', '.join(splits.spec.labels[:6])}")
    if wrong:
        message = (
            f"{teacher.path} was trained on other inputs or outputs than this run's: {'; '.join(wrong[:4])}. Use the same data settings."
        )
        raise RecipeError([Problem("distil.teacher", message)])
