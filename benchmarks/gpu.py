"""Tokens a second, and model TFLOP/s, of a dense GPT of 1.06 billion parameters on one GPU: Tauon, a plain torch loop, Hugging Face's Trainer.

The same arithmetic three times: 18 layers of width 2,048, 16 heads, SwiGLU of 5,632, vocabulary 32,768, RoPE, RMSNorm, untied, sequences
of 2,048 tokens in one document each, 16 a step in microbatches of 8, bf16 by autocast over fp32 weights, gradients clipped at norm 1, fused AdamW.

    ours   the path of a recipe: `make_plan`, `build_job`, `train` with its meter; precision, compile as `auto` chooses them
    plain  what one writes by hand: the model below, compiled whole, `F.cross_entropy`, no checks and no waiting for the GPU
    hf     LlamaForCausalLM (sdpa) in `Trainer`, not compiled, as a user would take it

What is compared is the median of three stretches of steps after warm-up (compiling is not counted); the GPU is waited for at their ends only.
Model FLOPs a token: 6 N + 6 L T D, N the weights that multiply (embeddings left out, the head counted), L T D causal attention at half
its square. Utilisation is of the card's dense bf16 rate as its maker states it; the aim is 50%.

Then LoRA on the shape of Llama-3-8B (random weights in bf16, frozen; rank 16 in fp32 on all seven matrices of a block; 2 sequences of
4,096): aim 12,473 tokens a second. It costs 4 N + 6 L T D, as frozen weights need no gradient, and 6 for each weight of the adapters.

`--tiny` runs the same code in toy sizes on a CPU: it shows that the code runs, and its figures say nothing.

    python -m benchmarks.gpu [--quick] [--tiny]
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

UTILISATION_AIM = 0.5
LORA_AIM = 12_473
"""Tokens a second."""
LAST_START = 390.0
"""Seconds after which nothing more is begun: all of it is to stay under eight minutes."""
RANK, ALPHA = 16, 32
PEAK = {
    "B200": 2250.0, "H200 NVL": 835.5, "H200": 989.4, "H100 PCIe": 756.5, "H100 NVL": 835.5, "H100": 989.4, "H800": 989.4, "H20": 148.0,
    "GH200": 989.4, "A100": 312.0, "A800": 312.0, "A40": 149.7, "A30": 165.0, "A10G": 70.0, "A10": 125.0, "L40S": 362.1, "L40": 181.1, "L4": 121.0,
    "RTX 6000 Ada": 364.2, "A6000": 154.8, "RTX 5090": 209.5, "RTX 4090": 165.2, "RTX 3090": 71.0,
}  # fmt: skip
"""Dense bf16 TFLOP/s with fp32 sums, by a part of the name that the driver gives a card: the longest that fits."""


@dataclass(frozen=True)
class Size:
    """A GPT, and how much of it a step takes."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocab: int
    seq: int
    batch: int
    microbatch: int

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.seq

    def config(self) -> Any:
        """Tauon's."""
        from tauon.models import GPTConfig

        return GPTConfig(
            layers=self.layers, width=self.width, heads=self.heads, kv_heads=self.kv_heads, mlp="swiglu", mlp_width=self.hidden, qk_norm=False,
            vocab=self.vocab, seq_len=self.seq,
        )  # fmt: skip


DENSE = Size(18, 2048, 16, 16, 5632, 32_768, 2048, 16, 8)
LLAMA_3_8B = Size(32, 4096, 32, 8, 14_336, 128_256, 4096, 2, 2)
TINY = Size(2, 32, 4, 4, 64, 96, 16, 4, 2)
TINY_LLAMA = Size(2, 32, 4, 2, 64, 96, 16, 2, 2)


