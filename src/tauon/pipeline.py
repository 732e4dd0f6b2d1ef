"""The whole path on one screen: prepare, train, evaluate, report. Read this file first.

A run is a folder. Each stage reads the records of the stages before it and leaves its own; a stage whose inputs have not
changed is not done again; training that was stopped, or killed, goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tauon import __version__
from tauon.answers import attach_reference, sample_answers
from tauon.artifacts import (
    Checkpoint,
    Run,
    atomic_write,
    code_fingerprint,
    environment,
    latest_checkpoint,
    load_checkpoint,
    read_json,
    write_json,
)
from tauon.auditing import plant
from tauon.config import dump, unread_keys
from tauon.data import (
    DataConfig,
    DataSplits,
    FromModelConfig,
    TokenDataset,
    TokenizerConfig,
    has_tokenizer,
    picture_sheet,
    prepare,
    tokenizer_of,
)
from tauon.distributed import Heartbeat, World, join
from tauon.errors import Problem, RecipeError, RunError
from tauon.evaluate import Evaluation, evaluate
from tauon.generate import generate
from tauon.models import (
    GPT,
    ModelConfig,
    Start,
    adapt_like,
    from_record,
    materialize,
    refuse_codes,
    refuse_misfits,
    resolved,
    saved_start,
    start_of,
)
from tauon.privacy import announced, apply_statistics, fits_nothing, read_statistics
from tauon.recipe import FREE, SECTIONS, Recipe, StageName, differences, fingerprint, to_yaml
from tauon.report import render
from tauon.tasks import CountingBytes, LanguageModelling, Task
from tauon.train import (
    Plan,
    Precision,
    TrainConfig,
    choose_device,
    choose_precision,
)
from tauon.training import train_stage

__all__ = ["Tell", "load_model", "run"]

Tell = Callable[..., None]
"""`tell(kind, **facts)`: what a person or a script wants to know while a run goes on."""


def quiet(kind: str, /, **facts: Any) -> None:
    """Tells nobody."""


def run(
    recipe: Recipe, *, root: Path | str = "runs", stages: tuple[StageName, ...] | None = None, fresh: bool = False, tell: Tell = quiet
) -> Run:
    """Take a recipe through its stages; returns the run, closed. The same call again does only what is not done.

    Args:
        recipe: what to do.
        root: folder of the runs; this one's is `root/<name>`.
        stages: some of the recipe's stages; all of them if left out.
        fresh: set the existing run aside (renamed, never deleted) and start over.
        tell: told what happens, as it happens.

    Raises:
        TauonError: with what is wrong and the way out. Nothing half-written stays.
    """
    with join(recipe.train.peek("device")) as world, Heartbeat(world) as heart:
        try:
            return _run(recipe, Path(root), stages or recipe.stages, heart, fresh=fresh, tell=tell if world.leads else quiet)
        except RuntimeError as err:
            failure = heart.failure(err)
            if failure is None:
                raise
            raise failure from err


def _run(recipe: Recipe, root: Path, wanted: tuple[StageName, ...], heart: Heartbeat, *, fresh: bool, tell: Tell) -> Run:
    """One process's part of `run`. Rank 0 writes the records and does alone what follows training; the others train with it."""
    world = heart.world
    if not {"prepare", "train"} & {*wanted} and not (root / recipe.name / "recipe.yaml").is_file():
        raise RunError(f"{root / recipe.name}: no run is there to {wanted[0]}. First: tauon train {recipe.name}")
    if recipe.data.split.folds is not None and recipe.data.split.fold is None:
        from tauon.folds import run_folds

        if world.size > 1:
            raise RecipeError([Problem("data.split.folds", "folds are trained one after the other in one process. Start without --on.")])
        return run_folds(recipe, root=root, stages=wanted, fresh=fresh, tell=tell)
    refuse_strangers(recipe, world)
    with world.agree(lambda: Run.open(root / recipe.name) if world.leads else Run.follow(root / recipe.name)) as record:
        context = Context(recipe, record, tell, world, heart)

        def begin() -> None:
            if fresh and (record.recipe_path.exists() or record.checkpoints.exists()):
                tell("aside", folder=str(record.set_aside()))
            context.refuse_another_recipe()
            atomic_write(record.recipe_path, to_yaml(recipe))
            record.update_manifest(tauon=__version__, seed=recipe.seed, environment=environment())

        world.lead(begin)
        for i, stage in enumerate(wanted):
            if stage not in TOGETHER:
                if not world.leads:
                    break
                context.world = World()  # from here on rank 0 is alone
            began = time.perf_counter()
            if context.world.lead(lambda stage=stage: context.is_done(stage)):  # type: ignore[misc]
                tell("stage", name=stage, state="done before")
                continue
            tell("stage", name=stage, state="begins")
            threads = torch.get_num_threads()
            try:
                facts = DO[stage](context)
            finally:
                torch.set_num_threads(threads)  # training may have chosen another number, for itself
            context.refuse_unread(stage, later=wanted[i + 1 :])
            record.mark_stage(stage, context.fingerprint(stage), seconds=round(time.perf_counter() - began, 3), **facts)
            tell("stage", name=stage, state="done", seconds=time.perf_counter() - began, **facts)
    return record


