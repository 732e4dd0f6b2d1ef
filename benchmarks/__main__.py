"""Every benchmark in turn, each in a process of its own, then a table; ends with 1 if a floor is missed or a benchmark breaks.

python -m benchmarks [--quick] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NAMES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
TAKES_NO_FLAGS = {"log_call"}
"""Quick as they are."""
NEEDS_GPU = {"gpu", "gpu_switches"}
"""Left out where there is none, unless asked for by name."""


def measured(name: str, quick: bool) -> dict[str, Any] | None:
    """The JSON of the benchmark's last line; None where it broke."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if quick and name not in TAKES_NO_FLAGS else [])]
    last = ""
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line
    try:
        result: dict[str, Any] = json.loads(last)
    except ValueError:
        return None
    return result if process.returncode == 0 and "ratio" in result else None


def cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds of each")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}. There are: {', '.join(NAMES)}")
    results = {}
    names = args.names or [name for name in NAMES if name not in NEEDS_GPU or cuda()]
    for name in sorted(NEEDS_GPU - {*names}) if not args.names else []:
        print(f"--- {name}\nleft out: there is no CUDA device here", flush=True)
    for name in names:
        print(f"--- {name}", flush=True)
        results[name] = measured(name, args.quick)
    print(f"\n{'claim':<18}{'ours':>12}{'peer':>12}{'ratio':>9}{'floor':>9}  unit")
    missed = 0
    for name, r in results.items():
        if r is None:
            print(f"{name:<18} broke")
            missed += 1
            continue
        low = r["ratio"] < r["floor"]
        missed += low
        print(f"{name:<18}{r['ours']:>12,}{r['peer']:>12,}{r['ratio']:>9}{r['floor']:>9}  {r['unit']}{'  MISSED' if low else ''}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
