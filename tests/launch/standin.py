"""A worker that stands in for a run: all-reduces, counts steps into a file, saves when asked to stop, can be made to fail.

python standin.py FOLDER STEPS [SECONDS_A_STEP] [crash=RANK@STEP | exit=RANK@CODE | deaf=RANK]
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

from tauon.launch.worker import enter

enter()

import torch  # noqa: E402  (after its cores are chosen, as in the real worker)
import torch.distributed as dist  # noqa: E402

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
wish, _, what = (sys.argv[4] if len(sys.argv) > 4 else "").partition("=")
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
(folder / f"started-{rank}-{start}.json").write_text(
    json.dumps({"pid": os.getpid(), "threads": torch.get_num_threads(), "cpus": sorted(os.sched_getaffinity(0)), "env": dict(os.environ)})
)
if wish == "exit" and rank == int(what.split("@")[0]):
    print("error: the recipe is wrong\n  - in two places", file=sys.stderr)
    sys.exit(int(what.split("@")[1]))
if wish == "raise":
    raise ValueError(f"every rank fails, {rank} too")

stop = False


def asked(number: int, frame: object) -> None:
    global stop
    stop = True


signal.signal(signal.SIGTERM, signal.SIG_IGN if wish == "deaf" and rank == int(what) else asked)
signal.signal(signal.SIGINT, asked)
dist.init_process_group("gloo", timeout=timedelta(seconds=float(os.environ["TAUON_TIMEOUT_S"])))
saved = folder / "step.txt"
step = int(saved.read_text()) if saved.exists() else 0
dist.barrier()
print(f"going on at step {step} with {world} workers", flush=True)
while step < steps:
    total = torch.tensor([1.0 + rank, float(stop)])
    dist.all_reduce(total)
    assert total[0].item() == world * (world + 1) / 2
    step += 1
    if wish == "crash" and what == f"{rank}@{step}" and start == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0:
        saved.with_suffix(".new").write_text(str(step))
        saved.with_suffix(".new").rename(saved)
    if total[1].item():
        print(f"saved at step {step}", flush=True)
        sys.exit(130)
    while wish == "deaf" and rank == int(what):
        time.sleep(1)
    time.sleep(pause)
dist.destroy_process_group()
print(f"done, rank {rank} of {world}", flush=True)
