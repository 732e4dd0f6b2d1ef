"""Chest X-rays (PneumoniaMNIST) at five hospitals of unequal size: a federated model against one of pooled data, and against each hospital's own.

Half of the 4,708 training pictures are at the first hospital, 3% at the last. A small CNN with group norm (channels 8, 16), AdamW, batches of 32.
Pooled and each hospital alone: 12 passes, cosine. Federated: 12 rounds, one local pass each, all five in each round. Of every model the weights of the pass or
round with the best ROC-AUC on the 524 validation pictures are measured on the 624 test pictures; all hospitals alone have that validation set too.

First, settings are chosen by the mean of that validation AUC over two seeds of another split, which are not used again: the rate of pooled training (the
hospitals alone have the same), and rate, schedule and server momentum of federated training. The test pictures are read only afterwards. Every seed is another
initial model and another order; every split deals the pictures anew. Intervals: 95%, Student's t over seeds and splits, of differences within a
seed and split (seeds of one split share their hospitals, so that the interval is for these three splits).

    python -m benchmarks.fed_chest [--quick] [--seeds N] [--splits N] [--results FILE] [--minutes M]      needs TAUON_DATA

With --results, each model is a line of FILE, and those that are there are not trained again; --minutes ends early: the same command continues.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
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
from tauon.optim import AdamWConfig, Constant, Cosine
from tauon.plan import make_plan
from tauon.tasks import Classification
from tauon.train import JobConfig, TrainConfig, TrainJob, build_job, every, train
from tauon.types import DataSpec

SHARES, PASSES, BATCH = (50, 25, 15, 7, 3), 12, 32
SPEC = DataSpec(input_shape=(1, 28, 28), outputs=2, labels=("normal", "pneumonia"))
TUNING_SEEDS, TUNING_SPLIT = (100, 101), 100
RATES = (3e-3, 1e-2)
TRIED = [{"lr": 1e-2, "schedule": s, "momentum": m} for s in ("constant", "cosine") for m in (0.0, 0.5)]
TRIED.append({"lr": 3e-3, "schedule": "constant", "momentum": 0.5})
"""Settings of federated training."""


def read(part: str) -> Rows:
    """The pictures of a part, standardised with public numbers, so that no hospital reads another's."""
    places = [os.environ.get("TAUON_DATA", ""), Path(__file__).parents[2] / "shared" / "data"]
    folder = next(Path(p) / "medmnist" for p in places if p and (Path(p) / "medmnist").is_dir())
    with np.load(folder / "pneumoniamnist.npz") as held:
        x, y = held[f"{part}_images"], held[f"{part}_labels"].ravel()
    rows = Rows(torch.from_numpy(x).float().div(255).sub(0.5).div(0.25).unsqueeze(1), torch.from_numpy(y).long())
    rows.spec = SPEC
    return rows


def make_job(seed: int, loader: Any, steps: int, lr: float) -> TrainJob:
    settings = TrainConfig(steps=steps, batch=BATCH, precision="fp32", compile=False, device="cpu")
    optim = AdamWConfig(lr=lr, schedule=Cosine(warmup=0))
    config = JobConfig(CNNConfig(channels=(8, 16)).resolve(SPEC), optim, settings, Classification(), SPEC, seed)
    return build_job(config, loader, make_plan(config, examples=4708))


class Best:
    """A hook that keeps the weights with the best AUC on the validation pictures."""

    def __init__(self) -> None:
        self.rows, self.value, self.weights = read("val"), -1.0, dict[str, torch.Tensor]()

    def __call__(self, job: TrainJob, info: Any) -> None:
        value = auc(job.model, self.rows)
        if value > self.value:
            self.value, self.weights = value, {n: t.clone() for n, t in job.model.state_dict().items()}

    def measured(self, job: TrainJob, *, test: bool) -> dict[str, float]:
        """AUC of those weights."""
        job.model.load_state_dict(self.weights)
        return {"validation": self.value} | ({"test": auc(job.model, read("test"))} if test else {})


