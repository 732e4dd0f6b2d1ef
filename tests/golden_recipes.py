"""Small recipes whose loss curves are kept, so that a change that was not meant shows: shared by the tests and by what writes the curves.

python tests/golden_recipes.py        after a change that is meant: writes tests/golden/*.json; read the difference
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HERE = Path(__file__).parent
STEPS = 30
WORDS = ["the", "a", "heavy", "lepton", "decays", "quickly", "into", "lighter", "ones", "and", "neutrinos", "\n"]


def text(folder: Path) -> dict[str, Any]:
    """A language model with dropout, packed documents, accumulation, clipping and averaged weights."""
    (folder / "text.txt").write_text("\n\n".join(" ".join(random.Random(i).choices(WORDS, k=60)) for i in range(30)))
    return {
        "data": {"source": {"kind": "text", "path": str(folder / "text.txt"), "document_start": "\n\n"}, "tokenizer": "bytes", "seq_len": 32},
        "task": "language-modelling", "model": {"kind": "gpt", "layers": 2, "width": 32, "heads": 2, "dropout": 0.1},
        "optim": {"kind": "adamw", "lr": 1e-2, "clip_norm": 1.0, "schedule": {"kind": "cosine", "warmup": 5}},
        "train": {"batch": 8, "microbatch": 4, "ema": 0.9},
    }  # fmt: skip


def table(folder: Path) -> dict[str, Any]:
    """A table with words, gaps and numbers."""
    draws = np.random.default_rng(0)
    x, word = draws.normal(size=(300, 3)), draws.integers(0, 4, 300)
    label = (x[:, 0] - x[:, 1] + 0.5 * (word == 2) + 0.3 * draws.normal(size=300) > 0).astype(int)
    rows = (
        f"{'' if i % 29 == 3 else format(a, '.4f')},{b:.4f},{c:.4f},{['red', 'green', 'blue', 'grey'][w]},{y}"
        for i, ((a, b, c), w, y) in enumerate(zip(x.tolist(), word.tolist(), label.tolist(), strict=True))
    )
    (folder / "table.csv").write_text("a,b,c,colour,y\n" + "\n".join(rows) + "\n")
    return {
        "data": {"source": {"kind": "csv", "path": str(folder / "table.csv"), "label": "y"}, "table": {"impute": "median"}},
        "task": "classification", "model": {"kind": "wide-and-deep", "hidden": [16, 16], "dropout": 0.1},
        "optim": {"kind": "adam", "lr": 1e-2}, "train": {"batch": 32},
    }  # fmt: skip


def pictures(folder: Path) -> dict[str, Any]:
    """Pictures, augmented, through a small convolutional network."""
    draws = np.random.default_rng(1)
    label = draws.integers(0, 3, 240)
    x = draws.integers(0, 120, (240, 1, 12, 12)).astype(np.uint8)
    for i, y in enumerate(label.tolist()):
        x[i, 0, 3 * y : 3 * y + 4, 2:10] += 100
    np.savez(folder / "pictures.npz", x=x, y=label)
    return {
        "data": {
            "source": {"kind": "npz", "path": str(folder / "pictures.npz")},
            "augment": [{"kind": "shift", "pixels": 2}, {"kind": "flip"}],
        },
        "task": "classification", "model": {"kind": "cnn", "channels": [8, 16]},
        "optim": {"kind": "adamw", "lr": 2e-2}, "train": {"batch": 32},
    }  # fmt: skip


def private(folder: Path) -> dict[str, Any]:
    """A private table: bounds, clipping, noise that can be drawn again."""
    made = table(folder)
    made["data"] |= {"normalize": "bounds", "bounds": {"*": [-4, 4]}, "table": {"impute": "constant"}}
    made["privacy"] = {"noise_multiplier": 1.0, "delta": 1e-4, "generator": "seeded"}
    return made | {"optim": {"kind": "sgd", "lr": 0.5}}


RECIPES = {f.__name__: f for f in (text, table, pictures, private)}


def write_recipe(name: str, folder: Path) -> Path:
    """The recipe's file in `folder`, with its data."""
    made = RECIPES[name](folder)
    made["data"] = {"split": {"validation": "10%", "test": "10%"}, "cache": str(folder / "cache")} | made["data"]
    made["train"] = {
        "steps": STEPS, "precision": "fp32", "compile": False, "attention": "fused", "validate_every": 10, "checkpoint_every": STEPS, "validate_examples": 24,
    } | made["train"]  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": name, "seed": 5, **made}, sort_keys=False))
    return path


def curve(name: str, folder: Path) -> dict[str, list[float]]:
    """Loss of each step, and of each validation."""
    from tauon.pipeline import run
    from tauon.recipe import load_recipe
    from tauon.tracking import read_events

    done = run(load_recipe(write_recipe(name, folder)), root=folder / "runs", stages=("prepare", "train"))
    events = list(read_events(done.events_path))
    return {
        kind: [e["loss"] for e in events if e.get("kind", e.get("event")) == of]
        for kind, of in (("train", "step"), ("validation", "validate"))
    }


if __name__ == "__main__":
    sys.path.append(str(HERE))
    for name in sys.argv[1:] or RECIPES:
        with tempfile.TemporaryDirectory() as made_in:
            found = curve(name, Path(made_in))
        (HERE / "golden" / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(name, found["train"][0], found["train"][-1], found["validation"])
