"""What the stages of one run share: its data, its model, what it was started from, and whether a stage is done.

Everything here is worked out once and kept. What disagrees (targets, tokenizers, data that changed under the run) is refused here, before
anything is trained. The stages themselves are in `pipeline.py` and `training.py`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tauon.answers import attach_reference
from tauon.artifacts import (
    Checkpoint,
    Run,
    code_fingerprint,
    latest_checkpoint,
    load_checkpoint,
)
from tauon.auditing import plant
from tauon.config import dump, parse, unread_keys
from tauon.data import (
    DataConfig,
    DataSplits,
    DataStamp,
    FromModelConfig,
    TokenDataset,
    TokenizerConfig,
    has_tokenizer,
    prepare,
    tokenizer_of,
)
from tauon.distributed import Heartbeat, World
from tauon.errors import CheckpointError, DataError, Problem, RecipeError, RunError
from tauon.models import (
    ModelConfig,
    PretrainedModel,
    adapt_like,
    is_checkpoint,
    open_pretrained,
    refuse_codes,
    resolved,
)
from tauon.plan import Plan
from tauon.privacy import announced, apply_statistics, fits_nothing, read_statistics
from tauon.recipe import FREE, SECTIONS, Recipe, StageName, differences, fingerprint
from tauon.tasks import Task
from tauon.train import TrainConfig

__all__ = ["Context", "Tell", "quiet"]

_WAYS_OUT = "Restore it, start over with --fresh, or give another name (name=...)."

Tell = Callable[..., None]
"""`tell(kind, **facts)`: what a person or a script wants to know while a run goes on."""


def quiet(kind: str, /, **facts: Any) -> None:
    """Tells nobody."""


@dataclass
class Context:
    """What the stages of one run share."""

    recipe: Recipe
    run: Run
    tell: Tell
    world: World = field(default_factory=World)
    heart: Heartbeat = field(default_factory=lambda: Heartbeat(World()))
    prepared: str = ""
    """Fingerprint of the splits as they were prepared, before private statistics scaled them."""

    def is_done(self, stage: StageName) -> bool:
        """Whether the stage was done before, from the same inputs. `RunError` where its data or its base changed under a training."""
        done = self.run.stage(stage)
        if done is None or done["fingerprint"] != self.fingerprint(stage):
            return False
        if stage == "train":
            self.refuse_changed_base()
        return stage == "report" or not self.data_changed  # a report is made of records

    @cached_property
    def data_changed(self) -> bool:
        """Whether the data's files are others than those that this run prepared: told, and refused where it was trained with them."""
        manifest = self.run.manifest()
        record = manifest.get("data") or {}
        if "files" not in record:
            return False  # prepared by a version that did not look
        before = DataStamp.from_json(record["files"])
        try:
            now = DataStamp.of(self.recipe.data, before)
        except DataError as err:
            self.tell("warning", message=f"what was done is taken as done, though its data cannot be looked at: {err}")
            return False
        if now.content == before.content:
            if now.stat != before.stat:  # copied or touched: not to be read again the next time
                self.run.update_manifest(data=record | {"files": now.to_json()})
            return False
        said = f"{before} then, {now} now" if str(before) != str(now) else f"{now}, with other content"
        if manifest.get("training") is not None:
            raise RunError(f"{self.run.folder}: the data changed since this run began ({said}). {_WAYS_OUT}")
        self.tell("note", message=f"the data changed since it was prepared ({said}): it is prepared again")
        return True

    @cached_property
    def splits(self) -> DataSplits:
        """The data. With several processes, rank 0 prepares it first, and what each of them then has must be the same."""
        if self.world.size == 1:
            return self._with_statistics(self._prepared())
        splits = self.world.rank0_first(self._prepared)
        self.world.assert_same(
            "the data", splits.fingerprint[:12], "Every rank must see the same files: copy them, or share a file system."
        )
        return self._with_statistics(splits)

    def _with_statistics(self, splits: DataSplits) -> DataSplits:
        """Scaled by the run's private statistics, once training has drawn them."""
        self.prepared = splits.fingerprint
        config = None if self.recipe.privacy is None else self.recipe.privacy.statistics
        if config is None:
            return splits

        def drawn() -> dict[str, Any] | None:
            return read_statistics(self.run.folder, splits, config, needed=self.run.manifest().get("training") is not None)

        record = self.world.rank0_broadcast(drawn)
        return splits if record is None else apply_statistics(splits, record)

    @cached_property
    def start(self) -> PretrainedModel | None:
        """The trained model that `model.from` names, opened."""
        return open_pretrained(self.recipe.model)

    @cached_property
    def data(self) -> DataConfig:
        """The recipe's `data`; with the tokenizer of the model that training starts from, where the recipe leaves it open."""
        return self.recipe.data if self.start is None else with_tokenizer_of(self.start, self.recipe)

    @cached_property
    def model(self) -> ModelConfig:
        """The architecture, every size filled in, and the adapters."""
        return self._model_for(self.splits)

    def _model_for(self, splits: DataSplits) -> ModelConfig:
        recipe = self.recipe
        found = resolved(recipe.model, splits.spec)
        return found if recipe.adapt is None else found.model_copy(update={"adapt": adapt_like(recipe.adapt, found)})

    @property
    def train(self) -> TrainConfig:
        """The recipe's, with the batch that its optimizer takes."""
        config = self.recipe.train
        return config.model_copy(update={"batch": len(self.splits.train)}) if self.recipe.optim.full_batch else config

    def _prepared(self) -> DataSplits:
        def progress(what: str, done: int, total: int | None) -> None:
            self.tell("progress", what=what, done=done, total=total)

        refuse_another_task(self.start, self.recipe.task)
        noisy = self.recipe.privacy is not None and self.recipe.privacy.statistics is not None
        data = fits_nothing(self.data) if noisy else self.data
        task = self.recipe.task
        splits = prepare(data, seed=self.recipe.seed, needs=task.needs, scale_targets=task.scales_targets, progress=progress)
        if noisy:
            splits.facts = announced(splits.facts)
        refuse_another_tokenizer(self.start, splits)
        refuse_codes(self.recipe.model, splits.spec)
        splits.spec = self.recipe.task.shape(splits.spec)
        wrong = [Problem(key, message) for key, message in self.recipe.task.fits(splits.spec)]
        wrong += targets_that_do_not_fit(self.recipe.task, splits)
        if wrong:
            raise RecipeError(wrong)
        if self.recipe.task.needs == "pairs":
            attach_reference(self.recipe, self.data, self._model_for(splits), self.start, splits)
        for part in (splits.train, splits.validation, splits.test):
            tokens = getattr(part, "tokens", part)  # a masked data set is one over tokens
            if isinstance(tokens, TokenDataset):
                tokens.shards.verify()  # what lies in the cache may be old: a changed byte must not be trained on
        audit = None if self.recipe.privacy is None else self.recipe.privacy.audit
        return splits if audit is None else plant(splits, audit, self.run.folder)

    def refuse_changed_data(self) -> None:
        """Going on, or measuring, with other data than the run began with would tell nothing: `RunError`."""
        manifest = self.run.manifest()
        started = manifest.get("training")
        if started is None or started.get("data") == self.splits.fingerprint:
            return
        said = "the data changed since this run began"
        if started.get("code") != code_fingerprint():
            said += ", or this version of Tauon, which did not begin it, makes other examples of the same files (see CHANGELOG)"
        raise RunError(f"{self.run.folder}: {said}. {_WAYS_OUT}")

    def refuse_changed_start(self) -> None:
        """Going on from another model than the run began with would tell nothing: `RunError`."""
        started = self.run.manifest().get("training")
        if started is None or self.start is None or started.get("base") in (None, self.start.reference["fingerprint"]):
            return
        raise RunError(f"{self.run.folder}: {self.recipe.model.from_} changed since this run began. {_WAYS_OUT}")

    def refuse_changed_base(self) -> None:
        """The same for what is done: a run or checkpoint of Tauon says quickly what it is. One that is gone is no longer needed."""
        if self.recipe.model.from_ is None or not is_checkpoint(self.recipe.model.from_):
            return
        try:
            self.refuse_changed_start()
        except CheckpointError as err:
            self.tell("warning", message=f"what was done is taken as done, though its base cannot be looked at: {err}")

    def fingerprint(self, stage: str) -> str:
        """Of all that the stage's result depends on."""
        earlier = [self.recipe_fingerprint(s) for s in SECTIONS if list(SECTIONS).index(s) < list(SECTIONS).index(stage)]
        found = (
            []
            if stage in ("prepare", "train")
            else [str((self.run.stage(s) or {}).get("time")) for s in ("train", "evaluate") if s != stage]
        )
        return fingerprint(self.recipe, SECTIONS[stage], *earlier, *found, spelled=self._spelled)

    def recipe_fingerprint(self, stage: str) -> str:
        return fingerprint(self.recipe, [s for s in SECTIONS[stage] if s not in FREE], spelled=self._spelled)

    @cached_property
    def _spelled(self) -> dict[str, Any]:
        """The recipe as plain data; sections that say what the run began with, as it wrote them then: an earlier version did not know keys that
        came later, and where they have their default, nothing changed.
        """
        whole = dump(self.recipe)
        began = (self.run.manifest().get("training") or {}).get("sections", {})
        try:
            today = dump(parse(Recipe, whole | began)) if began else whole
        except RecipeError:  # a key that is gone
            return whole
        return whole | {s: tree for s, tree in began.items() if today.get(s) == whole.get(s)}

    def record_training(self, plan: Plan) -> None:
        """Remember what this folder trains, and every choice that a resume must make the same way."""
        sections = {s: dump(self.recipe)[s] for s in SECTIONS["train"] if s not in FREE}
        fingerprint = self.recipe_fingerprint("train")
        base = {} if self.start is None else {"base": self.start.fingerprint}
        base |= {"code": code_fingerprint()}
        self.run.update_manifest(
            training={"fingerprint": fingerprint, "sections": sections, "data": self.splits.fingerprint, "plan": plan.record()} | base
        )

    def refuse_another_recipe(self) -> None:
        """A folder that holds the training of another recipe is not overwritten: `RunError` lists what differs."""
        split = self.recipe.data.split
        if (self.run.folder / "fold-0").is_dir() and (split.peek("folds") is None or split.peek("fold") is not None):
            raise RunError(
                f"{self.run.folder} holds the folds of a cross-validation (data.split.folds). Give this run another name (name=...), "
                "or --fresh to set the old one aside."
            )
        started = self.run.manifest().get("training")
        if started is None or started["fingerprint"] == self.recipe_fingerprint("train"):
            return
        now = dump(self.recipe)
        diff = differences(as_read_today(started["sections"], now), {s: now[s] for s in started["sections"]})
        seed = self.run.manifest().get("seed", self.recipe.seed)
        diff += [f"seed: {seed} -> {self.recipe.seed}"] if seed != self.recipe.seed else []
        if not diff:
            return
        raise RunError(
            f"{self.run.folder} holds the training of another recipe ({'; '.join(diff[:6])}). Give this one another name (name=...), "
            "or --fresh to set the old run aside."
        )

    def refuse_unread(self, stage: str, later: Sequence[str] = ()) -> None:
        """A key that somebody set and nothing read is an error, not a silent ignore. `later` stages may still read theirs."""
        sections = {*SECTIONS[stage]} - {"track"} - {section for s in later for section in SECTIONS[s]}
        keys = [k for k in unread_keys(self.recipe) if k.split(".")[0] in sections]
        if keys:
            raise RecipeError(
                [Problem(k, f"was set, and nothing in stage {stage} read it. Remove it: it has no effect here.") for k in keys]
            )

    @property
    def final_checkpoint(self) -> Checkpoint:
        """What training left: the best where it stopped early, the last otherwise; of a run that is not finished, the newest."""
        done = self.run.stage("train")
        if done is not None:
            return load_checkpoint(self.run.checkpoints / done["checkpoint"])
        newest = latest_checkpoint(self.run.checkpoints, warn=lambda m: self.tell("warning", message=m))
        if newest is None:
            raise RunError(f"{self.run.folder} has no checkpoint yet. First: tauon train {shlex.quote(str(self.run.folder))}")
        return newest


