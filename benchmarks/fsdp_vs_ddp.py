"""Sharded (FSDP2) against replicated (DDP): tokens a second, and the bytes of parameters, gradients and optimizer that a process holds.

Two processes with a thread each, a GPT of 10 million parameters, 4,096 tokens a step, fp32, AdamW. Both live at once and take turns.
Held bytes are counted from the tensors right after a backward pass. `ratio` is that of speed; the other floor is `memory_ceiling`.
Weights are few here, so that the sharded side keeps them gathered from forward to backward (parallel.reshard_after_forward: auto): inside
a step it holds the whole weights beside its shards, and `memory_in_step` says so.

    python -m benchmarks.fsdp_vs_ddp [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics

from benchmarks._ranks import SEQ, Setting, take_turns

CEILING = 0.55


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 rounds instead of 10")
    args = parser.parse_args()
    rounds, block = (4 if args.quick else 10), 3
    ours = Setting(2, 1, {"shard": 2})
    seconds, last = take_turns(ours, Setting(2, 1, {"replicate": 2}), rounds, block)
    held = {name: max(a["held"] for a in answers) for name, answers in last.items()}
    tokens = block * ours.batch * SEQ
    speed = {name: tokens / statistics.median(found) for name, found in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
    memory = held["ours"] / held["peer"]
    in_step = (held["ours"] + held["peer"] / 4) / held[
        "peer"
    ]  # weights are a quarter of what a replica holds, beside gradients and two moments
    print(f"held {held['ours'] / 1e6:.1f} MB and {held['peer'] / 1e6:.1f} MB: {memory:.3f}; load {os.getloadavg()[0]:.1f}")
    if memory > CEILING:
        raise SystemExit(f"a sharded process holds {memory:.3f} of what a replica does; the ceiling is {CEILING}")
    result = {"claim": "fsdp_vs_ddp", "ours": round(speed["ours"], 1), "peer": round(speed["peer"], 1)}
    result |= {"ratio": round(statistics.median(ratios), 3), "floor": 0.85, "unit": "tokens/s"}
    print(json.dumps(result | {"memory": round(memory, 4), "memory_ceiling": CEILING, "memory_in_step": round(in_step, 3)}))


if __name__ == "__main__":
    main()
