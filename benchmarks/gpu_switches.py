"""Every switch that matters on a GPU against its alternatives, so that the first run on a card decides by figures.

A GPT of 0.55 billion parameters (8 layers of width 2,048; sequences of 2,048 tokens, 8 a step), bf16. One line of JSON for each measure, in this order:

    waits       how often the host waits for the card in a step (sync debug mode), kernels launched, the host's time of a step beside the card's
    compile     no compiling; block by block (the default); the whole model
    optimizer   AdamW: fused (the default), foreach, a loop over the parameters
    attention   packed documents, forward and backward: SDPA with a mask (the default), varlen, FlexAttention; SDPA across documents for comparison
    head        linear cross-entropy in chunks (the default) against whole logits and `F.cross_entropy`
    private     a step with clipping and noise against a plain one
    fp8         the product of an MLP, forward: bf16, `torch._scaled_mm` with one scale, and with one for each row; casts are counted
    fp8_step    a step with torchao's `convert_to_float8_training`, compiled, against bf16
    graphs      block by block with `mode="reduce-overhead"` (CUDA graphs) against without

A line holds `default`, `values` by choice (milliseconds unless `unit` says otherwise), `fastest`, and `errors` by choice: what a card or a version
of torch does not have is an error of that choice and stops nothing. A measure is not begun after `--seconds` (420 if left out: all of it stays
under eight minutes); what may leave a card in a bad state comes last. `--dry` runs the same code in toy sizes on a CPU: its figures say nothing.

    python -m benchmarks.gpu_switches [--quick] [--dry] [--seconds N] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu import Size, Windows

FULL = Size(8, 2048, 16, 16, 5632, 32_768, 2048, 8, 8)
TOY = Size(2, 32, 4, 4, 64, 96, 32, 2, 2)
TOLERANCE = 3e-2
"""Largest difference of two ways to compute the same in bf16, as a share of the largest number."""


@dataclass
class Bench:
    """Where and how long is measured."""

    device: Any
    size: Size
    rounds: int

    @property
    def cuda(self) -> bool:
        return bool(self.device.type == "cuda")

    def wait(self) -> None:
        import torch

        if self.cuda:
            torch.cuda.synchronize(self.device)

    def ms(self, run: Callable[[], Any], warm: int = 2) -> float:
        """Median time of a call in milliseconds. The card is waited for after each five calls, so that launching overlaps as in training."""
        for _ in range(warm):
            run()
        self.wait()
        times = []
        for _ in range(self.rounds):
            start = time.perf_counter()
            for _ in range(5 if self.cuda else 1):
                run()
            self.wait()
            times.append((time.perf_counter() - start) * 1e3 / (5 if self.cuda else 1))
        return statistics.median(times)


@dataclass
class Found:
    """One printed line."""

    default: str
    unit: str = "ms"
    values: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def try_(self, choice: str, run: Callable[[], float]) -> None:
        """Measure one choice; whatever goes wrong is its error and stops nothing."""
        import torch

        try:
            self.values[choice] = round(run(), 3)
        except Exception as err:  # torch raises many types for what a card lacks
            self.errors[choice] = f"{type(err).__name__}: {(str(err).splitlines() or [''])[0][:200]}"
        finally:
            torch._dynamo.reset()  # compiled code keeps its model alive
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------- steps


def job_of(b: Bench, compiled: bool) -> Any:
    """A job of Tauon in bf16, as a run builds it."""
    import torch

    from tauon.optim import AdamWConfig
    from tauon.plan import Plan
    from tauon.tasks import LanguageModelling
    from tauon.train import JobConfig, TrainConfig, build_job

    windows = Windows(b.size)
    config = TrainConfig(steps=10_000, batch=b.size.batch)
    plan = Plan(10_000, b.device, "bf16", compiled, b.size.microbatch, 1, 1, torch.get_num_threads())
    job = build_job(JobConfig(b.size.config(), AdamWConfig(), config, LanguageModelling(), windows.spec, 0), windows, plan)  # type: ignore[arg-type]
    job.model.train()
    return job


def stepper(b: Bench, job: Any) -> Callable[[], Any]:
    """Launches a step, then reads the one before it, as `train` does."""
    from tauon.train import launch_step

    batch = Windows(b.size).batch(list(range(b.size.batch))).to(b.device)
    launched: list[Any] = []

    def step() -> Any:
        launched.append(launch_step(job, batch))
        if len(launched) > 1:
            launched.pop(0).read()

    return step


def step_ms(b: Bench, compiled: bool, change: Callable[[Any], Any] = lambda job: None, before: Callable[[], Any] = lambda: None) -> float:
    job = job_of(b, compiled)
    change(job)
    step = stepper(b, job)

    def run() -> None:
        before()
        step()

    return b.ms(run, warm=4)


def waits(b: Bench) -> Found:
    import torch
    from torch.profiler import ProfilerActivity, profile

    from tauon.train import launch_step

    found = Found("default", "host waits a step")
    batch = Windows(b.size).batch(list(range(b.size.batch))).to(b.device)
    job = job_of(b, b.cuda)
    step = stepper(b, job)
    for _ in range(4):
        step()
    b.wait()

    def count() -> float:
        if not b.cuda:
            return float("nan")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                launch_step(job, batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found.about["where"] = sorted({f"{w.filename}:{w.lineno}" for w in seen if "synchroniz" in str(w.message)})[:8]
        return float(sum("synchroniz" in str(w.message) for w in seen))

    def host() -> float:
        times = []
        for _ in range(b.rounds):
            b.wait()
            start = time.perf_counter()
            step()  # reads the step before, which is done
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e3

    def kernels() -> float:
        activity = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if b.cuda else [])]
        with profile(activities=activity) as seen:
            step()
            b.wait()
        return float(sum(e.count for e in seen.key_averages() if "LaunchKernel" in e.key or (not b.cuda and e.key.startswith("aten::"))))

    found.try_("default", count)
    for name, run in (("host_ms", host), ("kernels", kernels), ("step_ms", lambda: b.ms(step))):
        other = Found("")
        other.try_(name, run)
        found.about |= other.values | {f"{k}_error": v for k, v in other.errors.items()}
    return found


def compiling(b: Bench) -> Found:
    found = Found("block by block")

    def timed(choice: str, compiled: bool, change: Callable[[Any], Any] = lambda job: None) -> float:
        start = time.perf_counter()
        ms = step_ms(b, compiled, change)
        found.about[f"seconds, {choice}"] = round(time.perf_counter() - start, 1)
        return ms

    found.try_("none", lambda: timed("none", False))
    found.try_("block by block", lambda: timed("block by block", True))
    found.try_("whole model", lambda: timed("whole model", False, lambda job: job.model.compile(dynamic=False)))
    return found


def optimizers(b: Bench) -> Found:
    import torch

    found = Found("fused", about={"of": "the optimizer alone, and clipping is not counted"})
    model = b.size.config().build_on_meta().to_empty(device=b.device)
    for p in model.parameters():
        p.data.normal_(0, 0.02)
        p.grad = torch.full_like(p, 1e-3)
    kinds: dict[str, dict[str, bool]] = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False, "fused": False}}
    for name, how in kinds.items():
        found.try_(name, lambda how=how: b.ms(torch.optim.AdamW(model.parameters(), lr=1e-4, **how).step))  # type: ignore[misc, arg-type]
    return found


def graphs(b: Bench) -> Found:
    import torch

    found = Found("block by block")

    def graphed(job: Any) -> None:
        for block in job.model.blocks_to_compile():
            block.compile(dynamic=False, mode="reduce-overhead")

    found.try_("block by block", lambda: step_ms(b, True))
    found.try_("reduce-overhead", lambda: step_ms(b, False, graphed, torch.compiler.cudagraph_mark_step_begin))
    return found


# ---------------------------------------------------------------------------------------------- attention


def attention(b: Bench) -> Found:
    """Forward and backward over packed documents; every way is compared with the masked one before it is timed."""
    import torch
    import torch.nn.functional as F

    from tauon.models.families.transformer import as_bias, document_mask

    found = Found("sdpa, masked", about={"documents_a_row": 4})
    B, T, H, K = b.size.microbatch, b.size.seq, b.size.heads, b.size.width // b.size.heads
    draw = torch.Generator().manual_seed(0)
    cuts = torch.stack([torch.randperm(T - 1, generator=draw)[:3].sort().values + 1 for _ in range(B)])
    segments_BT = (torch.arange(T)[None, :, None] >= cuts[:, None, :]).sum(2).to(b.device)
    qkv = [torch.randn(B, T, H, K, generator=draw).to(b.device, torch.bfloat16).requires_grad_() for _ in range(3)]
    out_grad = torch.randn(B, T, H, K, generator=draw).to(b.device, torch.bfloat16)

    def by_head(**how: Any) -> Callable[[], Any]:
        return lambda: F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in qkv), **how).transpose(1, 2)

    mask = document_mask(segments_BT)
    masked = by_head(attn_mask=as_bias(mask, torch.bfloat16) if b.cuda else mask)

    def gradients(attend: Callable[[], Any]) -> list[Any]:
        for t in qkv:
            t.grad = None
        out = attend()
        out.backward(out_grad)
        return [out.detach(), *(t.grad for t in qkv)]

    def checked(attend: Callable[[], Any], *, same: bool = True) -> float:
        if same:
            for got, want in zip(gradients(attend), gradients(masked), strict=True):
                off = ((got - want).abs().max() / want.abs().max()).item()
                if not off < TOLERANCE:
                    raise ArithmeticError(f"differs from masked attention by {off:.3f}")
        return b.ms(lambda: gradients(attend))

    found.try_("sdpa, masked", lambda: checked(masked))
    found.try_("varlen", lambda: checked(varlen(qkv, segments_BT)))
    found.try_("flex", lambda: checked(flex(b, qkv, segments_BT)))
    found.try_("sdpa across documents", lambda: checked(by_head(is_causal=True), same=False))
    found.about["not the same"] = "sdpa across documents"
    return found


def varlen(qkv: list[Any], segments_BT: Any) -> Callable[[], Any]:
    """FlashAttention over documents laid end to end."""
    import torch
    from torch.nn.attention.varlen import varlen_attn

    B, T = segments_BT.shape
    new = torch.ones_like(segments_BT, dtype=torch.bool)
    new[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    ends = torch.cat([new.flatten().nonzero()[:, 0], torch.tensor([B * T], device=new.device)]).int()
    longest = int(ends.diff().max())
    return lambda: varlen_attn(*(t.flatten(0, 1) for t in qkv), ends, ends, longest, longest, window_size=(-1, 0)).view(qkv[0].shape)  # type: ignore[union-attr]


def flex(b: Bench, qkv: list[Any], segments_BT: Any) -> Callable[[], Any]:
    """FlexAttention; compiled on a GPU, in plain operations on a CPU."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    B, T = segments_BT.shape

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (query >= key) & (segments_BT[batch, query] == segments_BT[batch, key])

    blocks = create_block_mask(sees, B, None, T, T, device=str(b.device))
    attend: Any = torch.compile(flex_attention, dynamic=False) if b.cuda else flex_attention
    return lambda: attend(*(t.transpose(1, 2) for t in qkv), block_mask=blocks).transpose(1, 2)


