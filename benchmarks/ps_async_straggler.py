"""Examples a second with one of two workers four times as slow: asynchronous against synchronous parameter server, to the same accuracy band.

scikit-learn's digits, an MLP of 1.1 million parameters, plain SGD, batches of 256. The slow worker sleeps three times as long as each of its
gradients took. Both modes see the same number of examples, from the same weights on; the clock starts when both workers have answered. Modes
take turns, whole runs each; medians are compared. The band: test accuracies within one point of each other.

    python -m benchmarks.ps_async_straggler [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

from tauon.train import JobConfig, RecipeWork

BATCH, STEPS, BAND = 256, 150, 0.01
SECTIONS = {
    "name": "straggler",
    "data": {"source": {"kind": "sklearn", "name": "digits"}, "normalize": "standard", "split": {"validation": 0, "test": "25%"}},
    "task": "classification",
    "model": {"kind": "mlp", "hidden": [1024, 1024]},
    "optim": {"kind": "sgd", "lr": 0.05, "momentum": 0.0, "schedule": {"kind": "constant", "warmup": 0}},
    "train": {"steps": STEPS, "batch": BATCH, "precision": "fp32"},
}


class Straggling(RecipeWork):
    """The recipe's work; worker 0 is four times as slow as it could be."""

    def job(self, worker: int) -> Any:
        job = super().job(worker)
        make = job.functions.make
        if worker == 0:

            def slowly(job: Any, batch: Any) -> Any:
                began = time.perf_counter()
                loss = make(job, batch)
                time.sleep(3 * (time.perf_counter() - began))
                return loss

            job.functions = replace(job.functions, make=slowly)
        return job


def one_run(mode: str, splits: Any, recipe: Any, spec: Any, plan: Any) -> tuple[float, float]:
    """(examples a second, test accuracy)."""
    import numpy as np
    import torch

    from benchmarks.ps_async_straggler import Straggling  # by a name that the workers know, not as __main__
    from tauon.data import Loader
    from tauon.distributed import ParameterServer
    from tauon.train import build_job, job_state, train, use_parameter_server

    model = recipe.model.resolve(spec)
    loader = Loader(splits.train, batch=BATCH, seed=recipe.seed)
    job = build_job(JobConfig(model, recipe.optim, recipe.train, recipe.task, spec, recipe.seed), loader, plan)
    config = JobConfig(model, recipe.optim, recipe.train, recipe.task, spec, recipe.seed)
    work = Straggling.of(config, recipe.data, plan, splits.fingerprint)
    servers = use_parameter_server(job, ParameterServer(workers=2, servers=1, mode=mode, threads=1), recipe.optim, work)
    clock: list[tuple[float, int]] = []

    def hook(job: Any, info: Any) -> None:
        if clock or all(m.about and m.pulled is not None for m in servers.pool.workers.values()):
            clock.append((time.perf_counter(), info.examples))

    with servers:
        train(job, hooks=[hook])
        job_state(job)  # which gathers
    (began, before), (ended, after) = clock[0], clock[-1]
    test = splits.test.batch(np.arange(len(splits.test)))
    with torch.no_grad():
        accuracy = (job.model.eval()(test.inputs).argmax(1) == test.targets).float().mean().item()
    print(
        f"{mode}: {(after - before) / (ended - began):,.0f} examples/s over {len(clock) - 1} steps, test accuracy {accuracy:.4f}",
        flush=True,
    )
    return (after - before) / (ended - began), accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 round instead of 3")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    import torch

    from tauon.config import parse
    from tauon.data import prepare
    from tauon.distributed.ray_session import ray_session
    from tauon.plan import make_plan
    from tauon.recipe import Recipe

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        recipe = parse(Recipe, SECTIONS | {"data": {**SECTIONS["data"], "cache": cache}})
        splits = prepare(recipe.data, seed=recipe.seed, input_kind="arrays")
        config = JobConfig(recipe.model.resolve(splits.spec), recipe.optim, recipe.train, recipe.task, splits.spec, recipe.seed)
        plan = make_plan(config, examples=len(splits.train))
        results: dict[str, list[tuple[float, float]]] = {"sync": [], "async": []}
        with ray_session(None, cpus=4):  # one Ray for all runs
            for _ in range(1 if args.quick else 3):
                for mode, out in results.items():
                    out.append(one_run(mode, splits, recipe, splits.spec, plan))
    speed = {m: statistics.median(s for s, _ in r) for m, r in results.items()}
    accuracy = {m: statistics.mean(a for _, a in r) for m, r in results.items()}
    apart = abs(accuracy["async"] - accuracy["sync"])
    print(f"test accuracy: sync {accuracy['sync']:.4f}, async {accuracy['async']:.4f}, {apart:.4f} apart; load {os.getloadavg()[0]:.1f}")
    if apart > BAND:
        raise SystemExit(f"outside the band of {BAND}: the speeds are not comparable")
    result = {"claim": "ps_async_straggler", "ours": round(speed["async"]), "peer": round(speed["sync"])}
    result |= {"ratio": round(speed["async"] / speed["sync"], 2), "floor": 1.5, "unit": "examples/s"}
    print(json.dumps(result | {f"accuracy_{m}": round(a, 4) for m, a in accuracy.items()}))


if __name__ == "__main__":
    main()