class Windows:
    """Random tokens as a data set: what is in them costs nothing and changes nothing here."""

    def __init__(self, size: Size) -> None:
        import torch

        from tauon.types import DataSpec

        self.ids = torch.randint(0, size.vocab, (256, size.seq + 1), generator=torch.Generator().manual_seed(0))
        self.spec, self.facts = DataSpec(vocab=size.vocab, seq_len=size.seq), {}

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, index: Any, *, epoch: int = 0) -> Any:
        import torch

        from tauon.types import Batch

        rows = self.ids[torch.as_tensor(index)]
        return Batch(rows[:, :-1], rows[:, 1:], torch.ones(len(rows), rows.shape[1] - 1))

    def __getitem__(self, i: int) -> dict[str, Any]:
        """As Trainer reads it; its model shifts the labels itself."""
        return {"input_ids": self.ids[i, :-1], "labels": self.ids[i, :-1]}


class Clock:
    """Told after each step; the seconds of a step in each of three stretches behind the warm-up."""

    def __init__(self, device: Any, warm: int, each: int) -> None:
        self.device, self.ends = device, [warm + k * each for k in range(4)]
        self.each, self.steps, self.times = each, 0, []
        self.last = 0.0

    @property
    def total(self) -> int:
        """Steps to take."""
        return self.ends[-1]

    def __call__(self) -> None:
        import torch

        self.steps += 1
        if self.steps in self.ends:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            now = time.perf_counter()
            self.times.append((now - self.last) / self.each)
            self.last = now

    @property
    def seconds(self) -> float:
        """Median of a step."""
        return statistics.median(self.times[1:])


# ---------------------------------------------------------------------------------------------- the three


def ours(size: Size, device: Any, clock: Clock) -> dict[str, Any]:
    """Tauon as a recipe runs it. Returns what was chosen, and the model FLOPs of an example."""
    from tauon.data import Loader
    from tauon.optim import AdamWConfig
    from tauon.plan import make_plan
    from tauon.tasks import LanguageModelling
    from tauon.train import JobConfig, Meter, TrainConfig, build_job, train

    windows, model, optim, task = Windows(size), size.config(), AdamWConfig(), LanguageModelling()
    config = TrainConfig(steps=clock.total, batch=size.batch, microbatch=size.microbatch, device=str(device), precision="bf16")
    with Loader(windows, batch=size.batch, seed=0, workers=2) as loader:
        plan = make_plan(JobConfig(model, optim, config, task, windows.spec, 0), examples=len(windows))
        job = build_job(JobConfig(model, optim, config, task, windows.spec, 0), loader, plan)
        train(job, hooks=[Meter(plan.flops_per_example), lambda job, info: clock()])  # type: ignore[func-returns-value]
    return {"flops": plan.flops_per_example, "compile": plan.compile, "parameters": sum(p.numel() for p in job.model.parameters())}


def plain(size: Size, device: Any, clock: Clock, compiled: bool) -> None:
    """A loop and a model as one writes them by hand."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    head = size.width // size.heads

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(size.width), nn.RMSNorm(size.width)
            self.qkv, self.out = (nn.Linear(size.width, n, bias=False) for n in (3 * size.width, size.width))
            self.up, self.down = nn.Linear(size.width, 2 * size.hidden, bias=False), nn.Linear(size.hidden, size.width, bias=False)

        def forward(self, x: Any, cos: Any, sin: Any) -> Any:
            B, T, D = x.shape
            q, k, v = (t.view(B, T, size.heads, head).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))

            def rope(t: Any) -> Any:
                a, b = t.chunk(2, dim=-1)
                return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(t.dtype)

            y = F.scaled_dot_product_attention(rope(q), rope(k), v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
            gate, up = self.up(self.norm2(x)).chunk(2, dim=-1)
            return x + self.down(F.silu(gate) * up)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(size.vocab, size.width), nn.Linear(size.width, size.vocab, bias=False)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(size.layers)), nn.RMSNorm(size.width)
            angle = torch.arange(size.seq)[:, None] * 10_000.0 ** (-torch.arange(0, head, 2) / head)
            self.register_buffer("cos", angle.cos())
            self.register_buffer("sin", angle.sin())

        def forward(self, x: Any, y: Any) -> Any:
            x = self.embed(x)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), y.flatten())

    with torch.device(device):
        model: Any = Plain()
    if compiled:
        model = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = Windows(size).ids
    if device.type == "cuda":
        ids = ids.pin_memory()
    for step in range(clock.total):
        for start in range(0, size.batch, size.microbatch):
            first = (step * size.batch + start) % (len(ids) - size.microbatch)
            rows = ids[first : first + size.microbatch].to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(rows[:, :-1], rows[:, 1:])
            (loss * (size.microbatch / size.batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock()


def hf(size: Size, device: Any, clock: Clock) -> None:
    """Hugging Face's Trainer. Raises ImportError where it is not installed."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock()

    config = LlamaConfig(
        vocab_size=size.vocab, hidden_size=size.width, intermediate_size=size.hidden, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.kv_heads, max_position_embeddings=size.seq, tie_word_embeddings=False,
        use_cache=False, attn_implementation="sdpa", bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=clock.total, per_device_train_batch_size=size.microbatch, bf16=True, learning_rate=3e-4,
            gradient_accumulation_steps=size.batch // size.microbatch, optim="adamw_torch_fused", max_grad_norm=1.0, weight_decay=0.1,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=device.type == "cpu",
        )  # fmt: skip
        Trainer(model=LlamaForCausalLM(config), args=arguments, train_dataset=Windows(size), callbacks=[Told()]).train()


