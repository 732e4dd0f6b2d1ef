"""Federated training of one client with one full-batch step of SGD a round against a plain loop of torch: the largest difference of a weight.

Logistic regression and McMahan's 2NN on 500 pictures of MNIST, 20 rounds. A round that did anything but what a central step does (another order of steps, a
wrong weight, a rate that differs, an update applied twice) would show at once. His CNN is beside them, not in the claim: in float32 another order of the
examples flips the choice of a max-pool here and there, so that two central trainings differ as well (`cnn_two_orders`).

    python -m benchmarks.fed_equals_central      needs TAUON_DATA
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks._fed import MODELS, make_job, mnist
from benchmarks._mnist import Rows
from tauon.federated import Rounds
from tauon.federated.simulation import simulate
from tauon.federated.strategies import FedAvg
from tauon.train import train

ROUNDS, LR, ROWS, FLOOR = 20, 0.1, 500, 1e-6


def central(name: str, data: Rows) -> list[torch.Tensor]:
    """Weights after a plain loop."""
    model = make_job(MODELS[name], LR).model
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for _ in range(ROUNDS):
        optimizer.zero_grad()
        F.cross_entropy(model(data.x), data.y).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def federated(name: str, data: Rows) -> list[torch.Tensor]:
    job = simulate(make_job(MODELS[name], LR), data, [np.arange(ROWS)], FedAvg(), Rounds(ROUNDS, steps=1), batch=0)
    return [p.detach() for p in train(job).model.parameters()]


def difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max(float((p - q).abs().max()) for p, q in zip(a, b, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same: it takes a minute")
    parser.parse_args()
    data = mnist("train", ROWS)
    turned = Rows(data.x.flip(0), data.y.flip(0))
    found = {name: difference(central(name, data), federated(name, data)) for name in MODELS}
    found["cnn_two_orders"] = difference(central("cnn", data), central("cnn", turned))
    worst = max(found["logistic"], found["2nn"])
    result = {"claim": "fed_equals_central", "ours": worst, "peer": FLOOR, "ratio": round(FLOOR / max(worst, 1e-12), 2), "floor": 1.0}
    print(json.dumps(result | {"unit": "largest absolute difference", "models": found}))


if __name__ == "__main__":
    main()
