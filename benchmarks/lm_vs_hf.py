"""Tokens a second of Tauon's training loop against Hugging Face's Trainer: the same shape, data, batch and threads, bf16.

GPT of 6 layers, width 384, 6 heads, vocabulary 8,192, sequences of 256 tokens, 16 a step, AdamW. The peer is GPT2LMHeadModel in
`Trainer` as a user would take it (bf16, adamw_torch, no torch.compile), with dropout 0 as ours has none (its default of 0.1 would
be slower). Both read the same windows of the same tokens, with attention across documents (ours would mask them by default).
Both heads are tied to the embedding.

The two take turns, step by step, inside one process: a callback of Trainer lets ours make a step, so both see the same machine.
What is compared is the median step; the processor time of all threads is stated beside it (`ratio_cpu`): on a machine that others
use too it says more than the clock, with `--threads 1`. Three of ours: `ours` is the `gpt` model of the recipes, in bf16, its blocks compiled (what
`compile: auto` chooses for a run of any length; compiling is not counted); `ours_gpt2` is GPT-2's own layout, the same arithmetic
as the peer's; `ours_auto` is `gpt` at `precision: auto`, which measures both and takes the faster.

    python -m benchmarks.lm_vs_hf [--quick] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEQ, BATCH, VOCAB = 256, 16, 8192
TOKENS = SEQ * BATCH


def recipe(model: str, precision: str) -> Any:
    """The run as a user would write it."""
    from tauon.config import parse
    from tauon.recipe import Recipe

    return parse(
        Recipe,
        {
            "name": "lm-vs-hf",
            "data": {
                "source": {"kind": "python-stdlib", "limit": 300},
                "tokenizer": {"kind": "bpe", "vocab": VOCAB},
                "seq_len": SEQ,
                "mask_documents": False,
            },
            "task": "language-modelling",
            "model": {"kind": model, "layers": 6, "width": 384, "heads": 6, "vocab": VOCAB} | ({"tied": True} if model == "gpt" else {}),
            "optim": {"kind": "adamw", "lr": 3e-4},
            "train": {"steps": 100_000, "batch": BATCH, "precision": precision},
        },
    )


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Seconds since `start`: by the clock, and of the processor (all threads)."""
    clock, cpu = now()
    return clock - start[0], cpu - start[1]


class Ours:
    """Tauon's own loop, a step at a time: `make_plan`, `build_job`, `train` with the hooks that a run has (meter, event log)."""

    def __init__(self, name: str, model: str, precision: str, folder: Path) -> None:
        from tauon.data import Loader, prepare
        from tauon.plan import Work, make_plan
        from tauon.tracking import EventLog
        from tauon.train import JobConfig, Meter, build_job

        self.name, r = name, recipe(model, precision)
        self.splits = prepare(r.data, seed=0, input_kind="tokens")
        spec, train = self.splits.spec, self.splits.train
        loader, config = Loader(train, batch=BATCH, seed=0), r.model.resolve(spec)
        self.plan = make_plan(JobConfig(config, r.optim, r.train, r.task, spec, 0), examples=len(train), work=Work(loader))
        self.job = build_job(JobConfig(config, r.optim, r.train, r.task, spec, 0), loader, self.plan)
        self.meter, self.events = Meter(self.plan.flops_per_example), EventLog(folder / f"{name}.jsonl")
        self.times: list[tuple[float, float]] = []

    def step(self) -> None:
        """One step of `train`, timed whole: batch, step, hooks."""
        from tauon.train import STOP, train

        def log(job: Any, info: Any) -> str | None:
            self.events.log("step", step=info.step, **info.metrics)
            return STOP

        start = now()
        train(self.job, hooks=[self.meter, log])
        self.times.append(since(start))
        self.job.notes.clear()  # stopped after this step only

    def close(self) -> None:
        self.events.close()


def peer(train_set: Any, folder: Path, steps: int, between: Callable[[], None]) -> list[tuple[float, float]]:
    """Seconds of each step of Trainer, by the clock and of the processor; `between` runs after each and is not counted."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    class Windows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(train_set)

        def __getitem__(self, i: int) -> dict[str, Any]:
            import numpy as np

            tokens = train_set.batch(np.array([i])).inputs[0]
            return {"input_ids": tokens, "labels": tokens}

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[tuple[float, float]] = []
            self.start = now()

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if not self.times:
                self.start = now()  # what `train` sets up before its first step is not a step

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.times.append(since(self.start))
            between()
            self.start = now()

    config = GPT2Config(
        vocab_size=VOCAB, n_positions=SEQ, n_embd=384, n_layer=6, n_head=6, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(folder / "hf"), max_steps=steps, per_device_train_batch_size=BATCH, bf16=True, use_cpu=True, learning_rate=3e-4,
        report_to="none", save_strategy="no", disable_tqdm=True, optim="adamw_torch", torch_compile=False,
    )  # fmt: skip
    clock = Clock()
    Trainer(model=GPT2LMHeadModel(config), args=arguments, train_dataset=Windows(), callbacks=[clock]).train()
    return clock.times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 counted steps of each instead of 12, without ours_gpt2")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of all alike; the cores of this machine")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    import torch

    torch.set_num_threads(args.threads)
    warm, counted = 2, 4 if args.quick else 12
    kinds = [("ours", "gpt", "bf16"), ("ours_auto", "gpt", "auto")] + ([] if args.quick else [("ours_gpt2", "gpt2", "bf16")])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = [Ours(*kind, folder) for kind in kinds]
        for one in ours:
            print(f"{one.name}: precision {one.plan.precision}, compiled {one.plan.compile}", flush=True)

        def between() -> None:
            for one in ours:
                one.step()

        times = {"peer": peer(ours[0].splits.train, folder, warm + counted, between)[warm:]}
        for one in ours:
            times[one.name] = one.times[warm:]
            one.close()
    speed, cpu = {}, {}
    for name, both in times.items():
        seconds = [clock for clock, _ in both]
        speed[name], cpu[name] = TOKENS / statistics.median(seconds), statistics.median(c for _, c in both)
        low, high = min(seconds), max(seconds)
        print(
            f"{name}: {speed[name]:,.0f} tokens/s: step {TOKENS / speed[name]:.3f} s ({low:.3f} to {high:.3f}), processor {cpu[name]:.3f} s"
        )
    print(f"{args.threads} threads; torch {torch.__version__}; AMX {torch.cpu._is_amx_tile_supported()}; load {os.getloadavg()[0]:.1f}")
    result = {"claim": "lm_vs_hf", "ours": round(speed["ours"]), "peer": round(speed["peer"])}
    result |= {"ratio": round(speed["ours"] / speed["peer"], 2), "floor": 2.2, "unit": "tokens/s"}
    result |= {name: round(value) for name, value in speed.items() if name.startswith("ours_")}
    result |= {f"ratio_{n[5:]}": round(value / speed["peer"], 2) for n, value in speed.items() if n.startswith("ours_")}
    result["ratio_cpu"] = round(cpu["peer"] / cpu["ours"], 2)
    result |= {f"ratio_cpu_{n[5:]}": round(cpu["peer"] / value, 2) for n, value in cpu.items() if n.startswith("ours_")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
