"""MNIST as arrays, and a data set in memory, for the benchmarks of influence. Reads the IDX files of `TAUON_DATA`, or the mirror beside the checkout."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np


def read(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` pictures (count, 28, 28), uint8, and labels; `split`: train or test."""
    name = {"train": "train", "test": "t10k"}[split]
    places: list[str | Path] = [os.environ.get("TAUON_DATA", ""), Path(__file__).parents[2] / "shared" / "data"]
    folder = next((Path(p) / "mnist" for p in places if p and (Path(p) / "mnist").is_dir()), None)
    if folder is None:
        raise SystemExit("MNIST was not found: set TAUON_DATA to a folder with mnist/train-images-idx3-ubyte.gz")
    pictures, labels = (gzip.decompress((folder / f"{name}-{what}-ubyte.gz").read_bytes()) for what in ("images-idx3", "labels-idx1"))
    return (
        np.frombuffer(pictures, np.uint8, offset=16).reshape(-1, 28, 28)[:count].copy(),
        np.frombuffer(labels, np.uint8, offset=8)[:count].copy(),
    )


class Rows:
    """Tensors as a data set."""

    def __init__(self, x: Any, y: Any) -> None:
        from tauon.types import DataSpec

        self.x, self.y = x, y
        self.spec = DataSpec(input_shape=tuple(x.shape[1:]), outputs=10)
        self.facts: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Any:
        import torch

        from tauon.types import Batch

        rows = torch.as_tensor(np.asarray(index))
        return Batch(self.x[rows], self.y[rows], torch.ones(len(rows)), index=rows)
