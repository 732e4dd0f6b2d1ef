"""Tokens a second of LoRA, rank 16 on every linear layer: Tauon's training loop against transformers with PEFT, from the same published folder.

A GPT-2 of 6 layers, width 384, 6 heads and GPT-2's vocabulary of 50,257: 30 million weights, random (a Llama of that shape beside it,
`ratio_llama`). Sequences of 256 tokens, 8 a step, AdamW. Both read the same windows of the same tokens, attention across documents, no dropout.
Ours is the default (`precision: auto`, `compile: auto`; compiling is not counted). GPT-2's queries, keys and values are one matrix there and
have one adapter; here they are three, each with its own.

The peer is transformers' model in PEFT's `get_peft_model` and `Trainer`, three times, of which the fastest counts:

    fp32           as a user takes it who sets nothing
    bf16           `bf16=True`: autocast over weights in fp32
    bf16 weights   the base loaded with `dtype=torch.bfloat16`, and `bf16=True`: no weight is cast in a step, and the logits stay bf16

The two take turns, step by step, inside one process: a callback of Trainer lets ours make a step, so both see the same machine. What is compared is
the median step of ours and of the peer in one stretch; the processor time of all threads is stated beside it (`ratio_cpu`).

    python -m benchmarks.lora_step [--quick] [--threads N] [--precision auto|bf16|fp32]      needs the bench extra (transformers, peft)
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

from benchmarks._turns import now, since

SEQ, BATCH, VOCAB, RANK = 256, 8, 50257, 16
TOKENS = SEQ * BATCH
PEERS: dict[str, tuple[bool, str]] = {"fp32": (False, "float32"), "bf16": (True, "float32"), "bf16 weights": (True, "bfloat16")}
"""Trainer's `bf16`, and the type in which the base is loaded."""
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": VOCAB, "n_positions": SEQ, "n_embd": 384, "n_layer": 6, "n_head": 6, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
             "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0},
    "llama": {"vocab_size": VOCAB, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
              "num_key_value_heads": 6, "max_position_embeddings": SEQ, "tie_word_embeddings": True},
}  # fmt: skip


def recipe(folder: Path, precision: str) -> Any:
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
            "train": {"steps": 100_000, "batch": BATCH, "precision": precision},
        },
    )  # fmt: skip


class Ours:
    """Tauon's own loop, a step at a time, with the hooks that a run has."""

    def __init__(self, folder: Path, logs: Path, precision: str) -> None:
        from tauon.data import Loader, prepare
        from tauon.models import resolved
        from tauon.plan import Work, make_plan
        from tauon.tracking import EventLog
        from tauon.train import JobConfig, Meter, build_job

        r = recipe(folder, precision)
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


def peer(
    folder: Path, train_set: Any, logs: Path, steps: int, between: Callable[[], None], *, bf16: bool = False, dtype: str = "float32"
) -> list[tuple[float, float]]:
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
        AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)),
        LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    arguments = TrainingArguments(
        output_dir=str(logs / "hf"), max_steps=steps, per_device_train_batch_size=BATCH, use_cpu=True, learning_rate=3e-4,
        report_to="none", save_strategy="no", disable_tqdm=True, optim="adamw_torch", torch_compile=False, bf16=bf16,
    )  # fmt: skip
    clock = Clock()
    Trainer(model=model, args=arguments, train_dataset=Windows(), callbacks=[clock]).train()
    return clock.times


def compared(kind: str, precision: str, warm: int, counted: int) -> dict[str, Any]:
    """Both, against each of the peer's settings: {setting: {ours, peer, ratio, ratio_cpu}}, tokens a second."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES[kind])).save_pretrained(folder / "base")
        ours = Ours(folder / "base", folder, precision)
        sizes = [(p.numel(), p.requires_grad) for p in ours.job.model.parameters()]
        total, training = sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)
        print(f"{kind}: {ours.plan.precision}, compiled {ours.plan.compile}; {total:,} parameters, of which train {training:,}", flush=True)
        for setting, (bf16, dtype) in PEERS.items():
            ours.times.clear()
            theirs = peer(folder / "base", ours.splits.train, folder, warm + counted, ours.step, bf16=bf16, dtype=dtype)[warm:]
            clock, cpu = ([statistics.median(t[k] for t in times) for times in (ours.times[warm:], theirs)] for k in (0, 1))
            results[setting] = {
                "ours": TOKENS / clock[0], "peer": TOKENS / clock[1], "ratio": clock[1] / clock[0], "ratio_cpu": cpu[1] / cpu[0],
                "precision": ours.plan.precision,
            }  # fmt: skip
            spread = [f"{min(s for s, _ in t):.3f} to {max(s for s, _ in t):.3f}" for t in (ours.times[warm:], theirs)]
            print(
                f"{kind}, peer in {setting}: a step of ours {clock[0]:.3f} s ({spread[0]}), of the peer {clock[1]:.3f} s ({spread[1]})",
                flush=True,
            )
        ours.events.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 counted steps of each instead of 12, without the Llama")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of all alike; the cores of this machine")
    parser.add_argument("--precision", default="auto", help="ours: auto, bf16 or fp32")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    import torch

    torch.set_num_threads(args.threads)
    warm, counted = 2, 4 if args.quick else 12
    by_setting = compared("gpt2", args.precision, warm, counted)
    best = max(by_setting, key=lambda setting: by_setting[setting]["peer"])
    found = by_setting[best]
    result = {"claim": "lora_step", "ours": round(found["ours"]), "peer": round(found["peer"]), "ratio": round(found["ratio"], 2)}
    result |= {
        "floor": 1.5,
        "unit": "tokens/s",
        "precision": found["precision"],
        "peer_is": best,
        "ratio_cpu": round(found["ratio_cpu"], 2),
    }
    result["ratios"] = {setting: round(r["ratio"], 2) for setting, r in by_setting.items()}
    if not args.quick:
        llama = compared("llama", args.precision, warm, counted)
        best = max(llama, key=lambda setting: llama[setting]["peer"])
        result |= {
            "ratio_llama": round(llama[best]["ratio"], 2),
            "peer_is_llama": best,
            "ratio_cpu_llama": round(llama[best]["ratio_cpu"], 2),
        }
        result["ratios_llama"] = {setting: round(r["ratio"], 2) for setting, r in llama.items()}
    print(f"{args.threads} threads; torch {torch.__version__}; AMX {torch.cpu._is_amx_tile_supported()}; load {os.getloadavg()[0]:.1f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
