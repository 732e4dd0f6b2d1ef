"""Open the compressed model of a run, `RUN/compress`, for predictions, texts and exports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tauon.artifacts import read_json
from tauon.compress import open_compressed
from tauon.errors import RunError

__all__ = ["CompressedRun", "is_compressed", "open_compressed_run"]


@dataclass(frozen=True)
class CompressedRun:
    """A compressed model and the run that it was made from."""

    run: Path
    model: nn.Module
    """In torch. A graph of integers is imitated; its program is the bundle."""
    bundle: Path | None
    """The verified program of the runtime that was chosen."""
    record: dict[str, Any]

    @property
    def runtime(self) -> str:
        """Runtime that was chosen: eager, onnx, ..."""
        return str(self.record.get("runtime"))


def is_compressed(place: Path) -> bool:
    """Return whether a folder is a run's `compress`."""
    return (place / "compress.json").is_file() and (place.resolve().parent / "recipe.yaml").is_file()


def open_compressed_run(place: Path) -> CompressedRun:
    """Open `RUN/compress`.

    Raises:
        RunError: no candidate had kept the promise, so there is no model; or the model was trained again since.
    """
    record, run = read_json(place / "compress.json"), place.resolve().parent
    if not (place / "model" / "compressed.json").is_file():
        raise RunError(
            f"{place} has no model, because {record.get('reason')}\nUse the trained model, {run}, or allow a larger drop where that is what failed: "
            f"tauon compress {run} --max-drop 5%"
        )
    bundle = place / "bundle"
    return CompressedRun(run, open_compressed(place / "model").model, bundle if (bundle / "bundle.json").is_file() else None, dict(record))
