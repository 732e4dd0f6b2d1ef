"""The export stage: checkpoint -> a verified bundle for each format, in `export/FORMAT`, and `export/export.json`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from tauon import __version__
from tauon.artifacts import Checkpoint, RunFolder, load_checkpoint, read_json, write_json
from tauon.compress import GraphInt8
from tauon.data import without_augmentation
from tauon.errors import DataError, MissingExtra, Problem, RecipeError, RunError, TauonError
from tauon.export import ExportConfig, ExportSubject, export_weights, write_bundle
from tauon.export.config import PROGRAMS
from tauon.recipe import load_recipe, to_yaml
from tauon.runtimes import Program, trace
from tauon.stages.compressed import CompressedRun, is_compressed, open_compressed_run
from tauon.stages.context import Context, EventCallback, null_callback
from tauon.stages.load import load_model
from tauon.types import Batch, Dataset

__all__ = ["RECORD", "export_run", "export_stage", "export_subject", "held_out_batches"]

RECORD = "export/export.json"


def export_stage(ctx: Context) -> dict[str, Any]:
    """Export the run's model to every format of the recipe."""
    config = ctx.section("export", ExportConfig)
    checkpoint = ctx.final_checkpoint
    found = _export(ctx, checkpoint, config, {name: ctx.run.folder / "export" / name for name in config.to}, replace=True)
    return {"checkpoint": checkpoint.hash, "formats": [entry["kind"] for entry in found]}


def export_run(
    place: Path | str, formats: Sequence[str], *, out: Path | None = None, device: str | None = None, on_event: EventCallback = null_callback
) -> list[dict[str, Any]]:  # fmt: skip
    """Export a trained run, or one of its checkpoints.

    Args:
        place: the run's folder, a checkpoint's, or the run's compressed model (`RUN/compress`).
        formats: onnx, openvino, executorch, aoti, huggingface, peft, gguf.
        out: the folder to write, which must not exist; of several formats, one in it for each. Default: `export/FORMAT` in the run's folder,
            where an earlier export is replaced, and `export/export.json`, which the report reads.
        device: where the model is loaded; default: the recipe's `train.device`. Programs are traced on the CPU.
        on_event: called with each event.

    Returns:
        The record of each export; `folder` is where it is.

    Raises:
        DataError: the model cannot be written in a format, or does not agree with the model on held-out examples. Nothing is left of it.
        RunError: `out` exists, or there is no checkpoint.
    """
    place = Path(place)
    chosen = place.resolve().parents[1] if place.resolve().parent.name == "checkpoints" else None
    compressed = open_compressed_run(place) if is_compressed(place) else None
    folder = chosen or (compressed.run if compressed is not None else place)
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is not a run: it has no recipe.yaml. Give the folder of a trained run; `tauon runs list` shows them.")
    recipe = load_recipe(folder, [] if device is None else [f"train.device={device}"])
    config = (
        ExportConfig(to=tuple(formats))
        if recipe_section(recipe) is None
        else recipe_section(recipe).model_copy(update={"to": tuple(formats)})
    )
    problem = next(iter(config.problems()), None)
    if problem:
        raise RecipeError([Problem("--to", problem[1])])
    if out is not None:  # the run stays as it is
        ctx = Context(recipe, RunFolder.read(folder), on_event)
        places = {name: out if len(formats) == 1 else out / name for name in formats}
        return _export(
            ctx, load_checkpoint(place) if chosen else ctx.final_checkpoint, config, places, replace=False, compressed=compressed
        )
    with RunFolder.open(folder) as run:
        ctx = Context(recipe, run, on_event)
        places = {name: folder / "export" / (name if compressed is None else f"{name}-compressed") for name in formats}
        return _export(ctx, load_checkpoint(place) if chosen else ctx.final_checkpoint, config, places, replace=True, compressed=compressed)


def recipe_section(recipe: Any) -> Any:
    """Return the recipe's section `export`, or None."""
    return getattr(recipe, "export", None)


def _export(
    ctx: Context, checkpoint: Checkpoint, config: ExportConfig, places: dict[str, Path], *, replace: bool, compressed: CompressedRun | None = None
) -> list[dict[str, Any]]:  # fmt: skip
    """Write each format; those that can be written are kept if another one cannot. `compressed`: a smaller model to write instead."""
    for to in places.values():
        if to.exists() and not replace:
            raise RunError(f"{to}: exists already and is not overwritten. Choose another name or remove it.")
    found: list[dict[str, Any]] = []
    refusals: list[TauonError] = []
    subject: ExportSubject | None = None
    program: Program | None = None
    batches: list[Batch] = []
    for i, (name, to) in enumerate(places.items()):
        ctx.on_event("progress", what=f"exporting to {name}", done=i, total=len(places))
        began = time.perf_counter()
        try:
            if name in PROGRAMS:
                if subject is None:
                    ctx.refuse_changed_data()
                    subject, batches = export_subject(ctx, checkpoint), held_out_batches(ctx, config.examples)
                record, program = _program(subject, to, name, batches, config, program, compressed, replace)
            elif compressed is not None:
                raise DataError(
                    f"{name} has weights of the trained model; a compressed one is exported as a program: --to onnx. Without compression: "
                    f"tauon export {compressed.run} --to {name}"
                )
            else:
                record = export_weights(checkpoint.path, to, format=name, replace=replace)
        except (DataError, MissingExtra, RecipeError) as err:
            refusals.append(err)
            found.append({"kind": name, "refused": str(err), "compressed": compressed is not None})
            continue
        found.append(record | {"folder": str(to), "seconds": round(time.perf_counter() - began, 2)})
    ctx.on_event("progress", what="exporting", done=len(places), total=len(places))
    if replace:
        _remember(ctx.run.folder, found)
    if refusals:
        raise refusals[0]
    return found


