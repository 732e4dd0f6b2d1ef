"""Rounds of FedAvg until 99% of MNIST's test pictures are right (McMahan et al. 2017, table 2: CNN, E=5, B=10, C=0.1; 20 rounds IID, 350 non-IID there).

100 clients of 600 pictures, at random (`iid`) or of about two digits each (`by-label`), plain SGD at a constant rate from the paper's grid, best accuracy
so far. Another run for each seed, of which the median counts.

    python -m benchmarks.fedavg_mnist [--quick] [--split iid|by-label] [--seeds N] [--lr LR] [--rounds N] [--folder F]

needs TAUON_DATA; 20 to 60 s a round on 2 cores. With `--folder` every fifth round is saved, and the same command continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks._fed import MODELS, accuracy, make_job, mnist
from tauon.artifacts import latest_checkpoint, save_checkpoint
from tauon.federated import Rounds
from tauon.federated.simulation import ByLabel, Even, simulate
from tauon.federated.strategies import FedAvg
from tauon.train import train
from tauon.train.loop import job_state, restore

TARGET, FLOORS = 99.0, {"iid": 20, "by-label": 229}


def rounds_to_target(split: str, seed: int, lr: float, most: int, precision: str, folder: Path | None = None) -> tuple[int, float]:
    """(rounds until the target, or one more than `most`; best accuracy)."""
    data, test = mnist("train"), mnist("test", 10_000)
    kind = Even() if split == "iid" else ByLabel(shards=2)
    parts = kind.split(100, labels=data.y.numpy(), seed=seed)
    job = make_job(MODELS["cnn"], lr, seed=seed, precision=precision)
    job = simulate(job, data, parts, FedAvg(), Rounds(most, epochs=5, fraction=0.1, seed=seed), batch=10)
    reached, best, clock = most + 1, 0.0, time.perf_counter()
    if folder is not None and (last := latest_checkpoint(folder)) is not None:
        restore(job, last)
        best = job.notes["best"]

    def after(job: Any, info: Any) -> str | None:
        nonlocal reached, best
        best = max(best, accuracy(job.model, test))
        print(f"seed {seed}, round {info.step}: best {best:.2f}%, {time.perf_counter() - clock:.0f} s", flush=True)
        job.notes["best"] = best
        if folder is not None and info.step % 5 == 0:
            save_checkpoint(folder, info.step, *job_state(job))
        if best < TARGET:
            return None
        reached = info.step
        return "stop"

    train(job, hooks=[after])
    return reached, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--split", choices=list(FLOORS), default="iid")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, help="most; default: the floor")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--folder", type=Path, help="where rounds are saved, a folder for each seed")
    args = parser.parse_args()
    floor = FLOORS[args.split]
    found = [
        rounds_to_target(args.split, seed, args.lr, args.rounds or floor, args.precision, args.folder and args.folder / f"seed-{seed}")
        for seed in range(1 if args.quick else args.seeds)
    ]
    median = statistics.median(rounds for rounds, _ in found)
    result = {
        "claim": "fedavg_mnist",
        "ours": median,
        "peer": floor,
        "ratio": round(floor / median, 2),
        "floor": 1.0,
        "unit": "rounds to 99%",
    }
    print(
        json.dumps(result | {"split": args.split, "lr": args.lr, "rounds": [r for r, _ in found], "best": [round(b, 2) for _, b in found]})
    )


if __name__ == "__main__":
    main()
