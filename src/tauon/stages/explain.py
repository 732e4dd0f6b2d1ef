"""The explain stage: checkpoint and data -> `explain/explanation.json`, the maps beside it, and the model card `card.md`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tauon.artifacts import atomic_write, load_checkpoint, read_json, write_json
from tauon.data import DataSplits
from tauon.errors import Problem, RecipeError
from tauon.explain import ExplainConfig, Explanation, Subject, explain_model, explain_new_examples
from tauon.explain.card import model_card
from tauon.explain.config import InfluenceConfig
from tauon.explain.rules import refuse_task
from tauon.explain.subject import TrainingRecords
from tauon.explain.trees import Surrogate
from tauon.report import Records
from tauon.stages.context import Context
from tauon.stages.load import load_model
from tauon.train import early_steps
from tauon.types import Batch, Dataset

__all__ = ["ARRAYS", "RECORD", "explain_new_batch", "explain_stage", "subject_of", "write_card"]

RECORD = "explain/explanation.json"
ARRAYS = "explain/maps.safetensors"
INDEX = "explain/influence"


def explain_stage(ctx: Context) -> dict[str, Any]:
    """Explain the run's model by its held-out examples."""
    config = ctx.section("explain", ExplainConfig)
    checkpoint = ctx.final_checkpoint
    ctx.refuse_changed_data()
    subject = subject_of(ctx, config)
    _ = config.language.answer  # for prompts that are given later: `tauon explain RUN --text`
    explanation = explain_model(subject, config)
    explanation.record |= {"time": time.time(), "checkpoint": checkpoint.hash, "run": ctx.recipe.name}
    save(ctx.run.folder, explanation)
    write_card(ctx.run.folder, config)
    return {"checkpoint": checkpoint.hash, "opening": explanation.record["opening"]}


def subject_of(ctx: Context, config: ExplainConfig) -> Subject:
    """Return the run's model and data. Of a private run only held-out examples: its training examples are protected."""
    refuse_task(ctx.recipe.task)
    splits = ctx.splits
    model, _ = load_model(ctx.final_checkpoint, ctx.recipe, weights=ctx.recipe.evaluate.weights)
    heldout, part = held_out(splits, config)
    private = ctx.recipe.privacy is not None
    if private and part == "train":
        raise RecipeError(
            [
                Problem(
                    "explain.split", "is train, and training examples of a private run are protected. Hold some out: data.split.test=10%."
                )
            ]
        )

    refusal = ""
    if private:
        refusal = "The run is private: naming training examples would reveal what its guarantee protects, so none is named."
        influence = config.influence
        wanted = influence.examples if isinstance(influence, InfluenceConfig) else influence
        if "influence" in config.model_fields_set and wanted:
            raise RecipeError([Problem("explain.influence", f"{refusal} Set explain.influence=false.")])
    records = TrainingRecords(splits.fingerprint, ctx.run.folder / INDEX, partial(early_models, ctx), refusal)

    def report(what: str, done: int, total: int) -> None:
        ctx.on_event("progress", what=what, done=done, total=total)

    def note(message: str) -> None:
        ctx.on_event("note", message=message)

    return Subject(
        model=model, task=ctx.recipe.task, spec=splits.spec, train=heldout if private else splits.train, heldout=heldout, part=part,
        preprocess=splits.preprocess, tokenizer=splits.tokenizer, report=report, note=note, seed=ctx.recipe.seed, records=records,
        background_size=config.background,
    )  # fmt: skip


def early_models(ctx: Context) -> list[tuple[int, nn.Module]]:
    """Return (step, model) of each checkpoint of early training that the run kept."""
    config = ctx.recipe.train
    if not config.keep_early:
        return []
    plan = (ctx.run.manifest().get("training") or {}).get("plan") or {}
    steps = early_steps(config.keep_early, int(plan["steps"]), len(ctx.splits.train) / ctx.train.batch) if plan.get("steps") else ()
    folders = [(step, ctx.run.checkpoints / f"step-{step:06d}") for step in steps]
    return [(step, load_model(load_checkpoint(path), ctx.recipe, weights="raw")[0]) for step, path in folders if path.is_dir()]


def explain_new_batch(ctx: Context, subject: Subject, config: ExplainConfig, batch: Batch, names: Sequence[str]) -> Explanation:
    """Explain examples that are not in the run's data. Nothing is written."""
    explanation = explain_new_examples(subject, config, batch, _tree_of(ctx))
    for case, name in zip(explanation.record["cases"], names, strict=True):
        case["from"] = name
    return explanation


def _tree_of(ctx: Context) -> Surrogate | None:
    """Return the surrogate tree that the run's explanation recorded."""
    path = ctx.run.folder / RECORD
    found = read_json(path).get("tree") if path.is_file() else None
    return Surrogate.from_json(found) if isinstance(found, dict) and "tree" in found else None


def held_out(splits: DataSplits, config: ExplainConfig) -> tuple[Dataset, str]:
    """Return the part whose examples are explained, and its name."""
    parts = {"test": splits.test, "validation": splits.validation, "train": splits.train}
    names = list(parts) if config.split == "auto" else [config.split]
    for name in names:
        dataset = parts[name]
        if dataset is not None and len(dataset):
            return dataset, name
    raise RecipeError(
        [Problem("explain.split", f"is {config.split}, but the data has no such part. Hold some out: data.split.{config.split}=10%.")]
    )


def write_card(folder: Path, config: ExplainConfig) -> None:
    """Write the model card from the records in the folder."""
    atomic_write(folder / "card.md", model_card(Records.read(folder), config.card))


def save(folder: Path, explanation: Explanation) -> None:
    """Write the arrays, then the record that names them."""
    from safetensors.numpy import save as as_bytes

    arrays: dict[str, NDArray[Any]] = {name: np.ascontiguousarray(a) for name, a in explanation.arrays.items()}
    (folder / "explain").mkdir(exist_ok=True)
    atomic_write(folder / ARRAYS, as_bytes(arrays))
    write_json(folder / RECORD, explanation.record)
