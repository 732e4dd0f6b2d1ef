"""Share of step time lost to a checkpoint every 100 steps: a GPT of 30 million parameters with AdamW (360 MB a checkpoint).

Three kinds of block of the same few steps take turns in one process: without a checkpoint; with one of ours at its start
(`job_state` and `CheckpointWriter`, which copies, then hashes and writes in a thread of low priority); with `torch.save` of the
same tensors in the foreground. A block of ours ends only when its write is on disk, so it holds all that a checkpoint costs: the
copy, and the slower steps while the write goes on. What a kind loses is its block's time less that of its neighbour without a
checkpoint; the median over rounds, over 100 times the median step, is the share.

`ours` and `peer` are per cent of step time; `ratio` is the ceiling of 2% / ours. Also stated: `copy_s`, what the call itself takes,
and the loss in processor time (`cpu`), for machines that others use too. Sequences are short (64 tokens a step of 512), which
makes steps quick and the share larger than it is in real training.

    python -m benchmarks.checkpoint_stall [--quick] [--threads N] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

EVERY = 100
CEILING = 2.0
SEQ, BATCH, VOCAB = 64, 8, 8192


class Random:
    """Batches of random tokens: what is in them costs nothing and changes nothing here."""

    def batch_at(self, step: int) -> Any:
        from tauon.types import Batch

        tokens = torch.randint(0, VOCAB, (BATCH, SEQ + 1), generator=torch.Generator().manual_seed(step))
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(BATCH, SEQ))


def make_job() -> Any:
    """8 layers, width 512, tied head: 29.4 million parameters."""
    from tauon.config import parse
    from tauon.models import ModelConfig
    from tauon.optim import AdamWConfig
    from tauon.plan import make_plan
    from tauon.tasks import LanguageModelling
    from tauon.train import JobConfig, TrainConfig, build_job
    from tauon.types import DataSpec

    spec = DataSpec(vocab=VOCAB, seq_len=SEQ)
    sizes = {"kind": "gpt", "layers": 8, "width": 512, "heads": 8, "vocab": VOCAB, "seq_len": SEQ, "tied": True}
    model, optim, config, task = (
        parse(ModelConfig, sizes),
        AdamWConfig(),
        TrainConfig(steps=10**6, batch=BATCH, compile=False),
        LanguageModelling(),
    )
    loader = Random()
    plan = make_plan(JobConfig(model, optim, config, task, spec, 0), examples=10**6)
    return build_job(JobConfig(model, optim, config, task, spec, 0), loader, plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 9")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="the cores of this machine")
    parser.add_argument("--folder", default=None, help="where to write: a disk, not memory; the system's temporary folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    from tauon.artifacts import CheckpointWriter
    from tauon.train import job_state, train_step

    rounds, warm = (3 if args.quick else 9), 1
    job = make_job()
    parameters = sum(p.numel() for p in job.model.parameters())

    def steps(n: int, times: list[float] | None = None) -> None:
        for _ in range(n):
            start = time.perf_counter()
            train_step(job, job.loader.batch_at(job.step))
            if times is not None:
                times.append(time.perf_counter() - start)

    job.model.train()
    steps(2)
    plain: list[float] = []
    copies: list[float] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        writer = CheckpointWriter(Path(folder) / "ours")

        def nothing(n: int) -> None:
            steps(n, plain)

        def ours(n: int) -> None:
            start = time.perf_counter()
            groups, state = job_state(job)
            writer.save(job.step, groups, state)
            copies.append(time.perf_counter() - start)
            steps(n)
            writer.wait()  # a block without a remainder: what is still being written when its steps are over is counted here

        def foreground(n: int) -> None:
            groups, state = job_state(job)
            torch.save((groups, state), Path(folder) / "peer.pt")
            steps(n)

        def timed(block: Callable[[int], None], n: int) -> tuple[float, float]:
            start, cpu = time.perf_counter(), time.process_time()
            block(n)
            return time.perf_counter() - start, time.process_time() - cpu

        start = time.perf_counter()
        ours(0)
        copies.clear()
        alone = time.perf_counter() - start
        steps(3, plain)
        # long enough for the write to end before the block does, as it does in 100 steps
        n = max(4, min(EVERY, round(1.5 * alone / statistics.median(plain))))
        plain.clear()
        print(f"writing alone takes {alone:.2f} s; blocks of {n} steps, {rounds} rounds", flush=True)
        lost: dict[str, list[float]] = {"ours": [], "peer": []}
        cpu: dict[str, list[float]] = {"ours": [], "peer": []}
        for number in range(rounds + warm):
            pairs = [("ours", ours), ("peer", foreground)]
            for name, block in pairs if number % 2 else pairs[::-1]:
                without, with_one = timed(nothing, n), timed(block, n)
                if number >= warm:
                    lost[name].append(with_one[0] - without[0])
                    cpu[name].append(with_one[1] - without[1])
        writer.close()
    step = statistics.median(plain)
    share = {name: 100 * statistics.median(values) / (EVERY * step) for name, values in lost.items()}
    print(f"{parameters:,} parameters; step {step:.3f} s")
    for name, values in lost.items():
        low, high = min(values), max(values)
        print(
            f"{name}: a checkpoint costs {statistics.median(values):.3f} s ({low:.3f} to {high:.3f}): {share[name]:.2f}% of {EVERY} steps"
        )
    print(f"{args.threads} threads; torch {torch.__version__}; load {os.getloadavg()[0]:.1f}")
    result = {"claim": "checkpoint_stall", "ours": round(share["ours"], 3), "peer": round(share["peer"], 3)}
    result |= {"ratio": round(min(99.0, CEILING / max(share["ours"], 1e-9)), 2), "floor": 1.0}
    result |= {"unit": "% of step time; ratio is the ceiling of 2% / ours", "copy_s": round(statistics.median(copies), 4)}
    result |= {"step_s": round(step, 4)} | {f"cpu_{name}_s": round(statistics.median(v), 3) for name, v in cpu.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
