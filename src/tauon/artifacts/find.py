"""Find the checkpoint of a folder: the folder itself, or the final one of a run."""

from __future__ import annotations

from pathlib import Path

from tauon.artifacts.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from tauon.artifacts.run import RunFolder
from tauon.errors import CheckpointError, RunError

__all__ = ["find_checkpoint", "run_of_compressed"]


def find_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, or the final one of the run there; if the run is not finished, the newest. Its bytes are not checked.

    Raises `CheckpointError` if there is none.
    """
    if (path / "state.json").is_file():
        return load_checkpoint(path, verify=False)
    folder = path
    if (path / "checkpoints").is_dir():
        folder = path / "checkpoints"
        try:
            done = RunFolder.read(path).stage("train")
        except RunError:
            done = None
        if done is not None:
            return load_checkpoint(folder / str(done["checkpoint"]), verify=False)
    newest = latest_checkpoint(folder, warn=lambda _: None, verify=False)
    if newest is None:
        raise CheckpointError(f"{path} has neither a config.json nor a checkpoint of Tauon. Give a trained run, or a Hugging Face folder.")
    return newest


def run_of_compressed(path: Path) -> Path:
    """Return the run whose compressed model is in the folder `path`; any other path as it is."""
    if (path / "compressed.json").is_file() or (path / "model" / "compressed.json").is_file():
        path = path.absolute()
        return next((p for p in (path.parent, path.parent.parent) if (p / "recipe.yaml").is_file()), path)
    return path
