"""Tokens a second of two processes with a thread each (DDP, gloo) against one process with two threads: a GPT of 10 million parameters.

The same step of 4,096 tokens, fp32, AdamW. Both live at once and take turns in blocks of steps.

    python -m benchmarks.ddp_overhead [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics

from benchmarks._ranks import SEQ, Ranks, Setting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 rounds instead of 10")
    args = parser.parse_args()
    rounds, block = (4 if args.quick else 10), 3
    groups = {"ours": Ranks(Setting(2, 1, {"replicate": 2})), "peer": Ranks(Setting(1, 2))}
    try:
        seconds: dict[str, list[float]] = {name: [] for name in groups}
        losses = {}
        for number in range(rounds + 1):
            for name in list(groups) if number % 2 else list(groups)[::-1]:
                answers = groups[name].turn(block)
                losses[name] = sum(a["loss"] for a in answers) / len(answers)
                if number:
                    seconds[name].append(max(a["seconds"] for a in answers))
    finally:
        for group in groups.values():
            group.close()
    tokens = block * groups["ours"].setting.batch * SEQ
    speed = {name: tokens / statistics.median(found) for name, found in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
    print(f"last losses {losses}; a round's ratio from {min(ratios):.2f} to {max(ratios):.2f}; load {os.getloadavg()[0]:.1f}")
    result = {"claim": "ddp_overhead", "ours": round(speed["ours"], 1), "peer": round(speed["peer"], 1)}
    print(json.dumps(result | {"ratio": round(statistics.median(ratios), 3), "floor": 0.92, "unit": "tokens/s, 2 processes x 1 thread"}))


if __name__ == "__main__":
    main()
