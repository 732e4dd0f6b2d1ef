"""Tokens a second of two processes with a thread each (DDP, gloo) against one process with two threads: a GPT of 10 million parameters.

The same step of 4,096 tokens, fp32, AdamW. Both live at once and take turns in blocks of steps.

    python -m benchmarks.ddp_overhead [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics

from benchmarks._ranks import SEQ, Setting, take_turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 rounds instead of 10")
    args = parser.parse_args()
    rounds, block = (4 if args.quick else 10), 3
    ours = Setting(2, 1, {"replicate": 2})
    seconds, last = take_turns(ours, Setting(1, 2), rounds, block)
    losses = {name: sum(a["loss"] for a in answers) / len(answers) for name, answers in last.items()}
    tokens = block * ours.batch * SEQ
    speed = {name: tokens / statistics.median(found) for name, found in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
    print(f"last losses {losses}; a round's ratio from {min(ratios):.2f} to {max(ratios):.2f}; load {os.getloadavg()[0]:.1f}")
    result = {"claim": "ddp_overhead", "ours": round(speed["ours"], 1), "peer": round(speed["peer"], 1)}
    print(json.dumps(result | {"ratio": round(statistics.median(ratios), 3), "floor": 0.92, "unit": "tokens/s, 2 processes x 1 thread"}))


if __name__ == "__main__":
    main()
