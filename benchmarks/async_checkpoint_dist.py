"""Share of step time lost to a checkpoint every 100 steps on two processes (FSDP2): a GPT of 10 million parameters with
AdamW (120 MB a checkpoint), 1,024 tokens a step.

Blocks of a few steps with a checkpoint at their start take turns with blocks without one, in the same processes. A block with one
ends when the checkpoint is on disk, hashed and named, so that it holds all that a checkpoint costs. What it took more than its
neighbour, over 100 times the median step, is the share. `ours` is per cent of step time; `ratio` is the ceiling of 2% / ours.

    python -m benchmarks.async_checkpoint_dist [--quick] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._ranks import Ranks, Setting, steps

EVERY, CEILING = 100, 2.0
WRITERS: dict[str, Any] = {}
"""This process's writer by folder."""


def block(job: Any, n: int, folder: str | None) -> dict[str, float]:
    """`n` steps, with a checkpoint at the start where there is a folder."""
    import time

    from tauon.distributed import MeshCheckpointWriter
    from tauon.train import job_state

    began = time.perf_counter()
    if folder is None:
        return steps(job, n)
    writer = WRITERS.get(folder) or WRITERS.setdefault(folder, MeshCheckpointWriter(Path(folder), job.mesh.world))
    groups, state = job_state(job)
    writer.save(job.step, groups, state)
    copied = time.perf_counter() - began
    steps(job, n)
    job.mesh.world.all_or_raise(writer.wait)
    return {"seconds": time.perf_counter() - began, "copy": copied}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 15")
    parser.add_argument("--folder", default=None, help="where to write: a disk, not memory; the system's temporary folder")
    args = parser.parse_args()
    rounds, n = (5 if args.quick else 15), 6
    ranks = Ranks(Setting(2, 1, {"shard": 2}, batch=4), block)
    lost, plain, copies = [], [], []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        try:
            for number in range(rounds + 2):
                kinds = [None, folder] if number % 2 else [folder, None]
                took = {kind: max(ranks.turn(n, kind), key=lambda a: a["seconds"]) for kind in kinds}
                if number >= 2:
                    lost.append(took[folder]["seconds"] - took[None]["seconds"])
                    plain.append(took[None]["seconds"] / n)
                    copies.append(took[folder]["copy"])
        finally:
            ranks.close()
    step = statistics.median(plain)
    share = 100 * statistics.median(lost) / (EVERY * step)
    print(
        f"step {step:.3f} s; a checkpoint costs {statistics.median(lost):.3f} s ({min(lost):.3f} to {max(lost):.3f}); load {os.getloadavg()[0]:.1f}"
    )
    result = {
        "claim": "async_checkpoint_dist",
        "ours": round(share, 3),
        "peer": CEILING,
        "ratio": round(min(99.0, CEILING / max(share, 1e-9)), 2),
    }
    result |= {"floor": 1.0, "unit": "% of step time; ratio is the ceiling of 2% / ours", "copy_s": round(statistics.median(copies), 4)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
