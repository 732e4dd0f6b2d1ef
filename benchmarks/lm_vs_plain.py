"""Tokens a second of Tauon's training loop at default settings against a loop that a good engineer would write by hand.

The shape, data and batch of `lm_vs_hf`. The peer is nanoGPT's model and loop (transcribed in `lm_time_to_loss`): the whole model compiled, bf16
autocast, fused AdamW, gradients clipped at 1, random windows of one array of tokens, the loss read at each step. It has a process of its own; both
take turns, step by step. Compiling is not counted, for neither.

    python -m benchmarks.lm_vs_plain [--quick] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._turns import Peer, Seconds, now, serve, since
from benchmarks.lm_vs_hf import BATCH, SEQ, TOKENS, VOCAB, Ours, medians, processor, recipe, taken_in_turns


def peer(precision: str, steps: int, between: Callable[[Seconds], None]) -> None:
    """The loop written by hand; `between` gets the time of each step."""
    import numpy as np
    import torch

    from benchmarks.lm_time_to_loss import NanoGPT
    from tauon.data import prepare

    train_set = prepare(recipe("gpt", "fp32").data, seed=0, input_kind="tokens").train
    rows = [train_set.batch(np.array([i])).inputs[0].numpy() for i in range(min(2048, len(train_set)))]
    data = np.concatenate(rows).astype(np.uint16)
    torch.manual_seed(0)
    model = NanoGPT(VOCAB, layers=6, heads=6, width=384, length=SEQ)
    decay, rest = [p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
    compiled: Any = torch.compile(model)
    for _ in range(steps):
        start = now()
        ix = np.random.randint(len(data) - SEQ - 1, size=BATCH)
        x, y = (torch.from_numpy(np.stack([data[i + k : i + k + SEQ] for i in ix]).astype(np.int64)) for k in (0, 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = compiled(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        between(since(start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 counted steps of each instead of 12")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of all alike; the cores of this machine")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    import torch

    torch.set_num_threads(args.threads)
    if args.peer is not None:
        serve(lambda between: peer(args.peer, args.steps, between))
        return
    warm, counted = 2, 4 if args.quick else 12
    with tempfile.TemporaryDirectory() as name:
        ours = {"ours": Ours("ours", "gpt", "auto", Path(name))}
        plan = ours["ours"].plan
        print(f"ours: precision {plan.precision}, attention {plan.attention}, compiled {plan.compile}", flush=True)
        peers = {"peer": Peer("lm_vs_plain", plan.precision, warm + counted + 2, args.threads)}
        taken_in_turns(ours, peers, warm + counted)
        ours["ours"].close()
    clock, cpu = medians({"ours": ours["ours"].times[warm:], "peer": peers["peer"].times[warm + 1 :]})
    print(f"{args.threads} threads; torch {torch.__version__}; {processor()}; load {os.getloadavg()[0]:.1f}")
    result = {"claim": "lm_vs_plain", "ours": round(TOKENS / clock["ours"]), "peer": round(TOKENS / clock["peer"])}
    result |= {"ratio": round(clock["peer"] / clock["ours"], 2), "floor": 1.15, "unit": "tokens/s"}
    print(json.dumps(result | {"ratio_cpu": round(cpu["peer"] / cpu["ours"], 2), "dtype": plan.precision}))


if __name__ == "__main__":
    main()
