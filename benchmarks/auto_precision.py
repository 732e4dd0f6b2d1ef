"""Time of a training step under `precision: auto` and `compile: auto` against the best of all choices, for six recipes.

The GPT of `lm_vs_hf`, and the recipes `cifar10-resnet`, `chest-xray`, `speech-digits`, `mnist-mlp` and `breast-cancer`, each with its own data, loss
and optimizer, planned for 100,000 steps, so that compiling is worth its cost where it gains at all. Every choice (fp32 or bf16, compiled or not
where there are blocks to compile) trains a job of its own, in turns, a step at a time, in one process; compared are medians by the clock. The plan
measures on an empty cache. `ratio` of a recipe is the best choice's time by that of auto's; the claim is the smallest of them.

    python -m benchmarks.auto_precision [--quick] [--threads N]          needs TAUON_DATA, or the network for the public data

`--quick`: fewer rounds, and only the GPT compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

FLOOR = 0.97
STEPS = 100_000
NAMES = ("gpt", "cifar10-resnet", "chest-xray", "speech-digits", "mnist-mlp", "breast-cancer")


def job_of(name: str) -> tuple[Any, Any]:
    """Return (JobConfig, splits) of a recipe at auto, for many steps."""
    from benchmarks.lm_vs_hf import recipe
    from tauon.config import dump, parse
    from tauon.distributed import World
    from tauon.recipe import Recipe, load_recipe
    from tauon.stages.context import Context
    from tauon.train import JobConfig

    tree = {k: v for k, v in dump(recipe("gpt", "auto") if name == "gpt" else load_recipe(name)).items() if v is not None}
    length = {"steps": STEPS, "epochs": None, "tokens": None, "time": None, "precision": "auto", "compile": "auto", "early_stopping": None}
    r = parse(Recipe, {**tree, "train": {**tree["train"], **length}})
    ctx = Context(r, None, lambda *a, **k: None, World())
    return JobConfig(ctx.model, r.optim, ctx.train, r.task, ctx.splits.spec, r.seed), ctx.splits


def compared(name: str, seconds: float, *, compiles: bool) -> dict[str, Any]:
    """Return auto's choice and the seconds of a step under each."""
    from tauon.data import Loader
    from tauon.plan import Work, make_plan
    from tauon.train import build_job

    config, splits = job_of(name)
    loader = Loader(splits.train, batch=config.train.batch, seed=0)
    start = time.perf_counter()
    plan = make_plan(config, examples=len(splits.train), work=Work(loader))
    took = time.perf_counter() - start
    for d in plan.derived:
        if d.path in ("train.precision", "train.compile"):
            print(f"    {d.path} {d.value}: {d.source}")
    compiles = (compiles and bool(config.model.build_on_meta().blocks_to_compile())) or plan.compile
    steps: dict[str, Callable[[], object]] = {}
    for precision in ("fp32", "bf16"):
        for compiled in (False, True) if compiles else (False,):
            job = build_job(config, loader, replace(plan, precision=precision, compile=compiled))
            steps[spelled(precision, compiled)] = partial(step, job, loader)
    timed = in_turns(steps, seconds)
    return {"auto": spelled(plan.precision, plan.compile), "seconds": timed, "plan": took}


def spelled(precision: str, compiled: bool) -> str:
    return f"{precision} compiled" if compiled else precision


def step(job: Any, loader: Any) -> None:
    from tauon.train import train_step

    train_step(job, loader.batch_at(job.step))


def in_turns(steps: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return the median seconds of each: 5 rounds or more, after two that are not timed."""
    for _ in range(2):
        for run in steps.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in steps}
    begin = time.perf_counter()
    while len(next(iter(times.values()))) < 5 or time.perf_counter() - begin < seconds:
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: sorted(all_)[len(all_) // 2] for name, all_ in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="6 seconds a recipe instead of 30, and only the GPT compiled")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="the cores of this machine")
    parser.add_argument("--only", choices=NAMES, action="append", help="only this recipe; may be repeated")
    args = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import torch

    from tauon.plan import measured

    torch.set_num_threads(args.threads)
    worst: tuple[float, float, float] = (float("inf"), 0.0, 0.0)
    print(f"{measured.machine()}; load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as empty, patch.object(measured, "measured_file", lambda: Path(empty) / "measured.json"):
        for name in args.only or NAMES:
            print(name, flush=True)
            found = compared(name, 6.0 if args.quick else 30.0, compiles=name == "gpt" or not args.quick)
            timed, auto = found["seconds"], found["seconds"][found["auto"]]
            best = min(timed, key=timed.__getitem__)
            shown = ", ".join(f"{k} {v * 1e3:.2f}" for k, v in timed.items())
            ratio = timed[best] / auto
            print(
                f"    ms a step: {shown}; auto {found['auto']}, best {best}, ratio {ratio:.3f}; planned in {found['plan']:.1f} s",
                flush=True,
            )
            worst = min(worst, (ratio, auto, timed[best]))
    ratio, ours, peer = worst
    print(
        json.dumps(
            {
                "claim": "auto_precision",
                "ours": round(ours, 5),
                "peer": round(peer, 5),
                "ratio": round(ratio, 3),
                "floor": FLOOR,
                "unit": "s/step",
            }
        )
    )


if __name__ == "__main__":
    main()
