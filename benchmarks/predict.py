"""Rows a second of predicting a CSV: `tauon predict` against a plain torch loop over the same model with the same rows.

The loop is what one would write by hand: read the file (pyarrow, as numbers, all of it at once), scale, run the model in batches, write the file with
the predictions (pyarrow). It knows that every cell is a number and that nothing is missing; ours reads the cells as training did, looks at each, runs
the model in evaluation's tiles of 64 rows, in bounded memory. Rounds of the two alternate in one process with one thread for both
(with more, what is measured on a machine that others use too is how threads wait for one another); medians are compared, and the probabilities of both.

    python benchmarks/predict.py                     the claim
    python benchmarks/predict.py --rows 5000000 --memory      peak memory of ours on a large file, in a process of its own

Prints its figures, and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = 8
PEER_BATCH = 1024


def write_table(path: Path, rows: int, seed: int, label: bool) -> None:
    """Numbers with four digits, some rows at a time; with a class where `label`."""
    rng = np.random.default_rng(seed)
    with path.open("w") as f:
        f.write(",".join([f"x{i}" for i in range(COLUMNS)] + ["y"] * label) + "\n")
        for start in range(0, rows, 100_000):
            n = min(100_000, rows - start)
            x = rng.normal(size=(n, COLUMNS)) * 10 + np.arange(COLUMNS)
            y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 1)
            lines = [",".join(row) for row in np.char.mod("%.4f", x)]
            f.write("\n".join(f"{line},{'abc'[c]}" for line, c in zip(lines, y.tolist(), strict=True)) if label else "\n".join(lines))
            f.write("\n")


def train(folder: Path, width: int) -> Path:
    """A run whose model is to be used."""
    from tauon.config import parse
    from tauon.pipeline import run
    from tauon.recipe import Recipe

    write_table(folder / "train.csv", 2000, 0, label=True)
    recipe: dict[str, Any] = {
        "name": "bench", "data": {"source": {"kind": "csv", "path": str(folder / "train.csv"), "label": "y"}}, "task": "classification",
        "model": {"kind": "mlp", "hidden": [width, width]}, "optim": {"kind": "adam", "lr": 1e-2}, "train": {"steps": 30, "batch": 64},
    }  # fmt: skip
    return run(parse(Recipe, recipe), root=folder, stages=("prepare", "train")).folder


def by_hand(predictor: Any, data: Path, to: Path) -> None:
    """The plain loop."""
    import pyarrow as pa
    import torch
    from pyarrow import csv

    table = csv.read_csv(data)
    kept = predictor.trained.preprocess["normalize"]
    center, scale = (np.array(kept[k]) for k in ("center", "scale"))
    x = ((np.stack([c.to_numpy() for c in table.columns], 1) - center) / scale).astype(np.float32)
    found = []
    with torch.no_grad():
        for start in range(0, len(x), PEER_BATCH):
            found.append(predictor.trained.model(torch.from_numpy(x[start : start + PEER_BATCH])).softmax(-1))
    p = torch.cat(found).numpy()
    labels = np.array(predictor.trained.preprocess["labels"])
    table = table.append_column("prediction", pa.array(labels[p.argmax(1)]))
    for c, label in enumerate(labels):
        table = table.append_column(f"probability_{label}", pa.array(p[:, c]))
    csv.write_csv(table, to)


MEASURED = """import resource, sys
from tauon.cli import main
try: main(sys.argv[1:])
except SystemExit: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def memory(args: argparse.Namespace) -> None:
    """Peak resident memory of `tauon predict` on files of several sizes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = train(folder, args.width)
        for rows in (args.rows // 10, args.rows):
            write_table(folder / "new.csv", rows, 1, label=False)
            began = time.perf_counter()
            words = [
                sys.executable,
                "-c",
                MEASURED,
                "predict",
                str(run),
                "--data",
                str(folder / "new.csv"),
                "--to",
                str(folder / "out.csv"),
            ]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            seconds, peak = time.perf_counter() - began, int(done.stdout.split()[-1]) / 1024
            print(
                f"{rows:,} rows, {(folder / 'new.csv').stat().st_size / 2**20:,.0f} MB: peak {peak:,.0f} MB, {rows / seconds:,.0f} rows/s"
            )
            (folder / "out.csv").unlink()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.rounds = min(args.rows, 100_000), 2
    if args.memory:
        memory(args)
        return
    import torch

    from tauon.predict import Predictor, predict_file

    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictor = Predictor.open(train(folder, args.width))
        data = folder / "new.csv"
        write_table(data, args.rows, 1, label=False)
        times: dict[str, list[float]] = {"ours": [], "peer": []}
        for i in range(args.rounds + 1):
            for who, call in (
                ("ours", lambda: predict_file(predictor, data, folder / "ours.csv")),
                ("peer", lambda: by_hand(predictor, data, folder / "peer.csv")),
            ):
                began = time.perf_counter()
                call()
                if i:  # the first is to warm up
                    times[who].append(time.perf_counter() - began)
        compare(folder)
    ours, peer = (args.rows / statistics.median(times[who]) for who in ("ours", "peer"))
    print(f"{args.rows:,} rows of {COLUMNS} columns, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB at most")
    print(f"ours {ours:,.0f} rows/s, by hand {peer:,.0f} rows/s")
    print(
        json.dumps(
            {
                "claim": "predict_csv",
                "ours": round(ours),
                "peer": round(peer),
                "ratio": round(ours / peer, 3),
                "floor": 0.5,
                "unit": "rows/s",
            }
        )
    )


def compare(folder: Path) -> None:
    """The same probabilities, up to the order of additions."""
    from pyarrow import csv

    ours, peer = (csv.read_csv(folder / f"{who}.csv") for who in ("ours", "peer"))
    for name in [n for n in peer.column_names if n.startswith("probability_")]:
        np.testing.assert_allclose(ours[name].to_numpy(), peer[name].to_numpy(), atol=1e-5)


if __name__ == "__main__":
    main()
