"""Chest X-rays at three hospitals: `tauon federate` as coordinator and sites in network namespaces, with TLS, node keys and secure aggregation, through a
killed site and a killed coordinator.

    TAUON_DATA=.../data python tests/federated/chest.py [FOLDER]      as root, about 5 minutes; prints what happens

The data are PneumoniaMNIST, dealt to three sites of unequal size; the coordinator has a few pictures of its own for validation. At the end the
federated model is evaluated on the published test set.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from federated.deployment import ADDRESS, PORT, SITES, Plan, make_keys, play
from federated.namespaces import available

SHARES = (0.6, 0.3, 0.1)
ROUNDS = 8


def deal(source: Path, folder: Path) -> None:
    """Write `<site>.npz` for each site and `public.npz` for the coordinator: its training part has 100 pictures that no site has."""
    with np.load(source) as found:
        arrays = {name: found[name] for name in found.files}
    order = np.random.default_rng(7).permutation(len(arrays["train_labels"]))
    ends = np.round(np.cumsum(SHARES) * (len(order) - 100)).astype(int) + 100
    parts = np.split(order, [100, *ends[:-1]])
    for name, rows in zip(["public", *SITES], parts, strict=True):
        own = {k: v[rows] if k.startswith("train") else v for k, v in arrays.items()}
        np.savez(folder / f"{name}.npz", **own)


def recipe(folder: Path, rounds: int) -> Path:
    """Write the recipe that all parties have: the shipped one, with preprocessing that is not fitted to the data of one place."""
    tree: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "chest-xray.yaml").read_text())
    tree["name"] = "chest"
    tree["data"] = {"source": {"kind": "npz", "path": str(folder / "public.npz")}, "normalize": "unit", "augment": tree["data"]["augment"]}
    tree["train"] = {"epochs": 1, "batch": 64}
    tree["optim"] = {"kind": "adamw", "lr": 2e-3, "weight_decay": 0.05, "schedule": {"kind": "cosine", "warmup": 0}}
    tree["federate"] = {
        "rounds": rounds, "sites": 3, "attempts": 200, "timeout": "60s", "weighting": {"max_examples": 3000}, "secure_aggregation": {"timeout": "20s"},
    }  # fmt: skip
    path = folder / "chest.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def hospitals(source: Path, folder: Path, rounds: int = ROUNDS) -> Plan:
    """The plan: `tauon federate serve` and three `tauon federate join`."""
    deal(source, folder)
    path = recipe(folder, rounds)
    tauon = [sys.executable, "-u", "-m", "tauon", "federate"]
    join = {}
    for name in SITES:
        keys = folder / f"keys-{name}"
        keys.mkdir()
        for file in (f"{name}.key", "ca.crt"):
            shutil.copy2(folder / file, keys)
        join[name] = [
            *tauon, "join", ADDRESS, str(path), "--name", name, "--data", str(folder / f"{name}.npz"), "--keys", str(keys), "--root",
            str(folder / name), "--json",
        ]  # fmt: skip
    serve = [*tauon, "serve", str(path), "--address", f"0.0.0.0:{PORT}", "--keys", str(folder), "--root", str(folder / "runs"), "--json"]
    return Plan(
        serve, join, rounds, round_of, seconds=120.0, killed_after=1, step=1, cut=False, alone=False, environ={"OMP_NUM_THREADS": "1"}
    )


def round_of(line: str) -> int | None:
    """Round of a line of the coordinator's, or None."""
    if not line.startswith("{"):
        return None
    event = json.loads(line)
    return int(event["step"]) if event.get("kind") == "step" else None


def main() -> None:
    source = Path(os.environ.get("TAUON_DATA", "../shared/data")) / "medmnist" / "pneumoniamnist.npz"
    if reason := available() or ("" if source.is_file() else f"{source} is missing: set TAUON_DATA"):
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_keys(folder)
        play(hospitals(source, folder), folder, lambda text: print(text, flush=True))
        metrics = json.loads((folder / "runs/chest/evaluation.json").read_text())["metrics"]
        print({name: round(metrics[name]["value"], 4) for name in ("accuracy", "roc_auc")})


if __name__ == "__main__":
    main()
