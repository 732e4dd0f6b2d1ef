"""Peak memory of a private step in the four cases of the dp_step claims and dp_lora, against the plain step and against Opacus.

Each in a process of its own: two steps, the most that was resident less what was before the model was built. Of Opacus the mode that takes
least counts. `ours` and `peer` are multiples of the plain step's peak, the worst case of ours and that case's of Opacus; `ratio` is the least
of Opacus's peak by ours over the cases (1.25 is 0.8 turned round).

    python -m benchmarks.dp_memory [--quick]          needs the bench extra (opacus)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

from benchmarks._private import MODES, case_of, opacus_step, our_step, plain_step

CASES = ("lm", "wide", "cnn", "lora")
STEPS = 2


def resident(field: str) -> int:
    """Bytes, of VmRSS (now) or VmHWM (the most so far)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def alone(case: str, who: str) -> None:
    """In a process of its own: print the peak in bytes."""
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(2)
    if who in MODES:
        import opacus.optimizers  # noqa: F401 - its code is no memory of the step
    else:
        import tauon.privacy.clipped
        import tauon.testing  # noqa: F401
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))
    before = resident("VmRSS")
    found = case_of(case)
    step = {"plain": plain_step, "ours": our_step}[who](found) if who not in MODES else opacus_step(found, who)
    for _ in range(STEPS):
        step()
    print(json.dumps(resident("VmHWM") - before))


def peak(case: str, who: str) -> int | None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.dp_memory", "--alone", case, who], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    return None if run.returncode else int(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without the wide model")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        alone(*args.alone)
        return
    of_plain, of_peer, peers = {}, {}, {}
    for case in CASES:
        if args.quick and case == "wide":
            continue
        plain, ours = peak(case, "plain"), peak(case, "ours")
        theirs = [p for mode in MODES if (p := peak(case, mode)) is not None]
        assert plain is not None
        assert ours is not None
        of_plain[case], of_peer[case], peers[case] = ours / plain, min(theirs) / ours, min(theirs) / plain
        print(f"{case}: plain {plain / 2**20:.0f} MiB, ours {ours / 2**20:.0f}, Opacus {min(theirs) / 2**20:.0f}", flush=True)
    worst = max(of_plain, key=lambda c: of_plain[c])
    result = {
        "claim": "dp_memory",
        "ours": round(of_plain[worst], 2),
        "peer": round(peers[worst], 2),
        "ratio": round(min(of_peer.values()), 2),
    }
    result |= {"floor": 1.25, "unit": "x plain", "of_plain": {c: round(v, 2) for c, v in of_plain.items()}, "of_plain_ceiling": 1.3}
    result |= {"of_peer": {c: round(1 / v, 2) for c, v in of_peer.items()}}
    print(f"load {os.getloadavg()[0]:.1f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