TOGETHER = ("prepare", "train")
"""Stages in which all processes of a launch take part. The others are rank 0's alone."""


def refuse_strangers(recipe: Recipe, world: World) -> None:
    """Every rank must have the same recipe, code and torch: `RunError` on all of them where one differs."""
    if world.size == 1:
        return
    world.same("the recipe", fingerprint(recipe, SECTIONS["train"])[:12], "Give every process the same recipe and assignments.")
    world.same("Tauon's code", code_fingerprint()[:12], "Install the same version everywhere.")
    world.same("the version of torch", torch.__version__, "Install the same version everywhere.")


@dataclass
class Context:
    """What the stages of one run share."""

    recipe: Recipe
    run: Run
    tell: Tell
    world: World = field(default_factory=World)
    heart: Heartbeat = field(default_factory=lambda: Heartbeat(World()))

    def is_done(self, stage: StageName) -> bool:
        """Whether the stage was done before, from the same inputs."""
        done = self.run.stage(stage)
        return done is not None and done["fingerprint"] == self.fingerprint(stage)

    @cached_property
    def splits(self) -> DataSplits:
        """The data. With several processes, rank 0 prepares it first, and what each of them then has must be the same."""
        if self.world.size == 1:
            return self._with_statistics(self._prepared())
        splits = self.world.lead_first(self._prepared)
        self.world.same("the data", splits.fingerprint[:12], "Every rank must see the same files: copy them, or share a file system.")
        return self._with_statistics(splits)

    def _with_statistics(self, splits: DataSplits) -> DataSplits:
        """Scaled by the run's private statistics, once training has drawn them."""
        config = None if self.recipe.privacy is None else self.recipe.privacy.statistics
        if config is None:
            return splits

        def drawn() -> dict[str, Any] | None:
            return read_statistics(self.run.folder, splits, config, needed=self.run.manifest().get("training") is not None)

        record = self.world.lead(drawn)
        return splits if record is None else apply_statistics(splits, record)

    @cached_property
    def start(self) -> Start | None:
        """The trained model that `model.from` names, opened."""
        return start_of(self.recipe.model)

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
        splits = prepare(data, seed=self.recipe.seed, needs=self.recipe.task.needs, progress=progress)
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
        started = self.run.manifest().get("training")
        if started is not None and started.get("data") != self.splits.fingerprint:
            raise RunError(
                f"{self.run.folder}: the data changed since this run began. Restore it, start over with --fresh, "
                "or give another name (name=...)."
            )

    def refuse_changed_start(self) -> None:
        """Going on from another model than the run began with would tell nothing: `RunError`."""
        started = self.run.manifest().get("training")
        if started is None or self.start is None or started.get("base") in (None, self.start.reference["fingerprint"]):
            return
        raise RunError(
            f"{self.run.folder}: {self.recipe.model.from_} changed since this run began. Restore it, start over with --fresh, or give "
            "another name (name=...)."
        )

    def fingerprint(self, stage: str) -> str:
        """Of all that the stage's result depends on."""
        earlier = [self.recipe_fingerprint(s) for s in SECTIONS if list(SECTIONS).index(s) < list(SECTIONS).index(stage)]
        found = (
            []
            if stage in ("prepare", "train")
            else [str((self.run.stage(s) or {}).get("time")) for s in ("train", "evaluate") if s != stage]
        )
        return fingerprint(self.recipe, SECTIONS[stage], *earlier, *found)

    def recipe_fingerprint(self, stage: str) -> str:
        return fingerprint(self.recipe, [s for s in SECTIONS[stage] if s not in FREE])

    def record_training(self, plan: Plan) -> None:
        """Remember what this folder trains, and every choice that a resume must make the same way."""
        sections = {s: dump(self.recipe)[s] for s in SECTIONS["train"] if s not in FREE}
        fingerprint = self.recipe_fingerprint("train")
        base = {} if self.start is None else {"base": self.start.fingerprint}
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
        now = {s: dump(self.recipe)[s] for s in started["sections"]}
        diff = differences(started["sections"], now) or ["seed"]
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
            raise RunError(f"{self.run.folder} has no checkpoint yet. First: tauon train {self.recipe.name}")
        return newest


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


def with_tokenizer_of(start: Start, recipe: Recipe) -> DataConfig:
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


def refuse_another_task(start: Start | None, task: Task) -> None:
    """A model that cannot learn what the recipe asks for is a `RecipeError`, before any data is read."""
    if start is None:
        return
    needs = start.config.needs
    if task.needs not in (needs if isinstance(needs, tuple) else (needs,)):
        message = f"{start.path} holds a {start.config.kind_}, which does not learn {task.kind_}. Take another task or checkpoint."
        raise RecipeError([Problem("model.from", message)])


def refuse_another_tokenizer(start: Start | None, splits: DataSplits) -> None:
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


