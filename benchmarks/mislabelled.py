"""Mislabelled examples: the share of flipped labels among the 10% most suspicious training examples, on checkpoints of early training and on the last.

MNIST, the first 5,000 training pictures, 250 labels flipped to another class by chance; a perceptron 784-128-64-10, AdamW at 1e-3, batches of
64, 30 epochs, after which it has memorised nearly all of the flipped labels. Early: the five checkpoints that `train.keep_early: 5` keeps (`early_steps`).
Suspicious: mean rank by self-influence. Three seeds; the mean counts. By chance the share is .1.

Beside it: TracIn's own rule, the sum of self-influence over the same checkpoints; and both rules with only the last checkpoint, which memorised.

    python -m benchmarks.mislabelled [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import pairwise
from typing import Any

FLOOR, EXAMPLES, FLIPPED, EPOCHS, BATCH, TOP = 0.95, 5000, 250, 30, 64, 0.1


def trained(x: Any, y: Any, seed: int, at: tuple[int, ...]) -> list[Any]:
    """Models after the steps `at`."""
    import copy

    import torch

    from benchmarks.influence_lds import SIZES, model_of

    g = torch.Generator().manual_seed(seed)
    start = [
        torch.randn(1, a, b, generator=g) * (2 / a) ** 0.5 if weight else torch.zeros(1, 1, b)
        for a, b in pairwise(SIZES)
        for weight in (True, False)
    ]
    model, kept = model_of(start, 0), []
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    order = torch.empty(0)
    for step in range(max(at)):
        row = step % (EXAMPLES // BATCH) * BATCH
        if row == 0:
            order = torch.randperm(EXAMPLES, generator=g)
        rows = order[row : row + BATCH]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        if step + 1 in at:
            kept.append(copy.deepcopy(model))
    return kept


def one(seed: int) -> dict[str, float]:
    """Shares found with one seed."""
    import numpy as np
    import torch

    from benchmarks._mnist import Rows
    from benchmarks.influence_lds import mnist
    from tauon.explain.influence import suspicious
    from tauon.tasks.arrays import Classification
    from tauon.train import early_steps

    x, y = mnist("train", EXAMPLES)
    g = torch.Generator().manual_seed(100 + seed)
    flipped = torch.randperm(EXAMPLES, generator=g)[:FLIPPED]
    y[flipped] = (y[flipped] + torch.randint(1, 10, (FLIPPED,), generator=g)) % 10
    per_pass = EXAMPLES // BATCH
    at = early_steps(5, EPOCHS * per_pass, per_pass)
    *early, last = trained(x, y, seed, (*at, EPOCHS * per_pass))
    data, hidden = Rows(x, y), set(flipped.tolist())

    def share(order: Any) -> float:
        return len(set(order[: round(TOP * EXAMPLES)].tolist()) & hidden) / FLIPPED

    ranked, late = suspicious(early, Classification(), data), suspicious([last], Classification(), data)
    with torch.no_grad():
        fits = [float((m(x[flipped]).argmax(1) == y[flipped]).float().mean()) for m in (early[-1], last)]
    found = {
        "early": share(ranked.order), "early_by_sum": share(np.argsort(-ranked.by_checkpoint.sum(0))), "last": share(late.order),
        "memorised_early": fits[0], "memorised_last": fits[1],
    }  # fmt: skip
    print(f"seed {seed}: steps {', '.join(map(str, at))}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    runs = [one(seed) for seed in range(1 if args.quick else 3)]
    mean = {k: round(sum(r[k] for r in runs) / len(runs), 3) for k in runs[0]}
    print("peer: the last checkpoint, which has memorised the flipped labels; ratio: the share found on early checkpoints")
    print(
        json.dumps(
            {
                "claim": "mislabelled", "ours": mean["early"], "peer": mean["last"], "ratio": mean["early"], "floor": FLOOR,
                "unit": "share of flipped labels in the top 10%", **mean, "seeds": len(runs),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