# ---------------------------------------------------------------------------------------------- LoRA


def adapted(size: Size, device: Any) -> Any:
    """Tauon's GPT with random bf16 weights that do not train, and Tauon's adapters, which do. Drawn on the device: 8 billion draws take a CPU minutes."""
    import torch

    from tauon.models import LoraConfig

    model = size.config().model_copy(update={"adapt": LoraConfig(rank=RANK, alpha=ALPHA)}).build_on_meta()
    for p in model.parameters():
        if not p.requires_grad:
            p.data = p.data.bfloat16()
    model.to_empty(device=device)
    model.init_buffers()
    draw = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora_b"):
                p.zero_()
            elif p.ndim == 1:
                p.fill_(1)
            else:
                p.normal_(0, 0.02 if not p.requires_grad else 1 / math.sqrt(p.shape[1]), generator=draw)
    return model


def lora(size: Size, device: Any, clock: Clock) -> dict[str, Any]:
    """`train_step` on the adapted model: Tauon's blocks, compiled one by one, its loss, its optimizer."""
    from tauon.data import Loader
    from tauon.optim import AdamWConfig
    from tauon.plan import choose_compile
    from tauon.tasks import LanguageModelling
    from tauon.train import GradientHealth, Precision, StepPolicy, TrainJob, apply_checkpointing_and_compile, train

    windows, optim = Windows(size), AdamWConfig(weight_decay=0.0)
    model = adapted(size, device)
    compiled, _ = choose_compile("auto", device, model, None)
    apply_checkpointing_and_compile(model, checkpointing=False, compiled=compiled)
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with Loader(windows, batch=size.batch, seed=0, workers=2) as loader:
        policy = StepPolicy(
            total_steps=clock.total, seed=0, schedule=optim.schedule, precision=Precision("bf16", str(device)), device=device,
            microbatch=size.microbatch, clip_norm=optim.clip_norm, clip_value=optim.clip_value, reads_late=device.type != "cpu",
        )  # fmt: skip
        job = TrainJob(model, optim.build(model), loader, LanguageModelling(), policy, GradientHealth(None, 3))
        train(job, hooks=[lambda job, info: clock()])  # type: ignore[func-returns-value]
    whole = size.config().build_on_meta()
    multiply = sum(p.numel() for b in whole.blocks_to_compile() for p in b.parameters() if p.ndim == 2) + whole.head.weight.numel()
    attention = 6.0 * size.layers * size.seq * size.width
    return {"flops": (4.0 * multiply + attention + 6.0 * trains) * size.seq, "trains": trains, "compile": compiled}


# ---------------------------------------------------------------------------------------------- all of it


def peak(name: str) -> float | None:
    """The card's dense bf16 rate, TFLOP/s; None for one that the table does not know."""
    fits = [part for part in PEAK if part in name]
    return PEAK[max(fits, key=len)] if fits else None


