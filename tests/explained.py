"""Tiny trained runs of every kind of data, made of generated files, for the tests of explanations."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from tauon.config import parse
from tauon.pipeline import run
from tauon.recipe import Recipe
from tones import tone, write_wav
from toy import merged, words

FEW: dict[str, Any] = {"sample": 60, "examples": 3, "checks": {"examples": 4}, "influence": {"most": 30}}
"""Settings of an explanation that takes under a second."""
TRAIN = {"steps": 12, "batch": 16, "checkpoint_every": None, "validate_every": None, "precision": "fp32", "compile": False}
KINDS: dict[str, dict[str, Any]] = {}
UNEXPLAINED = ("speech", "masked", "chat", "pairs")
"""Kinds whose models cannot be explained."""


def kind(name: str, **sections: Any) -> None:
    KINDS[name] = sections


def loans(path: Path, n: int = 240) -> None:
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["age", "town", "since", "zone", "paid", "amount", "fee"])
        for i in range(n):
            town = ("Bonn", "Kiel", "Ulm")[int(rng.integers(3))]
            age = "" if i % 9 == 0 else int(rng.integers(20, 70))
            paid = "yes" if (town == "Bonn") ^ (rng.random() < 0.1) else "no"
            amount = 100 * (rng.normal() + (town == "Ulm"))
            out.writerow(
                [age, "" if i % 11 == 0 else town, f"2020-{i % 12 + 1:02d}-03", i % 3 + 1, paid, f"{amount:.2f}", f"{amount / 7:.2f}"]
            )


def pictures(path: Path, size: tuple[int, int] = (12, 12), channels: int = 3, n: int = 150) -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, n)
    x = (rng.integers(0, 120, (n, *size, channels)) + 40 * y[:, None, None, None]).astype(np.uint8)
    cut = 2 * n // 3
    np.savez(path, x_train=x[:cut], y_train=y[:cut], x_test=x[cut:], y_test=y[cut:])


def series(path: Path, n: int = 260) -> None:
    t = np.arange(n)
    dates = np.datetime64("2024-01-01T00") + t.astype("timedelta64[h]")
    a, b = 50 + 9 * np.sin(t / 4), 5 + np.cos(t / 7)
    path.write_text("date,a,b\n" + "".join(f"{d},{x:.4f},{y:.4f}\n" for d, x, y in zip(dates, a, b, strict=True)))


def sounds(folder: Path, n: int = 48) -> None:
    for i in range(n):
        write_wav(folder / ("yes", "no")[i % 2] / f"{i}.wav", tone(300 + 300 * (i % 2), 0.1 + 0.01 * (i % 5), 8000, seed=i), 8000)


def texts(path: Path) -> None:
    good, bad = ("a lovely film", "great fun", "fine work"), ("a dull film", "no fun", "poor work")
    rows = [{"text": f"{(good if i % 2 else bad)[i % 3]} number {i}", "label": "good" if i % 2 else "bad"} for i in range(120)]
    path.write_text("\n".join(map(json.dumps, rows)))


def numbers(path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    y: Any = 100 * x[:, :2] + rng.normal(size=(200, 2))
    if kind == "flags":
        y = (y > 0).astype(np.float64)
    if kind == "steps":
        y = np.digitize(x[:, 0], [-0.6, 0.6])
    np.savez(path, x_train=x[:140], y_train=y[:140], x_test=x[140:], y_test=y[140:])


FILES = {
    "loans.csv": loans, "pictures.npz": pictures, "series.csv": series, "sounds": sounds, "films.jsonl": texts,
    "values.npz": lambda p: numbers(p, "values"), "flags.npz": lambda p: numbers(p, "flags"), "steps.npz": lambda p: numbers(p, "steps"),
    "text.txt": lambda p: p.write_text(words(1500)),
    "chat.json": lambda p: p.write_text(json.dumps([{"instruction": f"Double {i % 7}.", "input": "", "output": f"It is {2 * (i % 7)}."} for i in range(60)])),
    "pairs.json": lambda p: p.write_text(json.dumps([{"prompt": f"Is {i} fine?", "chosen": "yes, it is", "rejected": "no, never"} for i in range(40)])),
    "said.csv": lambda p: p.write_text("file,text\n" + "".join(f"{('yes', 'no')[i % 2]}/{i}.wav,{('yes', 'no')[i % 2]}\n" for i in range(48))),
}  # fmt: skip


def table(encoding: str, label: str = "paid", **more: Any) -> dict[str, Any]:
    return {
        "source": {"kind": "csv", "path": "@loans.csv", "label": label, "categorical": ["zone"]}, "normalize": "standard", "split": {"test": 0.3},
        "table": {"impute": "median", "indicators": True, "dates": ["month"], "categories": encoding},
    } | more  # fmt: skip


MLP = {"kind": "mlp", "hidden": [8]}
for encoding in ("codes", "onehot", "ordinal", "target"):
    kind(f"table-{encoding}", data=table(encoding), task="classification", model=MLP)
kind("table-quantile-normalize", data=table("onehot", normalize="quantile"), task="classification", model=MLP)
kind("table-tabular", data=table("codes"), task="classification", model={"kind": "ft-transformer", "width": 8, "heads": 2, "layers": 1})
kind("table-tabm", data=table("codes"), task="classification", model={"kind": "tabm", "members": 2, "width": 8, "layers": 1})
kind("regression", data=table("onehot", "amount"), task="regression", model=MLP)
VALUES = {"kind": "npz", "path": "@values.npz", "target": "value", "label_names": ["red", "blue"]}
kind("targets", data={"source": VALUES}, task="regression", model=MLP)
kind("quantiles", data={"source": VALUES}, task="quantile-regression", model=MLP)
kind("multi-label", data={"source": VALUES | {"path": "@flags.npz"}}, task="multi-label", model=MLP)
kind("ordinal", data={"source": {"kind": "npz", "path": "@steps.npz", "label_names": ["low", "middle", "high"]}, "label_order": ["low", "middle", "high"]}, task="ordinal", model=MLP)  # fmt: skip
IMAGES = {"source": {"kind": "npz", "path": "@pictures.npz"}}
kind("images", data=IMAGES, task="classification", model={"kind": "cnn", "channels": [8]})
kind("images-vit", data=IMAGES, task="classification", model={"kind": "vit", "layers": 1, "width": 16, "heads": 2, "patch": 4})
FILMS = {
    "source": {"kind": "jsonl", "path": "@films.jsonl", "text": "text", "label": "label"}, "tokenizer": {"kind": "bpe", "vocab": 300}, "seq_len": 24,
    "split": {"test": 0.3},
}  # fmt: skip
kind("texts-bag", data=FILMS, task="text-classification", model={"kind": "text-bag", "buckets": 997})
kind("texts-bert", data=FILMS, task="text-classification", model={"kind": "bert", "layers": 1, "width": 16, "heads": 2})
SERIES = {"source": {"kind": "series", "path": "@series.csv"}, "window": {"context": 24, "horizon": 6}, "split": {"test": 0.3}}
kind("series-dlinear", data=SERIES, task="forecasting", model={"kind": "dlinear"})
kind(
    "series-patchtst",
    data=SERIES,
    task="forecasting",
    model={"kind": "patchtst", "layers": 1, "width": 16, "heads": 2, "patch": 6, "stride": 6},
)
kind("series-calendar", data=merged(SERIES, {"window": {"calendar": ["hour"]}}), task="forecasting", model={"kind": "lstm", "width": 8})
kind(
    "series-inputs",
    data=merged(SERIES, {"source": {"targets": ["a"], "inputs": ["b"]}}),
    task="forecasting",
    model={"kind": "lstm", "width": 8},
)
kind(
    "series-quantiles",
    data=SERIES,
    task={"kind": "forecasting", "loss_kind": "quantile", "quantiles": [0.1, 0.5, 0.9]},
    model={"kind": "lstm", "width": 8},
)
SOUNDS = {"source": {"kind": "wav", "path": "@sounds"}, "split": {"test": 0.3}}
CONFORMER = {"kind": "conformer", "layers": 1, "width": 16, "heads": 2, "mels": 8, "kernel": 5}
kind("sounds-cnn", data=SOUNDS, task="audio-classification", model={"kind": "speech-cnn", "channels": [4], "mels": 8})
kind("sounds-conformer", data=SOUNDS, task="audio-classification", model=CONFORMER)
kind("speech", data=merged(SOUNDS, {"source": {"transcripts": "@said.csv"}}), task="speech-recognition", model=CONFORMER)
GPT = {"kind": "gpt", "layers": 1, "width": 16, "heads": 2}
TEXT = {"source": {"kind": "text", "path": "@text.txt"}, "tokenizer": {"kind": "bpe", "vocab": 280}, "seq_len": 16}
kind("gpt", data=TEXT, task="language-modelling", model=GPT)
kind("gpt-long", data=TEXT | {"seq_len": 160}, task="language-modelling", model=GPT)
kind("masked", data=TEXT, task="masked-language-modelling", model={"kind": "bert", "layers": 1, "width": 16, "heads": 2})
kind("chat", data={"source": {"kind": "chat", "path": "@chat.json"}, "split": {"validation": "20%"}, "seq_len": 160}, task="instruction-tuning", model={"from": "@@gpt-long"})  # fmt: skip
kind("pairs", data={"source": {"kind": "pairs", "path": "@pairs.json"}, "split": {"validation": "20%"}, "seq_len": 160}, task={"kind": "dpo"}, model={"from": "@@gpt-long"})  # fmt: skip
kind(
    "lora",
    data={"source": TEXT["source"], "seq_len": 16},
    task="language-modelling",
    model={"from": "@@gpt"},
    adapt={"kind": "lora", "rank": 2},
)
kind("ema", data=table("onehot"), task="classification", model=MLP, train={"ema": 0.9}, evaluate={"weights": "ema"})
kind(
    "iris",
    data={"source": {"kind": "sklearn", "name": "iris"}, "split": {"test": 0.3, "validation": 0.1}},
    task="classification",
    model=MLP,
)


class Worlds:
    """Trains each kind of run once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[str, Path] = {}

    def file(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            FILES[name](path)
        return path

    def __getitem__(self, name: str) -> Path:
        if name not in self.runs:
            self.runs[name] = self.train(name, **KINDS[name])
        return self.runs[name]

    def train(self, name: str, **sections: Any) -> Path:
        """Train a run of these sections; "@FILE" is a file of `FILES`, "@@NAME" another run."""
        base = {"name": name, "optim": {"kind": "adam", "lr": 0.01}, "train": TRAIN, "evaluate": {"resamples": 100}, "explain": FEW}
        if name in UNEXPLAINED:
            del base["explain"]
        recipe = parse(Recipe, merged(base, self._filled(sections)))
        return run(recipe, root=self.folder / "runs", stages=("prepare", "train")).folder

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: self._filled(v) for k, v in value.items()}
        if isinstance(value, str) and value.startswith("@@"):
            return str(self[value[2:]])
        return str(self.file(value[1:])) if isinstance(value, str) and value.startswith("@") else value