def prepare_stage(ctx: Context) -> dict[str, Any]:
    """Raw files -> shards or arrays, with `data.json` for the report."""
    splits = ctx.splits
    if ctx.world.leads:
        write_json(ctx.run.folder / "data.json", splits.facts)
        sheet = picture_sheet(splits.train, ctx.recipe.seed)
        if sheet is not None:
            atomic_write(ctx.run.folder / "examples.png", sheet)
    ctx.run.update_manifest(data={"fingerprint": ctx.splits.fingerprint})
    return {"data": ctx.splits.fingerprint}


def evaluate_stage(ctx: Context) -> dict[str, Any]:
    """Checkpoint -> `evaluation.json`, and for language models `samples.json`."""
    recipe, config, splits = ctx.recipe, ctx.recipe.evaluate, ctx.splits
    checkpoint = ctx.final_checkpoint
    ctx.refuse_changed_data()
    model, precision = load_model(checkpoint, recipe, weights=config.weights)
    name = config.split if config.split != "auto" else "test" if splits.test is not None else "validation"
    dataset = splits.test if name == "test" else splits.validation
    if dataset is None:
        raise RecipeError([Problem("evaluate.split", f"{name}, but the data has no such part. Hold some out: data.split.{name}=10%.")])
    task: Any = recipe.task
    if isinstance(task, LanguageModelling):
        task = CountingBytes(task, torch.as_tensor(dataset.token_bytes))  # type: ignore[attr-defined]

    def progress(done: int, total: int) -> None:
        ctx.tell("progress", what=f"evaluating on {name}", done=done, total=total)

    result = evaluate(
        model, task, dataset, config, seed=recipe.seed, split=name, context=precision.context, device=precision.device, progress=progress
    )
    write_json(ctx.run.folder / "evaluation.json", result.to_json())
    ctx.tell("evaluation", result=result)
    if isinstance(model, GPT):
        if recipe.task.needs == "tokens":
            samples = sample_texts(ctx, model, precision)
        else:
            samples = sample_answers(recipe, splits, model, precision, dataset, ctx.tell)
        write_json(ctx.run.folder / "samples.json", samples)
    return {"checkpoint": checkpoint.hash, "split": name}


def sample_texts(ctx: Context, model: GPT, precision: Precision, max_tokens: int = 160) -> list[dict[str, Any]]:
    """What the model writes behind each prompt; without prompts, from the start of a document."""
    config, tokenizer = ctx.recipe.evaluate, ctx.splits.tokenizer
    assert tokenizer is not None
    out: list[dict[str, Any]] = []
    for prompt in config.prompts or ("",):
        ids = [tokenizer.bos, *tokenizer.encode(prompt).tolist()]
        for new in generate(
            model, ids, max_tokens=max_tokens, samples=config.samples, temperature=0.8, top_p=0.95, seed=ctx.recipe.seed,
            stop_id=tokenizer.bos, context=precision.context,
        ) if config.samples else []:  # fmt: skip
            out.append({"prompt": prompt, "text": tokenizer.decode(new), "temperature": 0.8, "top_p": 0.95})
            ctx.tell("sample", **out[-1])
    return out


def report_stage(ctx: Context) -> dict[str, Any]:
    """Records -> `report.html`."""
    return report_stage_of(ctx.run.folder, ctx.tell)


def report_stage_of(folder: Path, tell: Tell) -> dict[str, Any]:
    path = render(folder)
    tell("report", path=str(path))
    return {"path": path.name}


DO: dict[str, Callable[[Context], dict[str, Any]]] = {
    "prepare": prepare_stage,
    "train": train_stage,
    "evaluate": evaluate_stage,
    "report": report_stage,
}


def load_model(checkpoint: Checkpoint, recipe: Recipe, *, weights: str = "auto") -> tuple[Any, Precision]:
    """(model in eval mode, precision): the weights that a checkpoint holds; `auto` takes the average where there is one."""
    device, _ = choose_device(recipe.train.device)
    group = "ema" if weights == "ema" or (weights == "auto" and "ema" in checkpoint.groups()) else "model"
    if group not in checkpoint.groups():
        raise RecipeError(
            [Problem("evaluate.weights", f"ema, but {checkpoint.path} holds {', '.join(checkpoint.groups())}. Train with train.ema.")]
        )
    config = from_record(checkpoint.state["model"])
    own = checkpoint.lazy("model")
    refuse_misfits(config.bare(), own, where=str(checkpoint.path))
    given: dict[str, Any] = dict(own)
    if group == "ema":  # over the raw weights, of buffers an average holds running statistics only, and of a tied weight one
        given |= checkpoint.lazy("ema")
    if config.adapt is not None:
        given = dict(saved_start(config, checkpoint)) | given
    model = materialize(config, seed=0, device=device, weights=given)
    precision, _ = choose_precision(checkpoint.state["precision"], device, model)
    return model.eval(), precision


def evaluation_of(run: Run) -> Evaluation | None:
    """The evaluation that a run holds, if any."""
    path = run.folder / "evaluation.json"
    return Evaluation.from_json(read_json(path)) if path.exists() else None
