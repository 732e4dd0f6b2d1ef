"""Small trained runs of every kind of data, for the tests of serving; made once for a session."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from tauon.config import parse
from tauon.pipeline import run
from tauon.recipe import Recipe
from tones import tone, write_wav

TRAIN = {"steps": 30, "batch": 16, "validate_every": None}
KINDS = ("table", "pictures", "texts", "recordings", "series")
FITTED = ("trees", "tfidf")
"""Models that are fitted as a whole."""


@cache
def world() -> Path:
    return Path(mkdtemp(prefix="tauon-serve-tests-"))


def trained(name: str, data: dict[str, Any], task: Any, model: Any, **more: Any) -> Path:
    recipe = {"name": name, "data": data, "task": task, "model": model, "optim": {"kind": "adam", "lr": 0.01}, "train": TRAIN}
    return run(parse(Recipe, recipe | more), root=world() / "runs", stages=("prepare", "train")).folder


@cache
def run_of(kind: str) -> Path:
    """The folder of a trained run of one kind of data."""
    return {
        "trees": trees, "tfidf": tfidf, "table": table, "pictures": pictures, "texts": texts, "recordings": recordings, "series": series, "language": language, "chat": chat,
    }[kind]()  # fmt: skip


def trees() -> Path:
    return table("trees", model={"kind": "gradient-boosting", "rounds": 8, "leaves": 4})


def tfidf() -> Path:
    return texts("tfidf", {"kind": "tfidf", "buckets": 997})


def table(name: str = "table", seed: int = 0, model: Any = None) -> Path:
    rng = np.random.default_rng(seed)
    age, town = rng.integers(18, 80, 200), rng.choice(["Bonn", "Köln", "Ulm"], 200)
    rows = [f"{a},{t},{'yes' if a > 40 or t == 'Ulm' else 'no'}" for a, t in zip(age, town, strict=True)]
    path = world() / f"{name}.csv"
    path.write_text("age,town,paid\n" + "\n".join(rows) + "\n")
    return trained(
        name, {"source": {"kind": "csv", "path": str(path), "label": "paid"}}, "classification", model or {"kind": "mlp", "hidden": [8]}
    )


def pictures() -> Path:
    from PIL import Image

    rng, folder = np.random.default_rng(0), world() / "images"
    for i in range(40):
        path = folder / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((rng.integers(0, 120, (12, 12, 3)) + 100 * (i % 2)).astype(np.uint8)).save(path)
    return trained("pictures", {"source": {"kind": "folder", "path": str(folder)}}, "classification", {"kind": "cnn", "channels": [8]})


def texts(name: str = "texts", model: Any = None) -> Path:
    path = world() / f"{name}.csv"
    lines = [f"{'good film, liked it' if i % 2 else 'bad film, hated it'} {i},{'good' if i % 2 else 'bad'}" for i in range(80)]
    path.write_text("text,label\n" + "\n".join(f'"{a.rsplit(",", 1)[0]}",{a.rsplit(",", 1)[1]}' for a in lines) + "\n")
    data = {"source": {"kind": "csv", "path": str(path), "text": "text", "label": "label"}}
    return trained(name, data, "text-classification", model or {"kind": "text-bag"})


def recordings() -> Path:
    folder = world() / "recordings"
    for i in range(40):
        write_wav(folder / ("yes", "no")[i % 2] / f"{i}.wav", tone(300 + 300 * (i % 2), 0.1 + 0.01 * (i % 5), 8000, seed=i), 8000)
    data = {"source": {"kind": "wav", "path": str(folder)}}
    return trained("recordings", data, "audio-classification", {"kind": "speech-cnn", "channels": [4], "mels": 8})


def series() -> Path:
    rng, n = np.random.default_rng(0), 300
    values = 2e3 + 50 * np.sin(np.arange(n) / 4) + rng.normal(size=n)
    lines = [f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00,{values[i]:.3f}" for i in range(n)]
    (world() / "series.csv").write_text("date,load\n" + "\n".join(lines) + "\n")
    data = {
        "source": {"kind": "series", "path": str(world() / "series.csv")},
        "window": {"context": 24, "horizon": 6},
        "split": {"test": 0.2},
    }
    return trained("series", data, "forecasting", {"kind": "dlinear"})


def language(name: str = "language", seed: int = 7, **train: Any) -> Path:
    path = world() / "words.txt"
    path.write_text("the cat sat on the mat. the dog sat on the log. " * 60)
    data = {"source": {"kind": "text", "path": str(path)}, "tokenizer": {"kind": "bytes"}, "seq_len": 64}
    model = {"kind": "gpt", "layers": 2, "width": 32, "heads": 2}
    return trained(name, data, "language-modelling", model, seed=seed, train=TRAIN | train)


def chat() -> Path:
    import json

    path = world() / "chat.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"Is {i} even?"}, {"role": "assistant", "content": "yes" if i % 2 == 0 else "no"}]}
        for i in range(60)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    data = {"source": {"kind": "chat", "path": str(path)}, "tokenizer": {"kind": "bytes"}, "seq_len": 256}
    return trained("chat", data, "instruction-tuning", {"kind": "gpt", "layers": 2, "width": 32, "heads": 2})


def raw(kind: str) -> tuple[Path, str]:
    """A file for `tauon predict` and its content type, of the same kind as the training data."""
    return {
        "table": (world() / "table.csv", "text/csv"),
        "trees": (world() / "trees.csv", "text/csv"),
        "tfidf": (world() / "tfidf.csv", "text/csv"),
        "pictures": (world() / "images" / "dog" / "1.png", "image/png"),
        "texts": (world() / "texts.csv", "text/csv"),
        "recordings": (world() / "recordings" / "no" / "1.wav", "audio/wav"),
        "series": (world() / "series.csv", "text/csv"),
    }[kind]
