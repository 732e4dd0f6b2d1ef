"""Simulated clients a second on MNIST: ours against Flower's own simulation (Ray, `num_cpus: 1` a client), in the same run.

100 clients of 600 random pictures, 10 a round, one local epoch with batches of 10, plain SGD, FedAvg: logistic regression, and the networks of McMahan et
al. 2017, 2NN (two layers of 200 units) and CNN (1,663,370 parameters). Both start from the same weights. Flower's clients train by a plain loop over
tensors in memory, without a DataLoader. Seconds are those of a round without the evaluation behind it, median; Flower's first round, in which Ray starts
its processes, does not count. Accuracies are means over the last rounds, on the 10,000 test pictures.

Ours trains in the precision that a plan chooses by default (`precision: auto`): it measures a step in float32 and in bf16 (matrix products; weights and sums
stay in float32) and takes the faster one, which is bf16 for the CNN on a processor with AVX512-BF16. Flower's clients train in float32, as a plain loop does.
Where ours is not float32, float32 is measured beside it (`cnn_fp32`).

    python -m benchmarks.fed_sim [--quick] [--model logistic|2nn|cnn]      needs flwr[simulation] and TAUON_DATA
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from typing import Any

import torch

from benchmarks._fed import MODELS, Timed, flower, make_job, mnist, ours
from tauon.federated import Rounds
from tauon.federated.simulation import Even, simulate
from tauon.federated.strategies import FedAvg

CLIENTS, SAMPLED, BATCH, LAST = 100, 10, 10, 3
FLOORS = {"logistic": 8.0, "2nn": 3.0, "cnn": 1.2}
ROUNDS = {"logistic": 30, "2nn": 30, "cnn": 12}
RATES = {"logistic": 0.03, "2nn": 0.05, "cnn": 0.05}


def compared(name: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Clients a second and accuracies of both; ours in the default precision, and in float32."""
    data = mnist("train")
    parts = Even().split(CLIENTS, labels=data.y.numpy(), seed=0)
    start = {n: p.detach().clone() for n, p in make_job(MODELS[name], RATES[name]).model.named_parameters()}
    mine: dict[str, Timed] = {}
    for precision in ("auto", "fp32"):
        job = simulated(name, data, parts, rounds, precision)
        if (chosen := job.policy.precision.name) not in mine:
            mine[chosen] = ours(job)
    theirs = flower(name, start, parts, rounds=rounds, epochs=1, batch=BATCH, lr=RATES[name], sampled=SAMPLED)
    found = {}
    for precision, timed in mine.items():
        speeds = [SAMPLED / statistics.median(t.seconds[1:]) for t in (timed, theirs)]
        end = [statistics.mean(t.accuracies[-LAST:]) for t in (timed, theirs)]
        label = name if precision == next(iter(mine)) else f"{name}_{precision}"
        print(f"{label} ({precision}): ours {speeds[0]:.1f} clients/s ({spread(timed)}), Flower {speeds[1]:.1f} ({spread(theirs)}); "
              f"accuracy {end[0]:.2f} and {end[1]:.2f}%", flush=True)  # fmt: skip
        found[label] = {
            "ours": round(speeds[0], 2), "peer": round(speeds[1], 2), "ratio": round(speeds[0] / speeds[1], 2), "floor": FLOORS[name],
            "accuracy": round(end[0], 2), "peer_accuracy": round(end[1], 2), "precision": precision,
        }  # fmt: skip
    return found


def simulated(name: str, data: Any, parts: Any, rounds: int, precision: str) -> Any:
    job = make_job(MODELS[name], RATES[name], precision=precision, data=data if precision == "auto" else None)
    return simulate(job, data, parts, FedAvg(), Rounds(rounds, epochs=1, fraction=SAMPLED / CLIENTS), batch=BATCH)


def spread(timed: Timed) -> str:
    return f"rounds of {min(timed.seconds[1:]):.3f} to {max(timed.seconds[1:]):.3f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a third of the rounds")
    parser.add_argument("--model", choices=list(MODELS), help="only this one")
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name in [args.model] if args.model else MODELS:
        found |= compared(name, ROUNDS[name] // (3 if args.quick else 1))
    print(f"torch {torch.__version__}; load {os.getloadavg()[0]:.1f}")
    worst = min((name for name in found if name in MODELS), key=lambda name: found[name]["ratio"] / found[name]["floor"])
    result = {
        "claim": "fed_sim",
        **{k: found[worst][k] for k in ("ours", "peer", "ratio", "floor")},
        "unit": "simulated clients/s",
        "of": worst,
    }
    print(json.dumps(result | {"models": found}))


if __name__ == "__main__":
    main()
