"""Validation loss of a half-size student of `wikitext2-gpt`: distilled, against trained from scratch at equal compute.

The teacher is the recipe's model (4 layers of width 128), trained first; its training is not counted, since it exists. The student has 2 layers of
width 96: 55% of the weights (78% of its own are embeddings and head). A step of distillation costs the student's forward and backward pass and the
teacher's forward pass, so the student from scratch makes more steps until its compute is the same, by the models' own operations
(`flops_per_example`); the steps are printed, and so is the time of both. Both see the same examples in the same order, with the recipe's optimizer,
each schedule ending at its own last step. Losses are means over 400 windows of the recipe's validation part, nats a token.

`speed`: forward passes of the student against those of the teacher, a second, in turns, logits included.

    TAUON_DATA=/folder/of/data python -m benchmarks.distil [--quick] [--weight 0.5] [--temperature 1] [--steps 200] [--teacher-steps 450]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

from benchmarks._shipped import Shipped

STUDENT = {"model__layers": 2, "model__width": 96}


def speed(teacher: Any, student: Any, batch: Any, turns: int) -> float:
    """Median time of the teacher's forward pass over that of the student's."""
    import torch

    times: dict[str, list[float]] = {"teacher": [], "student": []}
    with torch.no_grad():
        for _ in range(turns + 2):
            for name, model in (("teacher", teacher), ("student", student)):
                began = time.perf_counter()
                model.logits(model(batch.inputs, batch.segments))
                times[name].append(time.perf_counter() - began)
    return statistics.median(times["teacher"][2:]) / statistics.median(times["student"][2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a third of the steps")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--weight", type=float, default=0.5)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--teacher-steps", type=int, default=450)
    args = parser.parse_args()

    import numpy as np
    import torch

    from tauon.compress.training import distilled
    from tauon.models import parameter_count
    from tauon.train import train

    torch.set_num_threads(args.threads)
    steps, teacher_steps = (n // 3 if args.quick else n for n in (args.steps, args.teacher_steps))
    big = Shipped("wikitext2-gpt", steps=teacher_steps)
    job = big.job(seed=0)
    began = time.perf_counter()
    train(job)
    teacher = big.float_copy(job)
    teacher_loss = big.loss(teacher, 400)
    print(
        f"teacher: {parameter_count(teacher):,} weights, {teacher_steps} steps, loss {teacher_loss:.4f}, {time.perf_counter() - began:.0f} s",
        flush=True,
    )

    def student(n: int, taught: bool) -> tuple[Any, float, float]:
        shipped = Shipped("wikitext2-gpt", steps=n, **STUDENT)
        job = shipped.job(seed=1)
        if taught:
            job = distilled(job, teacher, temperature=args.temperature, weight=args.weight)
        began = time.perf_counter()
        train(job)
        seconds = time.perf_counter() - began
        model = shipped.float_copy(job)
        loss = shipped.loss(model, 400)
        print(f"student, {'distilled' if taught else 'from scratch'}: {n} steps, loss {loss:.4f}, {seconds:.0f} s", flush=True)
        return model, loss, seconds

    spec = big.splits.spec
    bare = Shipped("wikitext2-gpt", steps=1, **STUDENT).job(seed=1).model
    own, forward = bare.flops_per_example(spec), teacher.flops_per_example(spec) / 3
    longer = round(steps * (own + forward) / own)
    small, ours, seconds_ours = student(steps, True)
    _, peer, seconds_peer = student(longer, False)
    faster = speed(teacher, small, big.splits.validation.batch(np.arange(8)), 10 if args.quick else 40)
    result = {
        "claim": "distil", "ours": round(ours, 4), "peer": round(peer, 4), "ratio": round(peer / ours, 4), "floor": 1.0,
        "unit": "nats a token, at equal compute", "speed": round(faster, 2), "speed_floor": 1.8, "steps": [steps, longer],
        "seconds": [round(seconds_ours), round(seconds_peer)], "teacher": round(teacher_loss, 4),
        "size": round(parameter_count(small) / parameter_count(teacher), 3), "weight": args.weight, "temperature": args.temperature,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
