"""What the stages of one run share: its data, its model, the pretrained model, and whether a stage is done.

Everything is computed once and cached. Conflicts (targets, tokenizers, data that changed since the run began) are refused here, before
training. Each stage is in a file of its own in this package, and `engine.py` runs them.
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

from tauon.artifacts import WEIGHTS, Checkpoint, RunFolder, code_fingerprint, latest_checkpoint, load_checkpoint, read_json, sha256_file
from tauon.config import Config, dump, parse
from tauon.data import DataConfig, DataSplits, DataStamp, TokenDataset, prepare
from tauon.distributed import Heartbeat, World
from tauon.errors import CheckpointError, DataError, Problem, RecipeError, RunError
from tauon.models import ModelConfig, PretrainedModel, adapt_like, is_checkpoint, open_pretrained, refuse_codes, resolved
from tauon.plan import Plan
from tauon.recipe import FREE, FREE_KEYS, Recipe, differences, fingerprint
from tauon.stages.extensions import SplitTransform, split_transforms
from tauon.stages.fits import refuse_another_task, refuse_another_tokenizer, targets_that_do_not_fit, with_tokenizer_of
from tauon.stages.table import all_inputs, stage_table
from tauon.train import TrainConfig

__all__ = ["Context", "EventCallback", "null_callback"]

_REMEDY = "Restore it, start over with --fresh, or give the run another name (name=...)."

C = TypeVar("C", bound=Config)
EventCallback = Callable[..., None]
"""`on_event(kind, **facts)`: called while a run works, for a person or a script to follow it."""


def null_callback(kind: str, /, **facts: Any) -> None:
    """Does nothing."""


@dataclass
class Context:
    """What the stages of one run share."""

    recipe: Recipe
    folder: RunFolder | None
    """The run that is written; None if nothing is recorded (a layout check, a learning-rate range test)."""
    on_event: EventCallback
    world: World = field(default_factory=World)
    heartbeat: Heartbeat = field(default_factory=lambda: Heartbeat(World()))
    prepared: str = ""
    """Fingerprint of the splits before `SplitTransform.agreed` was applied."""

    @property
    def detached(self) -> bool:
        """Whether this context has no run, so that nothing is recorded."""
        return self.folder is None

    @property
    def run(self) -> RunFolder:
        """The run that is written."""
        assert self.folder is not None, "a stage that records was given a context without a run"
        return self.folder

    def section(self, name: str, cls: type[C]) -> C:
        """Return the recipe's section of a stage, or its defaults if the recipe has none."""
        section = getattr(self.recipe, name, None)
        return section if isinstance(section, cls) else parse(cls, {})

    # ------------------------------------------------------------------------------------------ which stages are done

    def is_done(self, name: str) -> bool:
        """Return whether a stage was done with the same inputs. `RunError` if data or base model changed since training began."""
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
        """Return the hashes of the results that a stage reads, by stage."""
        return {other: self.result_of(other) for other in stage_table()[name].inputs}

    def result_of(self, name: str) -> str | None:
        """Return the hash of a stage's result; for unfinished training, of its newest checkpoint; None if there is no result."""
        record = self.run.stage(name)
        if record is not None:
            return str(record["result"]) if "result" in record else result_hash(record, {})  # versions before it was recorded
        newest = latest_checkpoint(self.run.checkpoints) if name == "train" else None
        return None if newest is None else newest.hash

    def mark_done(self, name: str, facts: dict[str, Any], *, inputs: dict[str, str | None], seconds: float) -> None:
        """Record that a stage is done, with the hashes of its inputs and of its result."""
        paths = {file: self.run.folder / file for file in stage_table()[name].writes}
        files = {file: content_hash(path) for file, path in paths.items() if path.is_file()}
        self.run.mark_stage(
            name, self.fingerprint(name), seconds=round(seconds, 3), inputs=inputs, result=result_hash(facts, files), **facts
        )

    def fingerprint(self, name: str, *, times: bool = False) -> str:
        """Return the fingerprint of all sections that a stage's result depends on, also through other stages. `times`: as in old versions."""
        upstream = all_inputs(stage_table()[name])
        if times:
            upstream = [s for s in ("prepare", "train", "evaluate") if s in upstream]
        ran = [] if not times or name in ("prepare", "train") else [s for s in ("train", "evaluate") if s != name]
        earlier = [*(self.recipe_fingerprint(s) for s in upstream), *(str((self.run.stage(s) or {}).get("time")) for s in ran)]
        return fingerprint(self.recipe, stage_table()[name].reads, *earlier, spelled=self._spelled)

    def recipe_fingerprint(self, name: str) -> str:
        """Return the fingerprint of the sections that a stage itself reads, without those that do not change its result."""
        return fingerprint(self.recipe, [s for s in stage_table()[name].reads if s not in FREE], spelled=self._spelled)

    @cached_property
    def _spelled(self) -> dict[str, Any]:
        """The recipe as plain data. A section that means the same as when the run began is spelled as it was then: an older version did not
        write keys that were added later, and at their defaults they change nothing; `FREE_KEYS` never do.
        """
        whole = dump(self.recipe)
        began = (self.run.manifest().get("training") or {}).get("sections", {})
        try:
            today = dump(parse(Recipe, whole | began)) if began else whole
        except RecipeError:  # a key that was removed since
            return whole
        return whole | {s: tree for s, tree in began.items() if _decisive(s, today.get(s)) == _decisive(s, whole.get(s))}

    @cached_property
    def data_changed(self) -> bool:
        """Whether the data files changed since this run prepared them: a note, or `RunError` if the run has trained with them."""
        manifest = self.run.manifest()
        record = manifest.get("data") or {}
        if "files" not in record:
            return False  # prepared by a version that did not record the files
        before = DataStamp.from_json(record["files"])
        try:
            now = DataStamp.of(self.recipe.data, before)
        except DataError as err:
            self.on_event("warning", message=f"the data cannot be checked for changes; finished stages are kept: {err}")
            return False
        if now.content == before.content:
            if now.stat != before.stat:  # copied or touched: store the new stamp, so that it is not read again next time
                self.run.update_manifest(data=record | {"files": now.to_json()})
            return False
        change = f"{before} then, {now} now" if str(before) != str(now) else f"{now}, with other content"
        if manifest.get("training") is not None:
            raise RunError(f"{self.run.folder}: the data changed since this run began ({change}). {_REMEDY}")
        self.on_event("note", message=f"the data changed since it was prepared ({change}): preparing it again")
        return True

    # ------------------------------------------------------------------------------------------ data and model

    @cached_property
    def splits(self) -> DataSplits:
        """The data. With several processes, rank 0 prepares it first; then all must have the same."""
        if self.world.size == 1:
            splits = self._prepared()
        else:
            splits = self.world.rank0_first(self._prepared)
            self.world.assert_same(
                "the data", splits.fingerprint[:12], "Every rank must see the same files: copy them, or use a shared file system."
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
                tokens.shards.verify()  # cached shards may be damaged: do not train on a changed byte
        for transform in self._transforms:
            splits = transform.after(splits)
        return splits

    @cached_property
    def start(self) -> PretrainedModel | None:
        """The trained model that `model.from` names, opened."""
        return open_pretrained(self.recipe.model)

    @cached_property
    def data(self) -> DataConfig:
        """The recipe's `data`, with the tokenizer of the pretrained model if the recipe names none."""
        return self.recipe.data if self.start is None else with_tokenizer_of(self.start, self.recipe)

    @cached_property
    def model(self) -> ModelConfig:
        """The architecture, every size filled in, and the adapters."""
        return self.model_for(self.splits)

    def model_for(self, splits: DataSplits) -> ModelConfig:
        """Return the architecture for splits that may not be complete yet."""
        recipe = self.recipe
        sized = resolved(recipe.model, splits.spec)
        return sized if recipe.adapt is None else sized.model_copy(update={"adapt": adapt_like(recipe.adapt, sized)})

    @property
    def train(self) -> TrainConfig:
        """The recipe's `train` section, with the whole training set as batch if the optimizer needs that."""
        config = self.recipe.train
        return config.model_copy(update={"batch": len(self.splits.train)}) if self.recipe.optim.full_batch else config

    # ------------------------------------------------------------------------------------------ what is refused

    def refuse_changed_data(self) -> None:
        """Raise `RunError` if the data is not what the run began with: resuming or evaluating would be meaningless."""
        manifest = self.run.manifest()
        started = manifest.get("training")
        if started is None or started.get("data") == self.splits.fingerprint:
            return
        reason = "the data changed since this run began"
        if started.get("code") != code_fingerprint():
            reason += ", or this version of Tauon, not the one that began it, makes other examples from the same files (see CHANGELOG)"
        raise RunError(f"{self.run.folder}: {reason}. {_REMEDY}")

    def refuse_changed_start(self) -> None:
        """Raise `RunError` if the pretrained model is not the one that the run began with."""
        started = self.run.manifest().get("training")
        if started is None or self.start is None or started.get("base") in (None, self.start.reference["fingerprint"]):
            return
        raise RunError(f"{self.run.folder}: {self.recipe.model.from_} changed since this run began. {_REMEDY}")

    def refuse_changed_base(self) -> None:
        """Call `refuse_changed_start` for finished training if the base is a Tauon checkpoint, which is quick to identify. A deleted one is fine."""
        if self.recipe.model.from_ is None or not is_checkpoint(self.recipe.model.from_):
            return
        try:
            self.refuse_changed_start()
        except CheckpointError as err:
            self.on_event("warning", message=f"the base model cannot be checked for changes; finished stages are kept: {err}")

    def record_training(self, plan: Plan) -> None:
        """Record what this folder trains, and every derived setting that a resume must repeat."""
        sections = {s: dump(self.recipe)[s] for s in stage_table()["train"].reads if s not in FREE}
        fingerprint = self.recipe_fingerprint("train")
        base = {} if self.start is None else {"base": self.start.fingerprint}
        base |= {"code": code_fingerprint()}
        self.run.update_manifest(
            training={"fingerprint": fingerprint, "sections": sections, "data": self.splits.fingerprint, "plan": plan.record()} | base
        )

    def refuse_another_recipe(self) -> None:
        """Raise `RunError`, with the differences, if the folder holds the training of another recipe."""
        split = self.recipe.data.split
        if (self.run.folder / "fold-0").is_dir() and (split.raw_value("folds") is None or split.raw_value("fold") is not None):
            raise RunError(
                f"{self.run.folder} holds the folds of a cross-validation (data.split.folds). Give this run another name (name=...), "
                "or rename the old one with --fresh."
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
            f"{self.run.folder} holds the training of another recipe ({'; '.join(diff[:6])}). Give this run another name (name=...), "
            "or rename the old one with --fresh."
        )

    @property
    def final_checkpoint(self) -> Checkpoint:
        """The checkpoint to use: the best with early stopping, else the last; for an unfinished run, the newest."""
        done = self.run.stage("train")
        if done is not None:
            return load_checkpoint(self.run.checkpoints / done["checkpoint"], verify=WEIGHTS)
        newest = latest_checkpoint(self.run.checkpoints, warn=lambda m: self.on_event("warning", message=m))
        if newest is None:
            raise RunError(f"{self.run.folder} has no checkpoint yet. Train it first: tauon train {shlex.quote(str(self.run.folder))}")
        return newest


def as_read_today(sections: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Add keys that are new since then, at their defaults, to recorded sections: a new key does not change an old run."""
    try:
        today = dump(parse(Recipe, now | sections))
    except RecipeError:
        return sections
    return {s: today[s] for s in sections}


def _decisive(section: str, tree: Any) -> Any:
    """Return a section without the keys that change no result."""
    return {k: v for k, v in tree.items() if f"{section}.{k}" not in FREE_KEYS} if isinstance(tree, dict) else tree


def content_hash(path: Path) -> str:
    """Return the hash of a file that a stage wrote; for a JSON record, without its times."""
    record = read_json(path) if path.suffix == ".json" else None
    return result_hash(record, {}) if isinstance(record, dict) else sha256_file(path)


def result_hash(facts: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Return the hash of a stage's result: its facts and its files."""
    lasting = {k: v for k, v in facts.items() if k not in ("fingerprint", "time", "seconds")}
    return hashlib.sha256(json.dumps([lasting, dict(files)], sort_keys=True, default=str).encode()).hexdigest()
