"""The whole path on one screen: prepare, train, evaluate, report. Read this file first.

A run is a folder. Each stage reads the records of the stages before it and leaves its own; a stage whose inputs have not
changed is not done again; training that was stopped, or killed, goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tauon import __version__
from tauon.answers import sample_answers
from tauon.artifacts import (
    Checkpoint,
    Run,
    atomic_write,
    code_fingerprint,
    environment,
    read_json,
    write_json,
)
from tauon.context import Context, Tell, quiet
from tauon.data import DataStamp, picture_sheet
from tauon.distributed import Heartbeat, World, join
from tauon.errors import DataError, Problem, RecipeError, RunError
from tauon.evaluate import Evaluation, evaluate
from tauon.generate import Sampling, generate
from tauon.models import (
    GPT,
    from_record,
    frozen_base_weights,
    materialize,
    refuse_misfits,
)
from tauon.plan import choose_device, choose_precision
from tauon.privacy import give_up
from tauon.recipe import SECTIONS, Recipe, StageName, fingerprint, to_yaml
from tauon.report import render
from tauon.tasks import CountingBytes, LanguageModelling
from tauon.train import Precision
from tauon.training import train_stage

__all__ = ["Tell", "load_model", "run"]


def run(
    recipe: Recipe, *, root: Path | str = "runs", stages: tuple[StageName, ...] | None = None, fresh: bool = False, tell: Tell = quiet,
    folder: Path | None = None,
) -> Run:  # fmt: skip
    """Take a recipe through its stages; returns the run, closed. The same call again does only what is not done.

    Args:
        recipe: what to do.
        root: folder of the runs; this one's is `root/<name>`.
        stages: some of the recipe's stages; all of them if left out.
        fresh: set the existing run aside (renamed, never deleted) and start over.
        tell: told what happens, as it happens.
        folder: this run's, where it is not `root/<name>`.

    Raises:
        TauonError: with what is wrong and the way out. Nothing half-written stays.
    """
    with join(recipe.train.peek("device")) as world, Heartbeat(world) as heart:
        try:
            where = folder or Path(root) / recipe.name
            return _run(recipe, where, stages or recipe.stages, heart, fresh=fresh, tell=tell if world.leads else quiet)
        except RuntimeError as err:
            failure = heart.failure(err)
            if failure is None:
                raise
            raise failure from err


def _run(recipe: Recipe, folder: Path, wanted: tuple[StageName, ...], heart: Heartbeat, *, fresh: bool, tell: Tell) -> Run:
    """One process's part of `run`. Rank 0 writes the records and does alone what follows training; the others train with it."""
    world = heart.world
    if not {"prepare", "train"} & {*wanted} and not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} has no run yet. Train it first: the same command with train in the place of {wanted[0]}.")
    if recipe.data.split.folds is not None and recipe.data.split.fold is None:
        from tauon.folds import run_folds

        if world.size > 1:
            raise RecipeError([Problem("data.split.folds", "folds are trained one after the other in one process. Start without --on.")])
        return run_folds(recipe, folder=folder, stages=wanted, fresh=fresh, tell=tell)
    refuse_strangers(recipe, world)
    with world.all_or_raise(lambda: Run.open(folder) if world.leads else Run.follow(folder)) as record:
        context = Context(recipe, record, tell, world, heart)

        def begin() -> None:
            if fresh and (record.recipe_path.exists() or record.checkpoints.exists()):
                give_up(record.folder, lambda said: tell("note", message=f"privacy: {said}"))
                tell("aside", folder=str(record.set_aside()))
            context.refuse_another_recipe()
            atomic_write(record.recipe_path, to_yaml(recipe))
            record.update_manifest(tauon=__version__, seed=recipe.seed, environment=environment())

        world.rank0_broadcast(begin)
        for i, stage in enumerate(wanted):
            if stage not in TOGETHER:
                if not world.leads:
                    break
                context.world = World()  # from here on rank 0 is alone
            began = time.perf_counter()
            if context.world.rank0_broadcast(lambda stage=stage: context.is_done(stage)):  # type: ignore[misc]
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
    world.assert_same("the recipe", fingerprint(recipe, SECTIONS["train"])[:12], "Give every process the same recipe and assignments.")
    world.assert_same("Tauon's code", code_fingerprint()[:12], "Install the same version everywhere.")
    world.assert_same("the version of torch", torch.__version__, "Install the same version everywhere.")


def prepare_stage(ctx: Context) -> dict[str, Any]:
    """Raw files -> shards or arrays, with `data.json` for the report."""
    files = stamp_of(ctx) if ctx.world.leads else None  # before they are read: what changes meanwhile is noticed
    splits = ctx.splits
    if ctx.world.leads:
        write_json(ctx.run.folder / "data.json", splits.facts)
        tell_of_data(splits.facts, ctx.tell)
        sheet = picture_sheet(splits.train, ctx.recipe.seed)
        if sheet is not None:
            atomic_write(ctx.run.folder / "examples.png", sheet)
    ctx.run.update_manifest(data={"fingerprint": splits.fingerprint} | ({"files": files.to_json()} if files is not None else {}))
    return {"data": ctx.splits.fingerprint}


def tell_of_data(facts: Mapping[str, Any], tell: Callable[..., None], most: int = 10) -> None:
    """What the data's facts say that a person should know now: what was left out, how it was read, what looks wrong."""
    left_out = [f"left out ({part}): {line}" for part, lines in facts.get("left_out", {}).items() for line in lines]
    for kind, messages in (("note", left_out), ("note", facts.get("notes", [])), ("warning", facts.get("warnings", []))):
        for message in messages[:most]:
            tell(kind, message=message)
        if len(messages) > most:
            tell(kind, message=f"and {len(messages) - most:,} more of the kind: see data.json")


def stamp_of(ctx: Context) -> DataStamp | None:
    """The data's files as they are now; None where they cannot be looked at, which reading them says better."""
    try:
        return DataStamp.of(ctx.recipe.data)
    except DataError:
        return None


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
            model, ids, max_tokens=max_tokens, samples=config.samples, sampling=Sampling(temperature=0.8, top_p=0.95, seed=ctx.recipe.seed),
            stop_id={tokenizer.bos, tokenizer.eos}, context=precision.context,
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
    refuse_misfits(config.build_on_meta(), own, where=str(checkpoint.path))
    given: dict[str, Any] = dict(own)
    if group == "ema":  # over the raw weights, of buffers an average holds running statistics only, and of a tied weight one
        given |= checkpoint.lazy("ema")
    if config.adapt is not None:
        given = dict(frozen_base_weights(config, checkpoint)) | given
    model = materialize(config, seed=0, device=device, weights=given)
    precision, _ = choose_precision(checkpoint.state["precision"], device, model)
    return model.eval(), precision


def evaluation_of(run: Run) -> Evaluation | None:
    """The evaluation that a run holds, if any."""
    path = run.folder / "evaluation.json"
    return Evaluation.from_json(read_json(path)) if path.exists() else None
