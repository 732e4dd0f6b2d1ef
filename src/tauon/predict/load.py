"""Open a trained run or a bundle for prediction: its model in evaluation mode, its task, how its training data was read and prepared.

The only place that opens a run and loads its weights for prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tauon.artifacts import WEIGHTS, RunFolder, load_checkpoint
from tauon.data import SourceConfig
from tauon.errors import CheckpointError, RunError
from tauon.export import is_bundle, open_bundle
from tauon.recipe import load_recipe
from tauon.stages.compressed import is_compressed, open_compressed_run
from tauon.stages.context import Context, null_callback
from tauon.stages.load import load_model
from tauon.tasks import Task
from tauon.train import Precision

__all__ = ["Trained", "open_trained"]


@dataclass(frozen=True)
class Trained:
    """A model, and everything needed to give it new data."""

    model: Any
    task: Task
    precision: Any
    preprocess: Mapping[str, Any]
    source: SourceConfig
    """Source of the training data: how such files are read (delimiter, encoding, size of images)."""
    where: str


def open_trained(place: Path | str, *, weights: str = "auto", device: str | None = None) -> Trained:
    """Open the folder of a run, of one of its checkpoints, or a bundle that `tauon export` wrote.

    Args:
        place: a run's folder, a checkpoint's in it (`runs/x/checkpoints/step-000500`), a bundle (`runs/x/export/onnx`), or its
            compressed model (`runs/x/compress`).
        weights: auto (the moving average if training kept one), raw, or ema. A bundle has one set of weights.
        device: cpu, cuda, cuda:1, ...; default: the recipe's `train.device`. Bundles compute on the CPU.
    """
    place = Path(place)
    if is_bundle(place):
        return _open_bundle(place)
    if is_compressed(place):
        return _open_compressed(place)
    chosen = place.resolve().parents[1] if place.resolve().parent.name == "checkpoints" else None
    folder = chosen or place
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is not a run: it has no recipe.yaml. Give the folder of a trained run; `tauon runs list` shows them.")
    recipe = load_recipe(folder, [] if device is None else [f"train.device={device}"])
    checkpoint = (
        load_checkpoint(place, verify=WEIGHTS) if chosen else Context(recipe, RunFolder.read(folder), null_callback).final_checkpoint
    )
    preprocess = checkpoint.state.get("preprocess")
    if not preprocess:
        raise CheckpointError(
            f"{checkpoint.path} has no record of how its data was prepared, because an older version wrote it. Train again: tauon train {folder} --fresh"
        )
    model, precision = load_model(checkpoint, recipe, weights=weights)
    return Trained(model.eval(), recipe.task, precision, preprocess, recipe.data.source, str(folder))


def _open_compressed(place: Path) -> Trained:
    """Open `RUN/compress`: the program of the runtime that was chosen, or the smaller model in torch."""
    found = open_compressed_run(place)
    if found.bundle is not None:
        return _open_bundle(found.bundle)
    recipe = load_recipe(found.run)
    checkpoint = Context(recipe, RunFolder.read(found.run), null_callback).final_checkpoint
    if checkpoint.hash != found.record.get("checkpoint"):
        raise RunError(f"{place} was made from an earlier training of the run. Compress again: tauon compress {found.run}")
    return Trained(found.model, recipe.task, Precision("fp32", "cpu"), checkpoint.state["preprocess"], recipe.data.source, str(place))


def _open_bundle(folder: Path) -> Trained:
    bundle = open_bundle(folder)
    return Trained(bundle.load(), bundle.task, Precision("fp32", "cpu"), bundle.record["preprocess"], bundle.source, str(folder))