def measured(what: str, size: Size, clock: Clock, run: Callable[[], Any], started: float) -> tuple[float | None, Any]:
    """(tokens a second, what `run` says), printed; None, and why, where a library is missing, memory ends or time has run out."""
    import torch

    began = time.perf_counter()
    if began - started > LAST_START:
        print(f"{what}: left out: {began - started:.0f} s have gone", flush=True)
        return None, None
    cuda = clock.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(clock.device)
    try:
        said = run()
    except (ImportError, torch.OutOfMemoryError) as err:
        print(f"{what}: left out: {str(err).splitlines()[0]}", flush=True)
        return None, None
    finally:
        torch._dynamo.reset()  # compiled code keeps its model alive
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
    speed = size.tokens / clock.seconds
    held = f", at most {torch.cuda.max_memory_allocated(clock.device) / 1e9:.0f} GB" if cuda else ""
    spread = f"{min(clock.times[1:]) * 1e3:.1f} to {max(clock.times[1:]) * 1e3:.1f}"
    took = time.perf_counter() - began
    print(f"{what}: {speed:,.0f} tokens/s: a step {clock.seconds * 1e3:.1f} ms ({spread}){held}; {took:.0f} s in all", flush=True)
    return speed, said


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="stretches of 2 steps instead of 5")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on a CPU: that the code runs, no figures")
    parser.add_argument("--microbatch", type=int, help="sequences at a time, a divisor of 16; 8 if left out (a small card needs fewer)")
    args = parser.parse_args(arguments)

    if not args.tiny:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # Trainer would spread its batch over all that there are
    import torch

    if not args.tiny and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu measures one CUDA device, and torch finds none here; --tiny runs its code on a CPU.")
    device = torch.device("cpu") if args.tiny else torch.device("cuda", 0)
    dense, llama = (TINY, TINY_LLAMA) if args.tiny else (DENSE, LLAMA_3_8B)
    if args.microbatch is not None:
        if args.microbatch < 1 or dense.batch % args.microbatch:
            parser.error(f"--microbatch {args.microbatch} does not divide {dense.batch}")
        dense = replace(dense, microbatch=args.microbatch)
    warm, each = (1, 1) if args.tiny else (4, 2 if args.quick else 5)
    name = "a CPU, toy sizes" if args.tiny else torch.cuda.get_device_name(device)
    rate = None if args.tiny else peak(name)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started, clocks = time.perf_counter(), [Clock(device, warm, each) for _ in range(4)]
        speed, about = measured("ours", dense, clocks[0], lambda: ours(dense, device, clocks[0]), started)
        if speed is None:
            sys.exit(f"not enough memory on {name} for microbatches of {dense.microbatch}: take fewer (--microbatch)")
        low, said = measured("LoRA", llama, clocks[1], lambda: lora(llama, device, clocks[1]), started)
        peers = {
            "plain": measured("plain", dense, clocks[2], lambda: plain(dense, device, clocks[2], about["compile"]), started)[0],
            "hf": measured("hf", dense, clocks[3], lambda: hf(dense, device, clocks[3]), started)[0],
        }

    tflops = speed / dense.seq * about["flops"] / 1e12
    print(f"{name}; torch {torch.__version__}; {about['parameters']:,} parameters, compiled {about['compile']}")
    known = {k: v for k, v in peers.items() if v is not None}
    best = max(known, key=lambda k: known[k]) if known else None
    against = known[best] if best is not None else math.nan
    result: dict[str, Any] = {"claim": "gpu", "ours": round(speed), "peer": round(against) if known else None}
    result |= {"ratio": round(speed / against, 3) if known else 0.0, "floor": 1.0, "unit": "tokens/s", "device": name, "peer_is": best}
    result |= {k: None if v is None else round(v) for k, v in peers.items()}
    result |= {"model_tflops": round(tflops, 6), "peak_tflops": rate, "utilisation": None if rate is None else round(tflops / rate, 4)}
    result |= {"utilisation_aim": UTILISATION_AIM, "lora": None if low is None else round(low), "lora_aim": LORA_AIM}
    result["lora_tflops"] = None if low is None else round(low / llama.seq * said["flops"] / 1e12, 6)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
