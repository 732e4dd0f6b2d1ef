"""A private step on two processes that share the weights (FSDP2) against the plain one: clipping by example, noise, the same sums.

Two processes with a thread each, a GPT of 10 million parameters, 16 sequences of 256 tokens a step, fp32, AdamW. Both live at once and take turns.
`ratio` is the time of a plain step over that of a private one: at least 1 / 1.5.

    python -m benchmarks.dp_fsdp [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics

from benchmarks._ranks import Setting, take_turns

MOST = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 rounds instead of 10")
    args = parser.parse_args()
    rounds, block = (4 if args.quick else 10), 2
    seconds, _ = take_turns(Setting(2, 1, {"shard": 2}, private=True), Setting(2, 1, {"shard": 2}), rounds, block)
    ratio = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True))
    step = {name: statistics.median(found) / block for name, found in seconds.items()}
    print(f"private {step['ours']:.3f} s, plain {step['peer']:.3f} s a step; load {os.getloadavg()[0]:.1f}")
    result = {"claim": "dp_fsdp", "ours": round(step["ours"], 3), "peer": round(step["peer"], 3), "ratio": round(ratio, 3)}
    print(json.dumps(result | {"floor": round(1 / MOST, 3), "unit": "s a step"}))


if __name__ == "__main__":
    main()