def alone(seed: int, rows: Any, lr: float, *, test: bool) -> dict[str, float]:
    """Trained on these examples only."""
    loader, best = Loader(rows, batch=min(BATCH, len(rows)), seed=seed), Best()
    steps = loader.steps_for(PASSES)
    job = train(make_job(seed, loader, steps, lr), hooks=[every(max(1, steps // PASSES), best)])
    return best.measured(job, test=test)


def federated(seed: int, split: int, setting: dict[str, Any], *, test: bool) -> dict[str, float]:
    data, best = read("train"), Best()
    parts = ByQuantity(shares=SHARES).split(len(SHARES), labels=data.y.numpy(), seed=split)
    schedule = Cosine(warmup=0) if setting["schedule"] == "cosine" else Constant(warmup=0)
    rounds = Rounds(PASSES, epochs=1, seed=seed, optimizer="kept", schedule=schedule)
    job = make_job(seed, None, 1, setting["lr"])
    train(simulate(job, data, parts, FedAvgM(momentum=setting["momentum"]), rounds, batch=BATCH), hooks=[best])
    return best.measured(job, test=test)


@torch.no_grad()
def auc(model: torch.nn.Module, rows: Rows) -> float:
    """Area under the ROC curve: how often an ill child scores above a healthy one."""
    model.eval()
    logits = model(rows.x)
    model.train()
    score = (logits[:, 1] - logits[:, 0]).double()
    ill, healthy = score[rows.y == 1], score[rows.y == 0]
    above = (ill[:, None] > healthy[None]).double() + 0.5 * (ill[:, None] == healthy[None]).double()
    return float(above.mean())


def run(what: dict[str, Any]) -> dict[str, Any]:
    """Train one model; return what it is and its AUC."""
    torch.set_num_threads(1)
    seed, setting, test = what["seed"], what["setting"], what["test"]
    if what["kind"] == "pooled":
        return what | alone(seed, read("train"), setting["lr"], test=test)
    if what["kind"] == "federated":
        return what | federated(seed, what["split"], setting, test=test)
    data = read("train")
    parts = ByQuantity(shares=SHARES).split(len(SHARES), labels=data.y.numpy(), seed=what["split"])
    return what | alone(seed, ClientRows(data, parts[what["site"]]), setting["lr"], test=test)


class Results:
    """Models that were trained, as lines of JSON."""

    def __init__(self, path: Path | None, until: float) -> None:
        self.path, self.until, self.known = path, until, dict[str, dict[str, Any]]()
        for line in path.read_text().splitlines() if path is not None and path.exists() else []:
            self._keep(json.loads(line))

    def _keep(self, row: dict[str, Any]) -> None:
        self.known[key({k: v for k, v in row.items() if k not in ("validation", "test")} | {"test": "test" in row})] = row

    def of(self, wanted: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        """Return the results, in order, training those that are missing; None if the time is over before the last."""
        missing = [w for w in wanted if key(w) not in self.known]
        if missing and time.monotonic() < self.until:
            self._train(missing)
        return [self.known[key(w)] for w in wanted] if all(key(w) in self.known for w in wanted) else None

    def _train(self, missing: list[dict[str, Any]]) -> None:
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
            running = [pool.submit(run, w) for w in missing]
            for future in as_completed(running):
                if future.cancelled():
                    continue
                row = {k: v for k, v in future.result().items() if k != "test" or not isinstance(v, bool)}
                self._keep(row)
                print(json.dumps(row), flush=True)
                if self.path is not None:
                    with self.path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                if time.monotonic() > self.until:
                    for other in running:
                        other.cancel()  # those that have begun end


def key(what: dict[str, Any]) -> str:
    return json.dumps(what, sort_keys=True)


def chosen(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The setting with the best mean of the validation AUC."""
    by_setting: dict[str, list[float]] = {}
    for row in found:
        by_setting.setdefault(key(row["setting"]), []).append(row["validation"])
    best: dict[str, Any] = json.loads(max(by_setting, key=lambda k: statistics.mean(by_setting[k])))
    return best


def interval(values: list[float]) -> list[float]:
    """95% interval of the mean."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.mean(values)
    return [round(mean - half, 4), round(mean + half, 4)]


def choose(of: Callable[[list[dict[str, Any]]], list[dict[str, Any]] | None]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the settings of pooled and of federated training, chosen on validation pictures."""
    pooled = of([{"kind": "pooled", "seed": s, "setting": {"lr": lr}, "test": False} for lr in RATES for s in TUNING_SEEDS])
    tried = [{"kind": "federated", "seed": s, "split": TUNING_SPLIT, "setting": t, "test": False} for t in TRIED for s in TUNING_SEEDS]
    together = of(tried) if pooled is not None else None
    return None if pooled is None or together is None else (chosen(pooled), chosen(together))


def report(pooled: list[dict[str, Any]], together: list[dict[str, Any]], own: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The line of results. `own`: of each split and seed, the hospitals'."""
    by_seed = {row["seed"]: row["test"] for row in pooled}
    to_pooled = [row["test"] - by_seed[row["seed"]] for row in together]
    to_sites = [interval([row["test"] - sites[k]["test"] for row, sites in zip(together, own, strict=True)]) for k in range(len(SHARES))]
    ours, peer = statistics.mean(row["test"] for row in together), statistics.mean(by_seed.values())
    result = {"claim": "fed_chest", "ours": round(ours, 4), "peer": round(peer, 4), "ratio": round(ours - peer, 4), "floor": -0.02}
    result |= {"unit": "ROC-AUC on test; ratio: difference to pooled", "interval": interval(to_pooled)}
    result |= {"sites": [round(statistics.mean(sites[k]["test"] for sites in own), 4) for k in range(len(SHARES))], "above_sites": to_sites}
    above = sum(row["test"] > max(s["test"] for s in sites) for row, sites in zip(together, own, strict=True))
    return result | {"runs_above_best_site": above, "runs": len(together)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seeds and 1 split")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--results", type=Path, help="file of models that were trained, continued")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no model after so long")
    args = parser.parse_args()
    seeds, splits = (2, 1) if args.quick else (args.seeds, args.splits)
    results = Results(args.results, time.monotonic() + 60 * args.minutes)
    settings = choose(results.of)
    if settings is None:
        return
    base, best = settings
    print(f"chosen on validation: pooled and alone {base}, federated {best}", flush=True)
    both = [(split, seed) for split in range(splits) for seed in range(seeds)]
    pooled = results.of([{"kind": "pooled", "seed": s, "setting": base, "test": True} for s in range(seeds)])
    together = results.of([{"kind": "federated", "seed": s, "split": d, "setting": best, "test": True} for d, s in both])
    each = [{"kind": "alone", "seed": s, "split": d, "site": k, "setting": base, "test": True} for d, s in both for k in range(len(SHARES))]
    own = results.of(each)
    if pooled is None or together is None or own is None:
        return
    sites = [own[i : i + len(SHARES)] for i in range(0, len(own), len(SHARES))]
    print(json.dumps(report(pooled, together, sites) | {"settings": {"pooled": base, "federated": best}}))


if __name__ == "__main__":
    main()
