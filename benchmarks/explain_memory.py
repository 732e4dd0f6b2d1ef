"""Memory of attribution methods: what `plan_memory` predicts within a bound, against what the process takes.

6 methods x 3 models (the published ResNet-20, a vision transformer, a Conformer over spectrograms), and a BERT over embeddings of tokens, which
Grad-CAM does not explain. The prediction counts tensors; the measurement is the operating system's: in a process of its own, the most that was
resident (VmHWM, reset after the model was built and the method began once with one row) less what was resident before, and less the pages of
program files that were read meanwhile. malloc gives freed memory back at once there (`MALLOC_MMAP_THRESHOLD_`), so that what is resident is
what is in use, oneDNN's buffers included. Both are done in forks of a process that has imported everything and computed nothing in parallel.

`ours` is the largest |measured - predicted| / measured, `peer` the 20% that is allowed, `ratio` the second by the first. A measured peak over
the bound that was given breaks the benchmark.

    python -m benchmarks.explain_memory [--quick] [--bound MIB] [MODEL ...]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.dp_memory import resident

FLOOR = 0.2
BOUND_MIB = 160
LABELS = ("a", "b", "c", "d")
MODELS: dict[str, dict[str, Any]] = {
    "resnet20": {},
    "vit": {"kind": "vit", "patch": 4, "layers": 4, "width": 128, "heads": 4},
    "conformer": {"kind": "conformer", "layers": 2, "width": 96, "heads": 4, "mels": 40, "kernel": 15},
    "bert": {"kind": "bert", "layers": 4, "width": 128, "heads": 4},
}
METHODS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"most_steps": 40},
    "smoothgrad": {"samples": 5},
    "grad_cam": {},
    "occlusion": {},
    "kernel_shap": {"evaluations": 130},
    "gradient_shap": {"samples": 5},
}
"""Options that bound the time, not the memory."""
THREADS = 2
CASES: list[Any] = []
"""Of the model that is measured."""
RETURNS_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


def cases(name: str) -> Any:
    from benchmarks import _resnet
    from tauon.explain import cases_of
    from tauon.models import from_record, materialize
    from tauon.testing.contracts import tiny_batch
    from tauon.types import DataSpec

    if name == "resnet20":
        return _resnet.cases(64)
    spec, kind, rows = {
        "vit": (DataSpec(input_shape=(3, 32, 32), outputs=4, labels=LABELS), "arrays", 48),
        "conformer": (DataSpec(input_shape=(8000,), sample_rate=8000, outputs=4, labels=LABELS), "signals", 48),
        "bert": (DataSpec(vocab=1000, seq_len=64, outputs=4, labels=LABELS), "labelled-text", 48),
    }[name]
    model = materialize(from_record(MODELS[name]).resolve(spec), seed=0).eval()
    return cases_of(model, kind, spec, tiny_batch(spec, rows))


class Enough(Exception):
    pass


def planned(method: str, bound: int) -> Any:
    """In a process of its own: the plan for `CASES`."""
    import torch

    from tauon.explain import METHODS as ALL
    from tauon.explain.memory import plan_memory

    torch.set_num_threads(THREADS)
    return plan_memory(CASES[0], ALL[method], bound, **METHODS[method])


def taken(method: str, at_once: int) -> int:
    """In a process of its own: the bytes that the method takes for `CASES`."""
    import torch

    from tauon.explain import METHODS as ALL
    from tauon.explain import Work

    def stop(*_: int) -> None:
        raise Enough

    torch.set_num_threads(THREADS)
    torch.mm(torch.randn(512, 512), torch.randn(512, 512))
    with suppress(Enough):
        ALL[method].run(CASES[0], Work(at_once=1, progress=stop), **METHODS[method])
    before, code = resident("VmRSS"), resident("RssFile")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    ALL[method].run(CASES[0], Work(at_once=at_once), **METHODS[method])
    return resident("VmHWM") - before - (resident("RssFile") - code)


def apart(run: Callable[..., Any], *args: Any) -> Any:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(run, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one model")
    parser.add_argument("--bound", type=int, default=BOUND_MIB, help="MiB that each method may take")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # malloc reads them when a process starts
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.explain_memory", *sys.argv[1:]], os.environ | RETURNS_MEMORY)
    import torch

    from tauon.explain import METHODS as ALL

    torch.set_num_threads(1)  # of this process: OpenMP's threads would not live through a fork
    found: dict[str, float] = {}
    over = []
    for model in args.models or (["resnet20"] if args.quick else list(MODELS)):
        CASES[:] = [cases(model)]
        for method in args.methods:
            if ALL[method].why_not(CASES[0]):
                continue
            plan = apart(planned, method, args.bound << 20)
            took = apart(taken, method, plan.at_once)
            found[f"{model} {method}"] = plan.predicted_bytes / took
            over += [f"{model} {method}"] * (took > plan.bound_bytes)
            figures = f"{plan.predicted_bytes / 2**20:.1f} MiB predicted, {took / 2**20:.1f} measured, {plan.predicted_bytes / took:.3f}"
            print(f"{model}, {method}: {plan.at_once} of {plan.rows} rows at once, {figures}", flush=True)
    worst = max(abs(r - 1) for r in found.values())
    result = {"claim": "explain_memory", "ours": round(worst, 3), "peer": FLOOR, "ratio": round(FLOOR / worst, 2), "floor": 1.0}
    result |= {"unit": "share of the measured peak", "bound_mib": args.bound, "over_the_bound": over, "pairs": len(found)}
    print(json.dumps(result | {"predicted_by_measured": {k: round(v, 3) for k, v in found.items()}}))
    if over:
        raise SystemExit(f"over the bound: {', '.join(over)}")


if __name__ == "__main__":
    main()