def _program(
    subject: ExportSubject, to: Path, name: str, batches: list[Batch], config: ExportConfig, program: Program | None,
    compressed: CompressedRun | None, replace_earlier: bool,
) -> tuple[dict[str, Any], Program]:  # fmt: skip
    """Write one program; return its record, and the traced program for other formats."""
    reference: Any = None if compressed is None else compressed.model
    if program is None:
        graph = isinstance(reference, GraphInt8)
        program = reference.program() if graph else trace(subject.task, reference or subject.model, max(batches, key=len))
    subject = subject if reference is None else replace(subject, precision="compressed")
    record = write_bundle(subject, to, name, batches, reference=reference, program=program, latency=config.latency, replace=replace_earlier)
    return record | {"compressed": compressed is not None}, program


def _remember(folder: Path, found: Sequence[dict[str, Any]]) -> None:
    """Add these exports to `export/export.json`; a format that was exported before is replaced."""
    path = folder / RECORD
    before = read_json(path).get("exports", []) if path.is_file() else []
    kinds = {(entry["kind"], bool(entry.get("compressed"))) for entry in found}
    shown = [{k: v for k, v in entry.items() if k not in ("preprocess", "source", "spec", "signature")} for entry in found]
    path.parent.mkdir(exist_ok=True)
    write_json(
        path,
        {"format": "tauon-export/1", "exports": [e for e in before if (e.get("kind"), bool(e.get("compressed"))) not in kinds] + shown},
    )


def export_subject(ctx: Context, checkpoint: Checkpoint) -> ExportSubject:
    """Return the model of a checkpoint in float32 on the CPU, and everything that a bundle has beside it."""
    recipe, state, folder = ctx.recipe, checkpoint.state, ctx.run.folder
    model, precision = load_model(checkpoint, recipe, weights=recipe.evaluate.weights)
    private = recipe.privacy is not None
    lineage: dict[str, Any] = {
        "run": recipe.name, "checkpoint": checkpoint.hash, "step": checkpoint.step, "tauon": __version__,
        "trained_with": precision.name, "versions": _versions(),
    }  # fmt: skip
    card = folder / "card.md"
    files = {"recipe.yaml": to_yaml(recipe)}
    if not private:  # a hash of the data, and figures about it, are not covered by the guarantee
        lineage["data"] = ctx.splits.fingerprint
        files |= {"README.md": card.read_text(encoding="utf-8")} if card.is_file() else {}
    return ExportSubject(
        model.cpu().eval(), recipe.task, state["preprocess"], state.get("spec") or {}, recipe.data.source, "fp32", lineage, files, private
    )


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in ("torch", "numpy", "onnx", "onnxruntime", "openvino", "executorch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def held_out_batches(ctx: Context, examples: int) -> list[Batch]:
    """Return real examples, held out if some are, in batches of one, a few and many; of texts also of another length."""
    splits = ctx.splits
    dataset: Dataset = next(d for d in (splits.test, splits.validation, without_augmentation(splits.train)) if d is not None and len(d))
    n = min(len(dataset), examples)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, n).astype(np.int64))
    cuts = sorted({0, 1, min(6, len(chosen)), *range(6, len(chosen), 64), len(chosen)})
    batches = [dataset.batch(chosen[a:b]) for a, b in itertools.pairwise(cuts)]
    if batches[0].inputs.dtype.is_floating_point:
        return batches
    return [*batches, *(shorter for b in batches[1:2] if (shorter := _shorter(b)) is not None)]


def _shorter(batch: Batch) -> Batch | None:
    """Return texts cut to the longest of them, or running text cut to two thirds."""
    T = batch.inputs.shape[1]
    length = T * 2 // 3
    if batch.segments is not None:
        length = max(int((batch.segments >= 0).sum(1).max()), 1)
    if length == T or length < 1 or batch.inputs.ndim != 2:
        return None
    cut = {f.name: v[:, :length] for f in fields(batch) if (v := getattr(batch, f.name)) is not None and v.ndim == 2 and v.shape[1] == T}
    return replace(batch, **cut)
