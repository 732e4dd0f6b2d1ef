"""The evaluate stage: checkpoint -> `evaluation.json`, and for language models `samples.json`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tauon.artifacts import read_json, write_json
from tauon.errors import Problem, RecipeError
from tauon.evaluate import Evaluation, evaluate
from tauon.evaluate.baselines import Training, compared_with_baselines, fit_baselines, verdict
from tauon.evaluate.paired import RecordingTask
from tauon.models import GPT
from tauon.stages.context import Context
from tauon.stages.load import load_model
from tauon.stages.samples import sample_answers, sample_texts
from tauon.tasks import CountingBytes, LanguageModelling

__all__ = ["evaluate_stage", "evaluation_of", "scored_task"]


def evaluate_stage(ctx: Context) -> dict[str, Any]:
    """Compute every metric of the task with its interval, on the test set or the part that the recipe names."""
    recipe, config, splits = ctx.recipe, ctx.recipe.evaluate, ctx.splits
    checkpoint = ctx.final_checkpoint
    ctx.refuse_changed_data()
    model, precision = load_model(checkpoint, recipe, weights=config.weights)
    name = config.split if config.split != "auto" else "test" if splits.test is not None else "validation"
    dataset = splits.test if name == "test" else splits.validation
    if dataset is None:
        raise RecipeError([Problem("evaluate.split", f"is {name}, but the data has no {name} part. Hold some out: data.split.{name}=10%.")])
    task = scored_task(recipe.task, dataset)

    def progress(done: int, total: int) -> None:
        ctx.on_event("progress", what=f"evaluating on {name}", done=done, total=total)

    recording = RecordingTask(task)
    result = evaluate(
        model,
        recording,
        dataset,
        config,
        seed=recipe.seed,
        split=name,
        context=precision.context,
        device=precision.device,
        progress=progress,
    )
    if config.baselines:
        result = _beside_baselines(ctx, result, task, recording, dataset)
    write_json(ctx.run.folder / "evaluation.json", result.to_json())
    ctx.on_event("evaluation", result=result)
    if isinstance(model, GPT):
        text = recipe.task.input_kind == "tokens"
        samples = sample_texts(ctx, model, precision) if text else sample_answers(ctx, model, precision, dataset)
        write_json(ctx.run.folder / "samples.json", samples)
    return {"checkpoint": checkpoint.hash, "split": name}


def _beside_baselines(ctx: Context, result: Evaluation, task: Any, recording: RecordingTask, dataset: Any) -> Evaluation:
    """Add the baselines of the task, measured on the same examples. Of private training they read no training record."""
    splits = ctx.splits

    def progress(what: str, done: int, total: int) -> None:
        ctx.on_event("progress", what=f"baseline: {what}", done=done, total=total)

    if recording.terms is None:
        return result
    federate = getattr(ctx.recipe, "federate", None)
    private = getattr(ctx.recipe, "privacy", None) is not None or getattr(federate, "privacy", None) is not None
    training = Training(splits.train, ctx.recipe.seed, fits=not private, tokenizer=splits.tokenizer)
    baselines = fit_baselines(task, training, dataset)
    compared = compared_with_baselines(result, recording.terms, task, baselines, dataset, ctx.recipe.evaluate, progress)
    return replace(result, baselines=[c.to_json() for c in compared], verdict=verdict(result, compared))


def scored_task(task: Any, dataset: Any) -> Any:
    """Return the task as it is measured on a data set: of a language model, bytes are counted, too."""
    return CountingBytes(task, torch.as_tensor(dataset.token_bytes)) if isinstance(task, LanguageModelling) else task


def evaluation_of(folder: Path) -> Evaluation | None:
    """Return the evaluation of a run, or None if it has not been evaluated."""
    path = folder / "evaluation.json"
    return Evaluation.from_json(read_json(path)) if path.exists() else None
