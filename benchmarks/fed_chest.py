"""Chest X-rays (PneumoniaMNIST) at five hospitals of unequal size: a federated model against one of pooled data, and against each hospital's own.

Half of the 4,708 training pictures are at the first hospital, 3% at the last. A small CNN with group norm (channels 8, 16), AdamW, batches of 32.
Pooled and each hospital alone: 20 passes, cosine. Federated: 20 rounds, one local pass each, all five in each round; constant rate, the state of AdamW kept
between rounds, momentum 0.5 at the server (FedAvgM): of six settings the best on two seeds of one split. ROC-AUC of the last model on the
624 test pictures. Every seed is another initial model and another order; every split deals the pictures anew. Intervals: 95%, Student's t over
seeds and splits, of differences within a seed and split.

    python -m benchmarks.fed_chest [--quick] [--seeds N] [--splits N]      needs TAUON_DATA
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._mnist import Rows
from tauon.data import Loader
from tauon.federated import Rounds
from tauon.federated.simulation import ByQuantity, ClientRows, simulate
from tauon.federated.strategies import FedAvgM
from tauon.models import CNNConfig
from tauon.optim import AdamWConfig, Cosine
from tauon.plan import make_plan
from tauon.tasks import Classification
from tauon.train import JobConfig, TrainConfig, TrainJob, build_job, train
from tauon.types import DataSpec

SHARES, PASSES, BATCH = (50, 25, 15, 7, 3), 20, 32
SPEC = DataSpec(input_shape=(1, 28, 28), outputs=2, labels=("normal", "pneumonia"))


def read(part: str) -> Rows:
    """The pictures of a part, standardised with public numbers, so that no hospital reads another's."""
    places = [os.environ.get("TAUON_DATA", ""), Path(__file__).parents[2] / "shared" / "data"]
    folder = next(Path(p) / "medmnist" for p in places if p and (Path(p) / "medmnist").is_dir())
    with np.load(folder / "pneumoniamnist.npz") as held:
        x, y = held[f"{part}_images"], held[f"{part}_labels"].ravel()
    rows = Rows(torch.from_numpy(x).float().div(255).sub(0.5).div(0.25).unsqueeze(1), torch.from_numpy(y).long())
    rows.spec = SPEC
    return rows


def make_job(seed: int, loader: Any, steps: int) -> TrainJob:
    settings = TrainConfig(steps=steps, batch=BATCH, precision="fp32", compile=False, device="cpu")
    optim = AdamWConfig(lr=3e-3, schedule=Cosine(warmup=0))
    config = JobConfig(CNNConfig(channels=(8, 16)).resolve(SPEC), optim, settings, Classification(), SPEC, seed)
    return build_job(config, loader, make_plan(config, examples=4708))


def alone(seed: int, rows: Any) -> TrainJob:
    """Trained on these examples only."""
    loader = Loader(rows, batch=min(BATCH, len(rows)), seed=seed)
    return train(make_job(seed, loader, loader.steps_for(PASSES)))


def federated(seed: int, data: Rows, parts: Any) -> TrainJob:
    job = make_job(seed, None, 1)
    return train(simulate(job, data, parts, FedAvgM(momentum=0.5), Rounds(PASSES, epochs=1, seed=seed, optimizer="kept"), batch=BATCH))


@torch.no_grad()
def auc(job: TrainJob, test: Rows) -> float:
    """Area under the ROC curve: how often an ill child scores above a healthy one."""
    job.model.eval()
    logits = job.model(test.x)
    score = (logits[:, 1] - logits[:, 0]).double()
    ill, healthy = score[test.y == 1], score[test.y == 0]
    above = (ill[:, None] > healthy[None]).double() + 0.5 * (ill[:, None] == healthy[None]).double()
    return float(above.mean())


def run_pooled(seed: int) -> float:
    torch.set_num_threads(1)
    return auc(alone(seed, read("train")), read("test"))


def run_sites(seed: int, split: int) -> tuple[float, list[float]]:
    """AUC of the federated model, and of each hospital's own."""
    torch.set_num_threads(1)
    data, test = read("train"), read("test")
    parts = ByQuantity(shares=SHARES).split(len(SHARES), labels=data.y.numpy(), seed=split)
    own = [auc(alone(seed, ClientRows(data, rows)), test) for rows in parts]
    return auc(federated(seed, data, parts), test), own


def interval(values: list[float]) -> list[float]:
    """95% interval of the mean."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.mean(values)
    return [round(mean - half, 4), round(mean + half, 4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seeds and 1 split")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--splits", type=int, default=3)
    args = parser.parse_args()
    seeds, splits = (2, 1) if args.quick else (args.seeds, args.splits)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        running = [pool.submit(run_pooled, seed) for seed in range(seeds)]
        rest = [pool.submit(run_sites, seed, split) for split in range(splits) for seed in range(seeds)]
        pooled = [future.result() for future in running]
        print(f"pooled: {', '.join(f'{x:.4f}' for x in pooled)}", flush=True)
        found = []
        for future in rest:
            found.append(future.result())
            print(f"federated {found[-1][0]:.4f}, alone {', '.join(f'{x:.4f}' for x in found[-1][1])}", flush=True)
    together, own = [x for x, _ in found], [y for _, y in found]
    to_pooled = [x - pooled[i % seeds] for i, x in enumerate(together)]
    to_sites = [interval([x - y[k] for x, y in zip(together, own, strict=True)]) for k in range(len(SHARES))]
    ours, peer = statistics.mean(together), statistics.mean(pooled)
    result = {"claim": "fed_chest", "ours": round(ours, 4), "peer": round(peer, 4), "ratio": round(ours - peer, 4), "floor": -0.02}
    result |= {"unit": "ROC-AUC; ratio: difference to pooled", "interval": interval(to_pooled)}
    result |= {"sites": [round(statistics.mean(y[k] for y in own), 4) for k in range(len(SHARES))], "above_sites": to_sites}
    result |= {"runs_above_best_site": sum(x > max(y) for x, y in zip(together, own, strict=True)), "runs": len(together)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
