"""What a training step costs beside the model: where the time of a step goes, for four recipes of small models.

Each recipe is run as `tauon train` runs it (its data, plan, event log, hooks), up to the loop. There, turn by turn, the loop runs some steps
untouched (the median step), some with every part timed, and the model alone does forward and backward on a fixed batch, in the same dtype.
Shares are of the median step: `model` is the model alone; `gradients` is what making the gradients costs beyond that; `rest` is what no part
explains. Validation and checkpoints, which come every so many steps, are left out. Without the recipe's data, data of the same shape is made.

    python -m benchmarks.step_cost [--quick] [--threads N] [--precision auto|fp32|bf16] [RECIPE ...]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

RECIPES = ("mnist-mlp", "cifar10-resnet", "chest-xray", "breast-cancer")
SHAPES = {"mnist-mlp": (60_000, 1, 28, 10), "cifar10-resnet": (10_000, 3, 32, 10), "chest-xray": (4_708, 1, 28, 2)}
"""Examples, channels, side and classes of each recipe's pictures."""
PARTS = ("loader", "model", "gradients", "clip", "optimizer", "averages", "health", "hooks", "rest")
FLOOR = 0.85
"""Share of a step that the model should take."""


class Clock:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def timed(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """`act`, each call of which adds to `name`."""
        kept, now = self.seconds[name], time.perf_counter

        def run(*args: Any, **more: Any) -> Any:
            start = now()
            try:
                return act(*args, **more)
            finally:
                kept.append(now() - start)

        return run

    def per_step(self, name: str, calls: int) -> float:
        """Median seconds of a step, of `calls` calls each."""
        each = self.seconds[name]
        return statistics.median(sum(each[i : i + calls]) for i in range(0, len(each) - calls + 1, calls)) if each else 0.0


class TimedLoader:
    """A loader whose batches are timed."""

    def __init__(self, loader: Any, clock: Clock) -> None:
        self.batch_at = clock.timed("loader", loader.batch_at)


def steps_of(job: Any, hooks: list[Any], steps: int) -> list[float]:
    """Seconds of each of `steps` steps of the loop, from hook to hook."""
    from tauon.train import STOP, train

    ends: list[float] = []

    def end(job: Any, info: Any) -> str | None:
        ends.append(time.perf_counter())
        return STOP if len(ends) > steps else None

    train(job, hooks=[*hooks, end])
    job.notes.pop("stopped")
    return [b - a for a, b in pairwise(ends)]


def timed_steps(job: Any, hooks: list[Any], steps: int, clock: Clock) -> None:
    """The same with every part timed."""
    functions, loader = job.functions, job.loader
    job.functions = replace(functions, **{n: clock.timed(n, getattr(functions, n)) for n in ("make", "clip", "update")})
    job.loader = TimedLoader(loader, clock)
    wrapped = [(job.health, "check", "health")]
    wrapped += [(o, n, "averages") for o, n in ((job.ema, "update"), (job.statistics, "remember")) if o is not None]
    for owner, name, part in wrapped:
        setattr(owner, name, clock.timed(part, getattr(owner, name)))
    try:
        steps_of(job, [clock.timed("hooks", hook) for hook in hooks], steps)
    finally:
        job.functions, job.loader = functions, loader
        for owner, name, _ in wrapped:
            delattr(owner, name)


def model_alone(job: Any, batch: Any) -> Callable[[], None]:
    """Forward and backward of one batch."""

    def run() -> None:
        with job.policy.precision.context():
            total, weight = job.task.loss(job.model, batch)
        (total / weight).backward()
        job.optimizer.zero_grad(set_to_none=True)

    return run


def measure(job: Any, hooks: list[Any], rounds: int, seconds: float) -> dict[str, float]:
    """Median seconds of a step, and of each part of it."""
    from tauon.train.loop import every

    hooks = [h for h in hooks if not isinstance(h, every)]
    job.policy = replace(job.policy, total_steps=10**9)
    alone = model_alone(job, job.loader.batch_at(0))
    first = statistics.median(steps_of(job, hooks, 4))
    steps = max(3, int(seconds / rounds / 3 / first))
    clock, whole, model = Clock(), [], []
    for _ in range(rounds):
        whole += steps_of(job, hooks, steps)
        for _ in range(steps):
            start = time.perf_counter()
            alone()
            model.append(time.perf_counter() - start)
        timed_steps(job, hooks, steps, clock)
    calls = {"hooks": len(hooks), "averages": (job.ema is not None) + (job.statistics is not None)}
    found = {name: clock.per_step(name, calls.get(name, 1)) for name in ("loader", "make", "clip", "update", "health", "averages", "hooks")}
    step = statistics.median(whole)
    parts = {"loader": found["loader"], "model": statistics.median(model), "clip": found["clip"], "optimizer": found["update"]}
    parts |= {n: found[n] for n in ("averages", "health", "hooks")} | {"gradients": max(0.0, found["make"] - parts["model"])}
    return {"step": step, **parts, "rest": step - sum(parts.values())}


def assignments(name: str, folder: Path, precision: str) -> list[str]:
    """What replaces the recipe's values: other data of the same shape where there is none, one split instead of folds."""
    asked = [f"train.precision={precision}"]
    if name == "breast-cancer":
        return [*asked, "data.split.fold=0"]
    if name in SHAPES and "TAUON_DATA" not in os.environ:
        rows, channels, side, classes = SHAPES[name]
        rng = np.random.default_rng(0)
        y = rng.integers(0, classes, rows)
        noise = rng.integers(0, 128, (rows, side, side, channels))
        np.savez(folder / f"{name}.npz", x=(noise + (y * 12)[:, None, None, None]).astype(np.uint8), y=y)
        asked += [f"data.source={{kind: npz, path: {folder / name}.npz}}", "data.split={validation: 0, test: 0}"]
    return asked


def profile(name: str, rounds: int, seconds: float, folder: Path, precision: str) -> dict[str, Any]:
    """Run the recipe up to its loop, and measure there."""
    import tauon.stages.train as stage
    from tauon.pipeline import run
    from tauon.recipe import load_recipe

    found: dict[str, Any] = {}

    class Done(Exception):
        """Nothing after the loop is needed."""

    def instead(job: Any, *, hooks: list[Any], **_: Any) -> Any:
        found.update(measure(job, hooks, rounds, seconds), precision=job.policy.precision.name)
        raise Done

    own, stage.train = stage.train, instead  # type: ignore[assignment]
    try:
        recipe = load_recipe(name, assignments(name, folder, precision))
        run(recipe, root=folder / "runs", stages=("prepare", "train"), fresh=True)
    except Done:
        pass
    finally:
        stage.train = own
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about 5 counted seconds of each recipe instead of 20")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="the cores of this machine")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="of every recipe")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", default=RECIPES, help=", ".join(RECIPES))
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    rounds, seconds = (3, 5.0) if args.quick else (6, 20.0)
    print(f"{'recipe':<16}{'step ms':>9}" + "".join(f"{p:>11}" for p in PARTS), flush=True)
    shares = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.recipes:
            found = profile(name, rounds, seconds, Path(folder), args.precision)
            shares[name] = found["model"] / found["step"]
            row = "".join(f"{100 * found[p] / found['step']:>10.1f}%" for p in PARTS)
            print(f"{name:<16}{found['step'] * 1e3:>9.3f}{row}  {found['precision']}", flush=True)
    data = "real data" if "TAUON_DATA" in os.environ else "data of the same shape"
    print(f"{args.threads} threads; torch {torch.__version__}; {data}; load {os.getloadavg()[0]:.1f}")
    least = min(shares, key=lambda n: shares[n])
    result: dict[str, Any] = {"claim": "step_cost", "ours": round(100 * shares[least], 1), "peer": 100, "ratio": round(shares[least], 3)}
    result |= {"floor": FLOOR, "unit": f"% of a step in the model alone, the least of {len(shares)} recipes ({least})"}
    print(json.dumps(result | {"shares": {n: round(s, 3) for n, s in shares.items()}}))


if __name__ == "__main__":
    main()
