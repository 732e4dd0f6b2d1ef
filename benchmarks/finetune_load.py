"""Seconds from a published 500 MB safetensors file to the first training step behind one, against reading that file and taking that step.

A Llama of 12 layers, width 768, vocabulary 32,000: 134 million weights, random, in float32 (536 MB), written once and in the page cache. Ours is
what a run does: open the folder, build on the meta device, put the weights in, build the optimizer, take a step of one sequence of 16 tokens (so
that loading is what is seen). The peer reads the file's bytes into memory, and then takes the same step of a job that was built before:
nothing that loads weights can do less than that, unless it maps what it only reads. `lora` freezes the base, which is then mapped and not
copied; `full` trains all of it. The step that the peer takes is the second of the same job, with the optimizer's state in place.

The claim is LoRA's: loading and the first step in at most 1.25 of the time that reading alone takes. `ratio_full` is of all weights: the peer's
reading and second step over our loading and first step, which also allocates gradients and moments (three times the weights' memory).

    python -m benchmarks.finetune_load [--quick] [--threads N]
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

SEQ = 16
SIZES = {"kind": "llama", "layers": 12, "width": 768, "heads": 12, "mlp_width": 2048, "vocab": 32000, "seq_len": 1024}


class Batches:
    """One short sequence a step."""

    def batch_at(self, step: int) -> Any:
        from tauon.testing import tiny_batch
        from tauon.types import DataSpec

        return tiny_batch(DataSpec(vocab=SIZES["vocab"], seq_len=SEQ), rows=1, seed=step)


def job(folder: Path, adapt: bool) -> Any:
    """The job at step 0, as a run builds it."""
    import torch

    from tauon.config import parse
    from tauon.models import AdaptConfig, ModelConfig, resolved
    from tauon.optim import AdamWConfig
    from tauon.plan import Plan
    from tauon.tasks import LanguageModelling
    from tauon.train import JobConfig, TrainConfig, build_job
    from tauon.types import DataSpec

    spec = DataSpec(vocab=SIZES["vocab"], seq_len=SEQ)
    config = resolved(parse(ModelConfig, {"from": str(folder)}), spec)
    if adapt:
        config = config.model_copy(update={"adapt": parse(AdaptConfig, {"kind": "lora", "rank": 16})})
    plan = Plan(10, torch.device("cpu"), "fp32", False, 1, 1, 1, torch.get_num_threads())
    return build_job(JobConfig(config, AdamWConfig(), TrainConfig(steps=10, batch=1), LanguageModelling(), spec, 0), Batches(), plan)


def step(made: Any) -> None:
    from tauon.train import train_step

    made.model.train()
    train_step(made, made.loader.batch_at(made.step))


def give_back_free_memory() -> None:
    """Memory that an earlier round has freed would spare whoever comes next its page faults, as no fresh process is spared."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)


def timed(run: Any) -> float:
    give_back_free_memory()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def read(file: Path) -> None:
    """The file's bytes in memory of our own."""
    memory = bytearray(file.stat().st_size)
    with file.open("rb", buffering=0) as f:
        view = memoryview(memory)
        while view:
            view = view[f.readinto(view) :]


def rounds(folder: Path, adapt: bool, times: int) -> dict[str, float]:
    """Medians, in seconds; the parts take turns."""
    found: dict[str, list[float]] = {name: [] for name in ("ours", "load", "reading", "step")}
    for _ in range(times + 1):
        held: list[Any] = []
        load = timed(lambda held=held: held.append(job(folder, adapt)))  # type: ignore[misc]
        first = timed(lambda held=held: step(held[0]))  # type: ignore[misc]
        found["load"].append(load)
        found["ours"].append(load + first)
        found["step"].append(timed(lambda held=held: step(held[0])))  # type: ignore[misc]
        held.clear()
        found["reading"].append(timed(lambda: read(folder / "model.safetensors")))
    return {name: statistics.median(values[1:]) for name, values in found.items()}  # the first imports what is needed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 9")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="the cores of this machine")
    args = parser.parse_args()

    import torch

    from tauon.config import parse
    from tauon.models import ModelConfig, materialize, parameter_count, write_huggingface

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "base"
        config = parse(ModelConfig, SIZES)
        model = materialize(config, seed=0)
        write_huggingface(folder, config, dict(model.state_dict()))
        print(f"{parameter_count(model):,} weights, {(folder / 'model.safetensors').stat().st_size / 1e6:,.0f} MB", flush=True)
        del model
        results = {kind: rounds(folder, kind == "lora", 3 if args.quick else 9) for kind in ("lora", "full")}
    for kind, r in results.items():
        print(
            f"{kind}: load {r['load']:.3f} s, with the first step {r['ours']:.3f} s; reading {r['reading']:.3f} s, a step {r['step']:.3f} s"
        )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    lora, full = results["lora"], results["full"]
    result: dict[str, Any] = {"claim": "finetune_load", "ours": round(lora["ours"], 3), "peer": round(lora["reading"], 3)}
    result |= {"ratio": round(lora["reading"] / lora["ours"], 2), "floor": 0.8, "unit": "s to the first step"}
    result |= {
        "of_reading_lora": round(lora["ours"] / lora["reading"], 2),
        "ratio_lora": round((lora["reading"] + lora["step"]) / lora["ours"], 2),
        "ratio_full": round((full["reading"] + full["step"]) / full["ours"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
