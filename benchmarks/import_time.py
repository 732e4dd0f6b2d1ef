"""Seconds that a fresh process takes to `import tauon`, and for `tauon --help`, whole: start of the interpreter included.

The peer is `import torch` in a fresh process: what both would take if they imported it. The kinds take turns; medians over rounds,
after one round that fills the disk cache. The claim is about seconds, so `ratio` is room below the ceilings, 0.2 s and 0.5 s: the
smaller of ceiling / median. The processor time of those processes is stated beside (`cpu`), for machines that others use too.

    python -m benchmarks.import_time [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

KINDS = {
    "import": [sys.executable, "-c", "import tauon"],
    "help": [sys.executable, "-c", "from tauon.cli import main; main(['--help'])"],
    "peer": [sys.executable, "-c", "import torch"],
    "nothing": [sys.executable, "-c", "pass"],
}
CEILING = {"import": 0.2, "help": 0.5}


def children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 15")
    rounds = 5 if parser.parse_args().quick else 15
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        for kind, command in KINDS.items():
            before, start = children(), time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            if number:
                times[kind].append(seconds)
                cpu[kind].append(children() - before)
    median = {kind: statistics.median(v) for kind, v in times.items()}
    for kind, command in KINDS.items():
        low, high = min(times[kind]), max(times[kind])
        print(f"{command[-1]}: {median[kind]:.3f} s ({low:.3f} to {high:.3f} of {rounds}), processor {statistics.median(cpu[kind]):.3f} s")
    print(f"load {os.getloadavg()[0]:.1f}")
    result = {"claim": "import_time", "ours": round(median["import"], 3), "peer": round(median["peer"], 3)}
    result |= {"ratio": round(min(CEILING[k] / median[k] for k in CEILING), 2), "floor": 1.0}
    result |= {"unit": "seconds; ratio is ceiling (0.2 import, 0.5 help) / median", "ours_help": round(median["help"], 3)}
    result |= {f"cpu_{kind}": round(statistics.median(v), 3) for kind, v in cpu.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
