"""The compress stage: checkpoint and data -> `compress/`: the record of the search, the smaller model, and the program of its runtime.

compress/compress.json      every measured candidate, the choice and its reason, side effects
compress/model/             the smaller model as safetensors and JSON
compress/bundle/            where another runtime won: its program, verified (`tauon.export`)
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tauon.artifacts import Checkpoint, folder_atomically, write_json
from tauon.compress import (
    Candidate,
    Compressed,
    GraphInt8,
    Int8,
    SearchResult,
    SearchSettings,
    calibration_from,
    candidates,
    save_compressed,
    search,
)
from tauon.compress.config import CompressConfig
from tauon.data import without_augmentation
from tauon.errors import DataError, Problem, RecipeError
from tauon.export import write_bundle
from tauon.models import ModelConfig, from_record
from tauon.runtimes import FORMATS
from tauon.stages.context import Context
from tauon.stages.export import export_subject, held_out_batches
from tauon.stages.healing import stage_healer
from tauon.stages.load import load_model
from tauon.stages.side_effects import side_effects
from tauon.types import Dataset

__all__ = ["RECORD", "compress_stage"]

RECORD = "compress/compress.json"
FORMAT = "tauon-compress/1"


def compress_stage(ctx: Context) -> dict[str, Any]:
    """Search for a smaller model that keeps the promise; write it, or the reason why there is none."""
    config = ctx.section("compress", CompressConfig)
    checkpoint = ctx.final_checkpoint
    ctx.refuse_changed_data()
    model, _ = load_model(checkpoint, ctx.recipe, weights=ctx.recipe.evaluate.weights)
    model, own = _whole(model, from_record(checkpoint.state["model"]))
    dataset, split, notes = _measured_on(ctx, config)
    private = ctx.recipe.privacy is not None
    if private:
        notes.append("the run is private: ranges of activations are observed on held-out examples, since training examples are protected")
    calibrated = dataset if private else without_augmentation(ctx.splits.train)
    calibration = calibration_from(calibrated, examples=config.calibration, seed=ctx.recipe.seed)
    settings = SearchSettings(
        target=config.for_, batch_sizes=tuple(config.batch_sizes), seconds=config.seconds, seed=ctx.recipe.seed,
        candidates=_tries(ctx, config, model),
        heal=stage_healer(ctx, config.heal, model), compiled=not ctx.recipe.task.reads_hidden_states,
    )  # fmt: skip

    def progress(what: str, done: int, total: int) -> None:
        ctx.on_event("progress", what=what, done=done, total=total)

    result = search(
        model, ctx.recipe.task, calibration, dataset, max_drop=config.max_drop, config=own, settings=settings, progress=progress
    )
    record: dict[str, Any] = {
        "format": FORMAT, "time": time.time(), "run": ctx.recipe.name, "checkpoint": checkpoint.hash, "for": config.for_, "split": split,
        "examples": len(dataset), "notes": notes, **result.to_json(),
    }  # fmt: skip
    effects = config.side_effects and result.best is not None
    if effects and result.module is not None and result.compressed is not None:
        record["side_effects"] = side_effects(ctx, model, result.module, result.compressed.model)
    with folder_atomically(ctx.run.folder / "compress", replace=True) as folder:
        if result.best is not None and result.compressed is not None:
            save_compressed(folder / "model", result.compressed)
            record["runtime"] = result.best.runtime
            if result.best.runtime in FORMATS:
                record["bundle"] = _bundle(ctx, checkpoint, result.compressed, result.best.runtime, folder / "bundle")
        write_json(folder / "compress.json", record)
    for note in notes:
        ctx.on_event("note", message=note)
    ctx.on_event("note" if result.best is not None else "warning", message=_conclusion(result, ctx.run.folder))
    return {"checkpoint": checkpoint.hash, "best": record["best"]}


def _whole(model: Any, config: ModelConfig) -> tuple[Any, ModelConfig]:
    """Return the model in float32 on the CPU with its adapters merged, and its config without them."""
    if config.adapt is not None:
        raise RecipeError(
            [
                Problem(
                    "compress",
                    "the run trained adapters. Merge them first: `tauon adapter merge RUN --to FOLDER`, then compress a run from there.",
                )
            ]
        )
    return model.cpu().float().eval(), config


def _measured_on(ctx: Context, config: CompressConfig) -> tuple[Dataset, str, list[str]]:
    """Return (examples on which quality is measured, name of their part, notes)."""
    parts = {"validation": ctx.splits.validation, "test": ctx.splits.test}
    sizes = {name: len(d) for name, d in parts.items() if d is not None and len(d)}
    if config.split != "auto":
        if config.split not in sizes:
            raise RecipeError(
                [
                    Problem(
                        "compress.split", f"is {config.split}, but the data has no such part. Hold some out: data.split.{config.split}=10%."
                    )
                ]
            )
        name = str(config.split)
    elif not sizes:
        raise RecipeError(
            [Problem("compress", "quality is measured on examples outside of training. Hold some out: data.split.validation=10%.")]
        )
    else:
        enough = 1.96 / max(config.max_drop, 1e-4)  # below it, even unchanged answers have a larger upper end
        name = "validation" if sizes.get("validation", 0) >= min(enough, max(sizes.values())) else max(sizes, key=lambda n: sizes[n])
    notes = []
    if name == "test":
        notes.append(
            "quality is measured on the test part, so its figure is no longer from untouched data; compress.split=validation uses the other"
        )
    if sizes[name] < 1.96 / max(config.max_drop, 1e-4) and ctx.recipe.task.family == "classification":
        least = 1.96 / (sizes[name] + 2)
        notes.append(
            f"{sizes[name]} examples cannot prove a drop of at most {config.max_drop:.2%}: even unchanged answers have an upper end of {least:.1%}. "
            f"Hold out more (about {1.96 / max(config.max_drop, 1e-4):,.0f} examples), or allow more: compress.max_drop={least * 1.2:.1%}"
        )
    dataset = parts[name]
    assert dataset is not None
    return dataset, name, notes


def _tries(ctx: Context, config: CompressConfig, model: Any) -> tuple[Candidate, ...] | None:
    """Return what is tried. Language models stay in torch, because the serving engine runs them there; torch.compile is a yardstick only."""
    language = ctx.recipe.task.reads_hidden_states
    if config.steps:
        runtime: Any = config.runtime if config.runtime != "auto" else "eager" if language else "onnx"
        name = " + ".join(step.kind_ for step in config.steps)
        return (Candidate(name, tuple(config.steps), runtime),)
    found = candidates(model, target=config.for_)
    if language:
        found = [c for c in found if c.runtime == "eager"] or [Candidate("int8 dynamic", (Int8(),), "eager")]
    return tuple(c for c in found if c.runtime != "compiled")


def _bundle(ctx: Context, checkpoint: Checkpoint, compressed: Compressed, runtime: str, to: Path) -> dict[str, Any]:
    """Write the program of the chosen runtime, verified against the quantised model."""
    subject = export_subject(ctx, checkpoint)
    program = compressed.model.program() if isinstance(compressed.model, GraphInt8) else None
    subject = subject if program is not None else subject_with(subject, compressed.model)
    record = write_bundle(subject, to, runtime, held_out_batches(ctx, 256), reference=compressed.model, program=program)
    return {k: record.get(k) for k in ("kind", "verification", "latency", "bytes", "script")}


def subject_with(subject: Any, model: Any) -> Any:
    """Return the subject of an export with another model."""
    from dataclasses import replace

    return replace(subject, model=model, precision="compressed")


def _conclusion(result: SearchResult, run: Path) -> str:
    if result.best is None:
        return f"{result.reason}\nThe trained model stays the one to use."
    return f"{result.reason}. Use it like the run: tauon serve {run}/compress"


def refuse_without_compress(folder: Path) -> None:
    """Raise `DataError` if a run was not compressed, or nothing kept the promise."""
    if not (folder / "compress" / "model" / "compressed.json").is_file():
        raise DataError(f"{folder} has no compressed model. Make one: tauon compress {folder}")