# ---------------------------------------------------------------------------------------------- products


def head(b: Bench) -> Found:
    import torch
    import torch.nn.functional as F

    from tauon.tasks import linear_cross_entropy

    found = Found("chunks")
    rows, size = b.size.microbatch * b.size.seq, b.size
    hidden = torch.randn(rows, size.width, device=b.device, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(size.vocab, size.width, device=b.device) * 0.02).requires_grad_()
    targets = torch.randint(0, size.vocab, (rows,), device=b.device)
    ones = torch.ones(rows, device=b.device)

    def backward(loss: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            hidden.grad = weight.grad = None
            loss().backward()

        return run

    def whole() -> Any:
        return F.cross_entropy((hidden @ weight.to(hidden.dtype).t()).float(), targets, reduction="sum")

    for name, loss in (("chunks", lambda: linear_cross_entropy(hidden, weight, targets, ones)), ("whole logits", whole)):
        found.try_(name, lambda loss=loss: b.ms(backward(loss)))  # type: ignore[misc]
    if b.cuda:
        found.try_("whole logits, compiled", lambda: b.ms(backward(torch.compile(whole, dynamic=False))))
    return found


def fp8(b: Bench) -> Found:
    import torch

    found = Found("bf16")
    rows, size, kind = b.size.microbatch * b.size.seq, b.size, torch.float8_e4m3fn
    x = torch.randn(rows, size.width, device=b.device, dtype=torch.bfloat16)
    w = torch.randn(size.hidden, size.width, device=b.device, dtype=torch.bfloat16)
    want = x @ w.t()

    def cast(t: Any, *, rowwise: bool) -> tuple[Any, Any]:
        largest = t.abs().amax(1, keepdim=True).float() if rowwise else t.abs().max().float()
        scale = largest.clamp(min=1e-12) / torch.finfo(kind).max
        return (t / scale).to(kind), scale

    def product(*, rowwise: bool) -> Any:
        (a, by_a), (c, by_c) = cast(x, rowwise=rowwise), cast(w, rowwise=rowwise)
        return torch._scaled_mm(a, c.t(), by_a, by_c.t() if rowwise else by_c, out_dtype=torch.bfloat16)

    def compiled(*, rowwise: bool) -> float:
        run = torch.compile(product, dynamic=False) if b.cuda else product
        off = ((run(rowwise=rowwise) - want).float().norm() / want.float().norm()).item()
        found.about["relative error, " + ("rows" if rowwise else "one scale")] = round(off, 4)
        return b.ms(lambda: run(rowwise=rowwise))

    found.try_("bf16", lambda: b.ms(lambda: x @ w.t()))
    found.try_("fp8, one scale", lambda: compiled(rowwise=False))
    found.try_("fp8, rows", lambda: compiled(rowwise=True))
    return found


def fp8_step(b: Bench) -> Found:
    found = Found("bf16")

    def convert(job: Any) -> None:
        from torchao.float8 import convert_to_float8_training

        from tauon.optim import AdamWConfig

        for block in job.model.blocks_to_compile():
            convert_to_float8_training(block)
        job.optimizer = AdamWConfig().build(job.model)  # converting makes new parameters
        if b.cuda:
            for block in job.model.blocks_to_compile():
                block.compile(dynamic=False)

    found.try_("bf16", lambda: step_ms(b, b.cuda))
    found.try_("fp8 (torchao)", lambda: step_ms(b, False, convert))
    return found


# ---------------------------------------------------------------------------------------------- privacy


def private(b: Bench) -> Found:
    import torch

    from benchmarks._private import Case, our_step, plain_step
    from tauon.models import materialize
    from tauon.models.families.gpt import GPTConfig
    from tauon.tasks import LanguageModelling
    from tauon.testing import tiny_batch
    from tauon.types import DataSpec

    found = Found("private", about={"of": "8 layers, width 1,024, sequences of 256, 64 a step, fp32 (TF32 off)" if b.cuda else "toy"})
    layers, width, seq, rows = (8, 1024, 256, 64) if b.cuda else (2, 32, 16, 4)
    spec = DataSpec(vocab=8192 if b.cuda else 64, seq_len=seq)

    def case() -> Case:
        model = materialize(GPTConfig(layers=layers, width=width, heads=width // 64 or 2).resolve(spec), seed=0, device=b.device)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.02)
        return Case(model, LanguageModelling(), tiny_batch(spec, rows).to(b.device), "text")

    found.try_("plain", lambda: b.ms(plain_step(case())))
    found.try_("private", lambda: b.ms(our_step(case())))
    if {"plain", "private"} <= set(found.values):
        found.about["of_plain"] = round(found.values["private"] / found.values["plain"], 3)
    return found


MEASURES: dict[str, Callable[[Bench], Found]] = {
    "waits": waits, "compile": compiling, "optimizer": optimizers, "attention": attention, "head": head, "private": private, "fp8": fp8,
    "fp8_step": fp8_step, "graphs": graphs,
}  # fmt: skip
NO_CHOICE = ("waits", "private")
"""Measures whose values are not alternatives."""


def line(name: str, found: Found, seconds: float) -> dict[str, Any]:
    """What is printed of a measure."""
    same = {k: v for k, v in found.values.items() if k != found.about.get("not the same") and v == v}
    fastest = min(same, key=lambda k: same[k]) if same and name not in NO_CHOICE else None
    values = {k: v if v == v else None for k, v in found.values.items()}
    return {"measure": name, "unit": found.unit, "default": found.default, "fastest": fastest, "values": values, "errors": found.errors,
            **found.about, "took_s": round(seconds, 1)}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds of each instead of 7")
    parser.add_argument("--dry", action="store_true", help="toy sizes on a CPU: that the code runs, no figures")
    parser.add_argument("--seconds", type=float, default=420.0, help="no measure is begun after this many")
    parser.add_argument("--only", nargs="+", choices=MEASURES, metavar="NAME", help=", ".join(MEASURES))
    args = parser.parse_args(arguments)
    import torch

    if not args.dry and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu_switches measures one CUDA device, and torch finds none here; --dry runs its code on a CPU.")
    device = torch.device("cpu") if args.dry else torch.device("cuda", 0)
    bench = Bench(device, TOY if args.dry else FULL, 1 if args.dry else 3 if args.quick else 7)
    print(
        json.dumps({"device": "a CPU, toy sizes" if args.dry else torch.cuda.get_device_name(device), "torch": torch.__version__}),
        flush=True,
    )
    started, gains = time.perf_counter(), {}
    for name in args.only or MEASURES:
        began = time.perf_counter()
        if began - started > args.seconds:
            print(json.dumps({"measure": name, "left_out": f"{began - started:.0f} s have gone"}), flush=True)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = MEASURES[name](bench)
            except Exception as err:  # what comes before its choices: memory, a device in a bad state
                found = Found("", errors={"all": f"{type(err).__name__}: {(str(err).splitlines() or [''])[0][:200]}"})
        said = line(name, found, time.perf_counter() - began)
        print(json.dumps(said), flush=True)
        if said["fastest"] is not None and found.default in found.values:
            gains[name] = round(found.values[found.default] / found.values[said["fastest"]], 3)
    worst = max(gains.values(), default=1.0)
    result = {"claim": "gpu_switches", "ours": 1.0, "peer": round(1 / worst, 3), "ratio": round(1 / worst, 3), "floor": 0.95}
    print(json.dumps(result | {"unit": "fastest choice / default, the worst measure", "default_over_fastest": gains}))


if __name__ == "__main__":
    main()
