"""Share of the loss that int4 costs which quantisation-aware training recovers, on `shakespeare-char`.

Three figures of validation loss (all of the recipe's validation part, nats a character), each the mean over seeds:

    float    the recipe's model, trained as it is
    peer     the same model after training, its weights rounded to nearest in int4 (`compress: {steps: [int4_weight_only]}`)
    ours     a model trained equally long with `qat`, then rounded by the same step

What is shown is (peer - ours) / (peer - float): 1 would be as good as float. All linear layers are rounded, the head too, with one scale for each row
(`group` of the width and more: the usual 32 costs this small a model too little to measure a share of); the table of embeddings to int8.

    TAUON_DATA=/folder/of/data python -m benchmarks.qat [--quick] [--group 512] [--start 0.5] [--seeds 2]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

from benchmarks._shipped import Shipped

FLOOR = 0.6


def trained(shipped: Shipped, seed: int, group: int, start: float | None) -> Any:
    """The job after training: with `qat` from the share `start` of the steps on, or without."""
    from tauon.compress import Int4WeightOnly
    from tauon.compress.training import quantisation_aware
    from tauon.train import train

    job = shipped.job(seed=seed)
    if start is not None:
        job = quantisation_aware(job, Int4WeightOnly(group=group), start=start)
    train(job)
    return job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, 300 steps instead of 600")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--group", type=int, default=512)
    parser.add_argument("--start", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()

    import torch

    from tauon.compress import Int4WeightOnly, compress_model

    torch.set_num_threads(args.threads)
    step = Int4WeightOnly(group=args.group)
    figures: dict[str, list[float]] = {"float": [], "peer": [], "ours": [], "ours_float": []}
    for seed in range(1 if args.quick else args.seeds):
        shipped = Shipped("shakespeare-char", steps=300 if args.quick else 600)
        for name, start in (("peer", None), ("ours", args.start)):
            began = time.perf_counter()
            job = trained(shipped, seed, args.group, start)
            seconds = time.perf_counter() - began
            plain = shipped.loss(shipped.float_copy(job))
            rounded = shipped.loss(compress_model(shipped.float_copy(job), shipped.recipe.task, None, [step]).model)
            figures["float" if start is None else "ours_float"].append(plain)
            figures[name].append(rounded)
            print(f"seed {seed}, {name}: float {plain:.4f}, int4 {rounded:.4f}, {seconds:.0f} s", flush=True)
    means = {name: sum(v) / len(v) for name, v in figures.items()}
    share = (means["peer"] - means["ours"]) / (means["peer"] - means["float"])
    result = {
        "claim": "qat", "ours": round(means["ours"], 4), "peer": round(means["peer"], 4), "ratio": round(share, 3), "floor": FLOOR,
        "unit": "share of the int4 gap recovered (losses in nats a character)", "float": round(means["float"], 4),
        "gap": round(means["peer"] - means["float"], 4), "group": args.group, "start": args.start, "seeds": len(figures["peer"]),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
