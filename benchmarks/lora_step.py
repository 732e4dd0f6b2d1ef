"""Tokens a second of LoRA, rank 16 on every linear layer: Tauon's training loop against transformers with PEFT, from the same published folder.

A GPT-2 of 6 layers, width 384, 6 heads and GPT-2's vocabulary of 50,257: 30 million weights, random (a Llama of that shape beside it,
`ratio_llama`).
Sequences of 256 tokens, 8 a step, AdamW. The peer is transformers' model in PEFT's `get_peft_model` and `Trainer`, as a user would take them.
Both read the same windows of the same tokens, attention across documents, no dropout, fp32 (what `precision: auto` is where the processor has no
AMX). Ours is as `compile: auto` chooses for a run of any length; compiling is not counted. GPT-2's queries, keys and values are one matrix there
and have one adapter; here they are three, each with its own.

The two take turns, step by step, inside one process: a callback of Trainer lets ours make a step, so both see the same machine. What is compared is
the median step; the processor time of all threads is stated beside it (`ratio_cpu`).

    python -m benchmarks.lora_step [--quick] [--threads N]          needs the bench extra (transformers, peft)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.lm_vs_hf import now, since

SEQ, BATCH, VOCAB, RANK = 256, 8, 50257, 16
TOKENS = SEQ * BATCH
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": VOCAB, "n_positions": SEQ, "n_embd": 384, "n_layer": 6, "n_head": 6, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
             "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0},
    "llama": {"vocab_size": VOCAB, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
              "num_key_value_heads": 6, "max_position_embeddings": SEQ, "tie_word_embeddings": True},
}  # fmt: skip


def recipe(folder: Path) -> Any:
    """The run as a user would write it."""
    from tauon.config import parse
    from tauon.recipe import Recipe

    return parse(
        Recipe,
        {
            "name": "lora-step",
            "data": {
                "source": {"kind": "python-stdlib", "limit": 300}, "tokenizer": {"kind": "bpe", "vocab": 8192}, "seq_len": SEQ,
                "mask_documents": False,
            },
            "task": "language-modelling",
            "model": {"from": str(folder)},
            "adapt": {"kind": "lora", "rank": RANK},
            "optim": {"kind": "adamw", "lr": 3e-4},
            "train": {"steps": 100_000, "batch": BATCH, "precision": "fp32"},
        },
    )  # fmt: skip


class Ours:
    """Tauon's own loop, a step at a time, with the hooks that a run has."""

    def __init__(self, folder: Path, logs: Path) -> None:
        from tauon.data import Loader, prepare
        from tauon.models import resolved
        from tauon.plan import Work, make_plan
        from tauon.tracking import EventLog
        from tauon.train import JobConfig, Meter, build_job

        r = recipe(folder)
        self.splits = prepare(r.data, seed=0, input_kind="tokens")
        spec, train = self.splits.spec, self.splits.train
        loader = Loader(train, batch=BATCH, seed=0)
        config = resolved(r.model, spec).model_copy(update={"adapt": r.adapt})
        self.plan = make_plan(JobConfig(config, r.optim, r.train, r.task, spec, 0), examples=len(train), work=Work(loader))
        self.job = build_job(JobConfig(config, r.optim, r.train, r.task, spec, 0), loader, self.plan)
        self.meter, self.events = Meter(self.plan.flops_per_example), EventLog(logs / "events.jsonl")
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


def peer(folder: Path, train_set: Any, logs: Path, steps: int, between: Callable[[], None]) -> list[tuple[float, float]]:
    """Seconds of each step of Trainer, by the clock and of the processor; `between` runs after each and is not counted."""
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Windows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(train_set)

        def __getitem__(self, i: int) -> dict[str, Any]:
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

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    arguments = TrainingArguments(
        output_dir=str(logs / "hf"), max_steps=steps, per_device_train_batch_size=BATCH, use_cpu=True, learning_rate=3e-4,
        report_to="none", save_strategy="no", disable_tqdm=True, optim="adamw_torch", torch_compile=False,
    )  # fmt: skip
    clock = Clock()
    Trainer(model=model, args=arguments, train_dataset=Windows(), callbacks=[clock]).train()
    return clock.times


def compared(kind: str, warm: int, counted: int) -> dict[str, Any]:
    """{name: (tokens a second, processor seconds a step)} of both."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES[kind])).save_pretrained(folder / "base")
        ours = Ours(folder / "base", folder)
        held = [(p.numel(), p.requires_grad) for p in ours.job.model.parameters()]
        print(
            f"{kind}: compiled {ours.plan.compile}, {sum(n for n, _ in held):,} parameters, of which train {sum(n for n, t in held if t):,}"
        )
        times = {"peer": peer(folder / "base", ours.splits.train, folder, warm + counted, ours.step)[warm:]}
        times["ours"] = ours.times[warm:]
        ours.events.close()
    found = {}
    for who, both in times.items():
        seconds = [clock for clock, _ in both]
        found[who] = TOKENS / statistics.median(seconds), statistics.median(cpu for _, cpu in both)
        print(f"{kind} {who}: {found[who][0]:,.0f} tokens/s: step {statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f}), "
              f"processor {found[who][1]:.3f} s", flush=True)  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 counted steps of each instead of 20, without the Llama")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of all alike; the cores of this machine")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    import torch

    torch.set_num_threads(args.threads)
    warm, counted = 2, 6 if args.quick else 20
    found = compared("gpt2", warm, counted)
    result = {"claim": "lora_step", "ours": round(found["ours"][0]), "peer": round(found["peer"][0])}
    result |= {"ratio": round(found["ours"][0] / found["peer"][0], 2), "floor": 1.5, "unit": "tokens/s"}
    result["ratio_cpu"] = round(found["peer"][1] / found["ours"][1], 2)
    if not args.quick:
        llama = compared("llama", warm, counted)
        result |= {
            "ratio_llama": round(llama["ours"][0] / llama["peer"][0], 2),
            "ratio_cpu_llama": round(llama["peer"][1] / llama["ours"][1], 2),
        }
    print(f"{args.threads} threads; torch {torch.__version__}; AMX {torch.cpu._is_amx_tile_supported()}; load {os.getloadavg()[0]:.1f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