def as_read_today(sections: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Recorded sections of a recipe with the keys that came since, at their defaults: a new key does not make an old run another one."""
    try:
        today = dump(parse(Recipe, now | sections))
    except RecipeError:
        return sections
    return {s: today[s] for s in sections}


def targets_that_do_not_fit(task: Task, splits: DataSplits) -> list[Problem]:
    """Numbers where the task needs classes, or the other way round."""
    targets = splits.preprocess.get("targets")
    if task.family == "multi-label":
        return _labels_that_do_not_fit(splits, targets)
    if task.family == "ordinal":
        if targets == "values":
            return [Problem("task", "ordinal needs classes in an order, and the targets are numbers. Take regression, or target=class.")]
        if "label_order" not in splits.facts and any(not name.lstrip("-").isdigit() for name in splits.spec.labels):
            names = ", ".join(splits.spec.labels[:8])
            return [
                Problem("data.label_order", f"is not set, and names do not say which class is lowest: {names}. List them, lowest first.")
            ]
    if task.family == "classification" and targets == "values":
        return [Problem("task", "classification needs classes, and the targets are numbers. Take regression, or data.source.target=class.")]
    if task.family in ("regression", "quantile-regression") and targets == "classes":
        what = f"the targets are {len(splits.spec.labels)} classes"
        return [Problem("task", f"{task.kind_} needs numbers, and {what}. Take classification, or data.source.target=value.")]
    return []


def with_tokenizer_of(start: PretrainedModel, recipe: Recipe) -> DataConfig:
    """The recipe's `data` with the tokenizer of the trained model, where the recipe names none."""
    data = recipe.data
    asked: TokenizerConfig = data.peek("tokenizer")
    if recipe.task.needs in ("arrays", "series", "signals"):
        return data
    if not isinstance(asked, FromModelConfig):
        if "tokenizer" in data.model_fields_set or not has_tokenizer(start.path):
            return data
        asked = FromModelConfig()
    if asked.path is not None:
        return data
    return data.model_copy(update={"tokenizer": asked.model_copy(update={"path": str(start.path)})})


def refuse_another_task(start: PretrainedModel | None, task: Task) -> None:
    """A model that cannot learn what the recipe asks for is a `RecipeError`, before any data is read."""
    if start is None:
        return
    needs = start.config.needs
    if task.needs not in (needs if isinstance(needs, tuple) else (needs,)):
        message = f"{start.path} holds a {start.config.kind_}, which does not learn {task.kind_}. Take another task or checkpoint."
        raise RecipeError([Problem("model.from", message)])


def refuse_another_tokenizer(start: PretrainedModel | None, splits: DataSplits) -> None:
    """A model reads the ids of the tokenizer that it was trained with: `RecipeError` where the data has other ones."""
    if start is None or splits.tokenizer is None:
        return
    theirs = tokenizer_of(start.path) if has_tokenizer(start.path) else None
    if theirs is not None and theirs.sha256 != splits.tokenizer.sha256:
        message = (
            f"is not that of {start.path} ({splits.tokenizer.vocab_size:,} ids, there {theirs.vocab_size:,}), and its ids mean other words."
        )
        raise RecipeError([Problem("data.tokenizer", f"{message} Leave it out, or set kind: from-model.")])


def _labels_that_do_not_fit(splits: DataSplits, targets: str | None) -> list[Problem]:
    """Columns of a multi-label task: values, each 0 or 1 (or a share between)."""
    if targets == "classes":
        said = "multi-label needs one column of 0 and 1 a label, and the targets are classes. Take classification, or target=value."
        return [Problem("task", said)]
    facts = splits.facts["parts"]["train"]["targets"]
    low, high = min(facts["min"]), max(facts["max"])
    if low < 0 or high > 1:
        return [Problem("task", f"multi-label needs targets of 0 and 1, and they run from {low:g} to {high:g}. Take regression.")]
    return []
