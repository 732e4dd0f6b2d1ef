"""Queries a second over 10,000 training examples: TracIn from the index on disk, against Captum's TracInCP.

MNIST, a perceptron 784-128-64-10 after some training, one checkpoint. Each call asks 100 queries at once, and gets all 10,000 scores of each. Ours reads the
memory-mapped index, which is built before (its time is given); Captum computes the gradients of the training examples again in every call:

    sample_wise    `sample_wise_grads_per_batch=True`: gradients of a batch of examples in one pass
    default        one example after the other; asked about the first 1,000 examples, and its time taken ten times

Both must give the same scores. They take turns; the median of the calls counts. One query a call is given too.

    python -m benchmarks.influence_speed [--quick]          needs the bench extra (captum)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

FLOOR, FLOOR_DEFAULT, EXAMPLES, QUERIES, FEW = 10.0, 50.0, 10_000, 100, 1000


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def captum(model: Any, x: Any, y: Any, *, sample_wise: bool) -> Any:
    """TracInCP over one checkpoint, the model as it is."""
    import torch
    from captum.influence import TracInCP

    return TracInCP(
        model, torch.utils.data.TensorDataset(x, y), ["as it is"], checkpoints_load_func=lambda model, path: 1.0, batch_size=1000,
        loss_fn=torch.nn.CrossEntropyLoss(reduction="sum" if sample_wise else "none"), sample_wise_grads_per_batch=sample_wise,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 call of each peer instead of 3")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    import numpy as np
    import torch

    from benchmarks._mnist import Rows
    from benchmarks.influence_lds import mnist
    from benchmarks.mislabelled import trained
    from tauon.explain.influence import Index, IndexOf, TracIn, build_index
    from tauon.tasks.arrays import Classification

    torch.set_num_threads(args.threads)
    x, y = mnist("train", EXAMPLES)
    xq, yq = mnist("test", QUERIES)
    (model,) = trained(x[:5000], y[:5000], 0, (200,))
    of = IndexOf([model], Classification(), "mnist")
    with tempfile.TemporaryDirectory() as name:
        building, _ = seconds(lambda: build_index(Path(name) / "index", of, Rows(x, y), TracIn(), batch=1000))
        opening, index = seconds(lambda: Index.open(Path(name) / "index", of))
        queries = Rows(xq, yq).batch(np.arange(QUERIES))
        one = queries.rows(0, 1)
        peers = {"sample_wise": captum(model, x, y, sample_wise=True), "default": captum(model, x[:FEW], y[:FEW], sample_wise=False)}
        index.scores(queries)
        times: dict[str, list[float]] = {"ours": [], "ours_one": [], "sample_wise": [], "sample_wise_one": [], "default": []}
        calls: dict[str, Callable[[], Any]] = {
            "ours": lambda: index.scores(queries),
            "sample_wise": lambda: peers["sample_wise"].influence((xq, yq)),
            "ours_one": lambda: index.scores(one),
            "sample_wise_one": lambda: peers["sample_wise"].influence((xq[:1], yq[:1])),
            "default": lambda: peers["default"].influence((xq, yq)),
        }
        results: dict[str, Any] = {}
        for turn in range(1 if args.quick else 3):
            for key, call in calls.items():
                if key == "default" and turn:
                    continue
                for _ in range(5 if key.startswith("ours") else 1):
                    spent, results[key] = seconds(call)
                    times[key].append(spent)
        size = sum(p.stat().st_size for p in (Path(name) / "index").iterdir())
    exact = results["sample_wise"].numpy()
    error = float(np.abs(results["ours"] - exact).max() / np.abs(exact).max())
    assert error < 1e-3, f"the scores differ by {error:.1e} of the largest"
    median = {k: statistics.median(v) for k, v in times.items()}
    median["default"] *= EXAMPLES / FEW
    print(
        f"index built in {building:.1f} s, {size / 2**20:.0f} MiB, opened in {opening * 1e3:.0f} ms; largest difference {error:.1e} of the largest score"
    )
    print(", ".join(f"{k} {v * 1e3:,.1f} ms a call" for k, v in median.items()))
    rates = {k: (1 if k.endswith("_one") else QUERIES) / v for k, v in median.items()}
    ratios = {k: round(rates["ours"] / rates[k], 1) for k in ("sample_wise", "default")}
    print(
        json.dumps(
            {
                "claim": "influence_speed", "ours": round(rates["ours"]), "peer": round(rates["sample_wise"], 1), "ratio": ratios["sample_wise"],
                "floor": FLOOR, "unit": "queries/s", "peer_default": round(rates["default"], 2), "ratio_default": ratios["default"],
                "floor_default": FLOOR_DEFAULT, "ratio_one_query_a_call": round(rates["ours_one"] / rates["sample_wise_one"], 1),
                "build_s": round(building, 1), "index_mib": round(size / 2**20),
            }
        )
    )  # fmt: skip
    if ratios["default"] < FLOOR_DEFAULT:
        raise SystemExit("below the floor against Captum's default")


if __name__ == "__main__":
    main()
