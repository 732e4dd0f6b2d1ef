"""What the stages of one run share: its data, its model, what it was started from, and whether a stage is done.

Everything here is worked out once and kept. What disagrees (targets, tokenizers, data that changed under the run) is refused here, before
anything is trained. The stages themselves are in files of their own beside this one, and `engine.py` does them.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from tauon.artifacts import Checkpoint, Run, code_fingerprint, latest_checkpoint, load_checkpoint, read_json, sha256_file
from tauon.config import Config, dump, parse
from tauon.data import DataConfig, DataSplits, DataStamp, TokenDataset, prepare
from tauon.distributed import Heartbeat, World
from tauon.errors import CheckpointError, DataError, Problem, RecipeError, RunError
from tauon.models import ModelConfig, PretrainedModel, adapt_like, is_checkpoint, open_pretrained, refuse_codes, resolved
from tauon.plan import Plan
from tauon.recipe import FREE, Recipe, differences, fingerprint
from tauon.stages.extensions import SplitTransform, split_transforms
from tauon.stages.fits import refuse_another_task, refuse_another_tokenizer, targets_that_do_not_fit, with_tokenizer_of
from tauon.stages.table import all_inputs, stage_table
from tauon.train import TrainConfig

__all__ = ["Context", "EventCallback", "null_callback"]

_WAYS_OUT = "Restore it, start over with --fresh, or give another name (name=...)."

C = TypeVar("C", bound=Config)
EventCallback = Callable[..., None]
"""`on_event(kind, **facts)`: what a person or a script wants to know while a run goes on."""


def null_callback(kind: str, /, **facts: Any) -> None:
    """Does nothing."""


@dataclass
class Context:
    """What the stages of one run share."""

    recipe: Recipe
    folder: Run | None
    """The run that is written; None where nothing is recorded (a check of a layout, a search for a learning rate)."""
    on_event: EventCallback
    world: World = field(default_factory=World)
    heartbeat: Heartbeat = field(default_factory=lambda: Heartbeat(World()))
    prepared: str = ""
    """Fingerprint of the splits before what processes agree on was done to them (`SplitTransform.agreed`)."""

    @property
    def detached(self) -> bool:
        """Whether nothing is recorded."""
        return self.folder is None

    @property
    def run(self) -> Run:
        """The run that is written."""
        assert self.folder is not None, "a stage that records was given a context without a run"
        return self.folder

    def section(self, name: str, cls: type[C]) -> C:
        """The recipe's section of a stage; its defaults where the recipe has none."""
        found = getattr(self.recipe, name, None)
        return found if isinstance(found, cls) else parse(cls, {})

    # ------------------------------------------------------------------------------------------ what is done

    def is_done(self, name: str) -> bool:
        """Whether a stage was done before, from the same inputs. `RunError` where its data or its base changed under a training."""
        stage, done = stage_table()[name], self.run.stage(name)
        if done is None or done["fingerprint"] != self.fingerprint(name, times="inputs" not in done):
            return False
        if "inputs" in done and done["inputs"] != self.inputs_of(name):
            return False
        if not all((self.run.folder / file).is_file() for file in stage.writes):
            return False
        if name == "train":
            self.refuse_changed_base()
        return stage.from_records or not self.data_changed

    def inputs_of(self, name: str) -> dict[str, str | None]:
        """What the stages that a stage reads have left, as hashes."""
        return {other: self.result_of(other) for other in stage_table()[name].inputs}

    def result_of(self, name: str) -> str | None:
        """Hash of what a stage left; of training that goes on still, that of its newest checkpoint; None where there is nothing."""
        record = self.run.stage(name)
        if record is not None:
            return str(record["result"]) if "result" in record else result_hash(record, {})  # by a version that kept none
        newest = latest_checkpoint(self.run.checkpoints) if name == "train" else None
        return None if newest is None else newest.hash

    def mark_done(self, name: str, facts: dict[str, Any], *, inputs: dict[str, str | None], seconds: float) -> None:
        """Remember that a stage is done: from which inputs, and what it left."""
        paths = {file: self.run.folder / file for file in stage_table()[name].writes}
        files = {file: content_hash(path) for file, path in paths.items() if path.is_file()}
        self.run.mark_stage(
            name, self.fingerprint(name), seconds=round(seconds, 3), inputs=inputs, result=result_hash(facts, files), **facts
        )

    def fingerprint(self, name: str, *, times: bool = False) -> str:
        """Of the sections of the recipe that a stage's result depends on, through other stages too. `times`: as earlier versions made it."""
        upstream = all_inputs(stage_table()[name])
        if times:
            upstream = [s for s in ("prepare", "train", "evaluate") if s in upstream]
        ran = [] if not times or name in ("prepare", "train") else [s for s in ("train", "evaluate") if s != name]
        earlier = [*(self.recipe_fingerprint(s) for s in upstream), *(str((self.run.stage(s) or {}).get("time")) for s in ran)]
        return fingerprint(self.recipe, stage_table()[name].reads, *earlier, spelled=self._spelled)

    def recipe_fingerprint(self, name: str) -> str:
        """Of the sections that a stage itself reads, but for those that say how it runs and not what it makes."""
        return fingerprint(self.recipe, [s for s in stage_table()[name].reads if s not in FREE], spelled=self._spelled)

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
            self.on_event("warning", message=f"what was done is taken as done, though its data cannot be looked at: {err}")
            return False
        if now.content == before.content:
            if now.stat != before.stat:  # copied or touched: not to be read again the next time
                self.run.update_manifest(data=record | {"files": now.to_json()})
            return False
        said = f"{before} then, {now} now" if str(before) != str(now) else f"{now}, with other content"
        if manifest.get("training") is not None:
            raise RunError(f"{self.run.folder}: the data changed since this run began ({said}). {_WAYS_OUT}")
        self.on_event("note", message=f"the data changed since it was prepared ({said}): it is prepared again")
        return True

    # ------------------------------------------------------------------------------------------ data and model

    @cached_property
    def splits(self) -> DataSplits:
        """The data. With several processes, rank 0 prepares it first, and what each of them then has must be the same."""
        if self.world.size == 1:
            splits = self._prepared()
        else:
            splits = self.world.rank0_first(self._prepared)
            self.world.assert_same(
                "the data", splits.fingerprint[:12], "Every rank must see the same files: copy them, or share a file system."
            )
        self.prepared = splits.fingerprint
        for transform in self._transforms:
            splits = transform.agreed(splits)
        return splits

    @cached_property
    def _transforms(self) -> list[SplitTransform]:
        return split_transforms(self)

    def _prepared(self) -> DataSplits:
        def progress(what: str, done: int, total: int | None) -> None:
            self.on_event("progress", what=what, done=done, total=total)

        task, data = self.recipe.task, self.data
        refuse_another_task(self.start, task)
        for transform in self._transforms:
            data = transform.before(data)
        splits = prepare(data, seed=self.recipe.seed, input_kind=task.input_kind, scale_targets=task.scales_targets, progress=progress)
        refuse_another_tokenizer(self.start, splits)
        refuse_codes(self.recipe.model, splits.spec)
        splits.spec = task.shape(splits.spec)
        problems = [Problem(key, message) for key, message in task.fits(splits.spec)] + targets_that_do_not_fit(task, splits)
        if problems:
            raise RecipeError(problems)
        for part in (splits.train, splits.validation, splits.test):
            tokens = getattr(part, "tokens", part)  # a masked data set is one over tokens
            if isinstance(tokens, TokenDataset):
                tokens.shards.verify()  # what lies in the cache may be old: a changed byte must not be trained on
        for transform in self._transforms:
            splits = transform.after(splits)
        return splits

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
        return self.model_for(self.splits)

    def model_for(self, splits: DataSplits) -> ModelConfig:
        """The architecture for data that may not be complete yet."""
        recipe = self.recipe
        sized = resolved(recipe.model, splits.spec)
        return sized if recipe.adapt is None else sized.model_copy(update={"adapt": adapt_like(recipe.adapt, sized)})

    @property
    def train(self) -> TrainConfig:
        """The recipe's, with the batch that its optimizer takes."""
        config = self.recipe.train
        return config.model_copy(update={"batch": len(self.splits.train)}) if self.recipe.optim.full_batch else config

    # ------------------------------------------------------------------------------------------ what is refused

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
            self.on_event("warning", message=f"what was done is taken as done, though its base cannot be looked at: {err}")

    def record_training(self, plan: Plan) -> None:
        """Remember what this folder trains, and every choice that a resume must make the same way."""
        sections = {s: dump(self.recipe)[s] for s in stage_table()["train"].reads if s not in FREE}
        fingerprint = self.recipe_fingerprint("train")
        base = {} if self.start is None else {"base": self.start.fingerprint}
        base |= {"code": code_fingerprint()}
        self.run.update_manifest(
            training={"fingerprint": fingerprint, "sections": sections, "data": self.splits.fingerprint, "plan": plan.record()} | base
        )

    def refuse_another_recipe(self) -> None:
        """A folder that holds the training of another recipe is not overwritten: `RunError` lists what differs."""
        split = self.recipe.data.split
        if (self.run.folder / "fold-0").is_dir() and (split.raw_value("folds") is None or split.raw_value("fold") is not None):
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

    @property
    def final_checkpoint(self) -> Checkpoint:
        """What training left: the best where it stopped early, the last otherwise; of a run that is not finished, the newest."""
        done = self.run.stage("train")
        if done is not None:
            return load_checkpoint(self.run.checkpoints / done["checkpoint"])
        newest = latest_checkpoint(self.run.checkpoints, warn=lambda m: self.on_event("warning", message=m))
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


def content_hash(path: Path) -> str:
    """Of a file that a stage left; of a JSON record, of all but when it was made."""
    record = read_json(path) if path.suffix == ".json" else None
    return result_hash(record, {}) if isinstance(record, dict) else sha256_file(path)


def result_hash(facts: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Of what a stage left: what it said of it, and its files."""
    lasting = {k: v for k, v in facts.items() if k not in ("fingerprint", "time", "seconds")}
    return hashlib.sha256(json.dumps([lasting, dict(files)], sort_keys=True, default=str).encode()).hexdigest()
