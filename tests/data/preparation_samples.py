"""Recipes' sections and small data: shared by the tests of `prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tauon.config import parse
from tauon.data import DataConfig, TokenDataset


def write_corpus(folder: Path) -> Path:
    """Thirty files of made-up prose, one of them twice."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = ["river", "stone", "light", "under", "quiet", "morning", "of", "the", "a", "and\n"]
    for i in range(30):
        (folder / f"{i:02d}.txt").write_text(" ".join(rng.choice(words, 120)) + f"\nnumber {i}\n")
    (folder / "copy.txt").write_text((folder / "07.txt").read_text())
    return folder


def config(**values: Any) -> DataConfig:
    return parse(DataConfig, values)


def text_config(corpus: Path, **values: Any) -> DataConfig:
    return config(source={"kind": "text", "path": str(corpus)}, **{"tokenizer": {"kind": "bpe", "vocab": 300}, "seq_len": 32} | values)


def decoded(data: Any) -> list[str]:
    assert isinstance(data, TokenDataset)
    return [data.tokenizer.decode(d) for d in data.shards.documents()]


def blobs(tmp_path: Path, n: int = 200, **more: Any) -> str:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    np.savez(tmp_path / "blobs.npz", x=rng.normal(size=(n, 4)) + y[:, None], y=y, **more)
    return str(tmp_path / "blobs.npz")
