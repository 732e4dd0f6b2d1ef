"""Share of the loss that int4 costs which quantisation-aware training recovers, on `shakespeare-char`.

Three figures of validation loss (nats a character), each the mean over seeds:

    float    the recipe's model, trained as it is
    peer     the same model after training, its weights rounded to nearest in int4 (`compress: {steps: [int4_weight_only]}`)
    ours     a model trained equally long with `qat`, then rounded by the same step

What is shown is (peer - ours) / (peer - float): 1 would be as good as float. Before `start`, a run with `qat` is the plain run bit for bit (a test holds
it), so both are trained together up to there, and apart from there on.

All linear layers are rounded, the head too, with one scale for each row (`--group` of the width and more), tables of embeddings to int8: in the usual
groups of 32 int4 costs so small a model too little to measure a share of. The recipe's model has 4 layers of width 128; here it has 2 of width 64,
which are trained longer for their size (that is what makes rounding costly) and in a minute or two. Data, optimizer, schedule and batch are the recipe's.

    TAUON_DATA=/folder/of/data python -m benchmarks.qat [--quick] [--group 512] [--start 0.9] [--seeds 2] [--steps 600]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from typing import Any

from benchmarks._shipped import Shipped

FLOOR = 0.6
SIZES = {"model__layers": 2, "model__width": 64}


def until(job: Any, step: int) -> Any:
    """The job after step `step`."""
    from tauon.train import STOP, train

    train(job, hooks=[lambda job, info: STOP if info.step == step else None])
    job.notes.clear()  # it goes on
    return job


def fork(shipped: Shipped, job: Any, seed: int) -> Any:
    """Another job in the same state."""
    other = shipped.job(seed=seed)
    other.model.load_state_dict(job.model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(job.optimizer.state_dict()))
    other.health.load(job.health.state())
    other.step, other.examples, other.tokens = job.step, job.examples, job.tokens
    return other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--group", type=int, default=512)
    parser.add_argument("--start", type=float, default=0.9)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()

    import torch

    from tauon.compress import Int4WeightOnly, compress_model
    from tauon.compress.training import quantisation_aware

    torch.set_num_threads(args.threads)
    step = Int4WeightOnly(group=args.group)
    shipped = Shipped("shakespeare-char", steps=args.steps, **SIZES)
    figures: dict[str, list[float]] = {"float": [], "peer": [], "ours": []}

    def rounded(job: Any) -> float:
        return shipped.loss(compress_model(shipped.float_copy(job), shipped.recipe.task, None, [step]).model)

    for seed in range(1 if args.quick else args.seeds):
        began = time.perf_counter()
        plain = until(shipped.job(seed=seed), round(args.start * args.steps))
        aware = quantisation_aware(fork(shipped, plain, seed), step, start=args.start)
        for job in (plain, aware):
            until(job, args.steps)
        for name, loss in (("float", shipped.loss(shipped.float_copy(plain))), ("peer", rounded(plain)), ("ours", rounded(aware))):
            figures[name].append(loss)
        print(f"seed {seed}: {', '.join(f'{k} {v[-1]:.4f}' for k, v in figures.items())}, {time.perf_counter() - began:.0f} s", flush=True)
    means = {name: sum(v) / len(v) for name, v in figures.items()}
    share = (means["peer"] - means["ours"]) / (means["peer"] - means["float"])
    result = {
        "claim": "qat", "ours": round(means["ours"], 4), "peer": round(means["peer"], 4), "ratio": round(share, 3), "floor": FLOOR,
        "unit": "share of the int4 gap recovered (losses in nats a character)", "float": round(means["float"], 4),
        "gap": round(means["peer"] - means["float"], 4), "group": args.group, "start": args.start, "steps": args.steps,
        "seeds": len(figures["peer"]),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
