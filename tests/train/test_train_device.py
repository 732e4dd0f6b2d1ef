"""What a GPU needs of the step, tested without one: nothing left on the CPU, few waits for the device, state where the optimizer wants it.

The meta device stands for the GPU: it computes shapes only, and an operator that is given a tensor of it and one of the CPU is an error
there as on a card.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tauon.config import parse
from tauon.errors import RecipeError
from tauon.models import GPT2Config, GPTConfig, Model, ModelConfig
from tauon.optim import OptimConfig, load_optimizer, optimizer_tensors
from tauon.plan import choose_compile, choose_device
from tauon.tasks import LanguageModelling
from tauon.tasks.losses import chunk_rows
from tauon.testing import tiny_batch
from tauon.train import EMA, GradientHealth, Precision, StepPolicy, TrainJob, gather_dtype, launch_step, train_step, validation_loss
from tauon.types import Batch, DataSpec

SPEC = DataSpec(vocab=31, seq_len=12)
META, CPU = torch.device("meta"), torch.device("cpu")
READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "_to_copy to the CPU")


@pytest.fixture(autouse=True)
def _fused_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch knows the shapes of fused Adam on meta, and only refuses the device's name. (Of fused SGD it does not know them.)"""
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None)


class Watch(TorchDispatchMode):
    """Counts operators that make a host wait for a device, refuses those that mix devices, and answers 1 where meta has no number."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func._schema.name.split("::")[1]
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name == "_to_copy" and tensors[0].device.type == "meta" and str((kwargs or {}).get("device")) == "cpu":
            if (kwargs or {}).get("non_blocking"):  # read when it has come: a step that was not skipped
                return torch.zeros(tensors[0].shape, dtype=(kwargs or {}).get("dtype") or tensors[0].dtype)
            self.waits["_to_copy to the CPU"] += 1
            return torch.ones(tensors[0].shape, dtype=(kwargs or {}).get("dtype") or tensors[0].dtype)
        if name in READS:
            self.waits[name] += 1
            if tensors[0].device.type == "meta":
                return 1.0
        devices = {t.device.type for t in tensors if t.ndim}
        assert len(devices) <= 1 or name in ("_to_copy", "copy_"), f"{func} got tensors of {devices}"
        return func(*args, **(kwargs or {}))


class Source:
    def batch_at(self, step: int) -> Batch:
        return tiny_batch(SPEC, rows=4, seed=step)


def job_on(device: torch.device, model: ModelConfig, optim: OptimConfig, *, ema: bool = False, clip: bool = True) -> TrainJob:
    """As `build_job` makes it, on a device that holds no numbers."""
    net: Model = model.build_on_meta() if device.type == "meta" else model.build()
    if device.type != "meta":
        with torch.no_grad():
            for p in net.parameters():
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        net.init_buffers()
    policy = StepPolicy(
        total_steps=5, seed=0, schedule=optim.schedule, precision=Precision("fp32", device.type), device=device, microbatch=2,
        clip_norm=1.0 if clip else None, reads_late=device.type != "cpu",
    )  # fmt: skip
    return TrainJob(
        net, optim.build(net), Source(), LanguageModelling(), policy, GradientHealth(None, 3), ema=EMA(net, 0.9) if ema else None
    )


GPT = GPTConfig(layers=2, width=16, heads=4, kv_heads=2, mlp="swiglu", vocab=31, seq_len=12)


@pytest.mark.parametrize("optim", ["adamw", "muon"])
@pytest.mark.parametrize("model", [GPT, GPT2Config(layers=2, width=16, heads=2, vocab=31, seq_len=12)], ids=["gpt", "gpt2"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_step_on_another_device_leaves_nothing_on_the_cpu_and_waits_for_nothing(model: ModelConfig, optim: str, packed: bool) -> None:
    job = job_on(META, model, parse(OptimConfig, {"kind": optim}), ema=True)
    batch = job.loader.batch_at(0)
    if packed:
        batch = Batch(batch.inputs, batch.targets, batch.weights, (torch.arange(12) // 5).int().expand(4, -1))
    moved = batch.to(META)
    with Watch() as watch:
        launched = launch_step(job, moved)
    assert not watch.waits
    assert launched.late
    launched.read()


def test_a_step_of_an_optimizer_that_counts_on_the_host_waits_once() -> None:
    job = job_on(META, GPT, parse(OptimConfig, {"kind": "schedule-free"}))
    with Watch() as watch:
        launched = launch_step(job, job.loader.batch_at(0).to(META))
    assert watch.waits == {"_local_scalar_dense": 2}, "the loss and the gradient's norm, read one after the other: one wait"
    assert not launched.late


def test_validation_waits_once_a_batch() -> None:
    job = job_on(META, GPT, parse(OptimConfig, {"kind": "adamw"}))
    with Watch() as watch:
        validation_loss(job, [job.loader.batch_at(0), job.loader.batch_at(1)])
    assert watch.waits["_to_copy to the CPU"] == 2
    assert watch.waits["_local_scalar_dense"] <= 2


@pytest.mark.parametrize("kind", ["adamw", "adam", "muon"])
def test_a_resumed_optimizer_has_each_tensor_where_a_fresh_one_has_it(kind: str) -> None:
    """Fused Adam keeps its step counter on the parameter's device, and on a GPU fails where it is on the CPU."""
    optim = parse(OptimConfig, {"kind": kind})
    saved = job_on(CPU, GPT, optim)
    train_step(saved, saved.loader.batch_at(0))
    tensors, numbers = optimizer_tensors(saved.optimizer, saved.model)
    fresh, resumed = job_on(META, GPT, optim), job_on(META, GPT, optim)
    with Watch():
        train_step(fresh, fresh.loader.batch_at(0).to(META))
    load_optimizer(resumed.optimizer, resumed.model, tensors, numbers)
    wanted, _ = optimizer_tensors(fresh.optimizer, fresh.model)
    found, _ = optimizer_tensors(resumed.optimizer, resumed.model)
    assert {k: (t.device, t.dtype, t.shape) for k, t in found.items()} == {k: (t.device, t.dtype, t.shape) for k, t in wanted.items()}
    with Watch():
        train_step(resumed, resumed.loader.batch_at(0).to(META))


def test_chunks_of_logits_are_whole_tiles_on_a_gpu_and_as_before_on_a_cpu() -> None:
    gpu = torch.device("cuda")
    assert chunk_rows(16_384, 50_304, gpu) == 2_560
    assert chunk_rows(8_192, 128_256, gpu) == 1_024
    assert chunk_rows(100, 50_304, gpu) == 100
    assert chunk_rows(10**6, 2**21, gpu) == 64, "fewer than a tile's rows fit"
    assert chunk_rows(10**6, 2**40, gpu) == 1
    assert chunk_rows(4_096, 8_192, CPU) == 512


def test_weights_are_gathered_in_bf16_only_where_a_gpu_computes_in_it() -> None:
    gpu = torch.device("cuda")
    assert gather_dtype(gpu, Precision("bf16", "cuda")) == torch.bfloat16
    assert gather_dtype(gpu, Precision("fp32", "cuda")) is None
    assert gather_dtype(CPU, Precision("bf16", "cpu")) is None


def test_a_gpu_without_triton_or_a_compiler_is_not_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, bare = torch.device("cuda"), GPT.build_on_meta()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/gcc")
    assert choose_compile("auto", gpu, bare, None) == (True, "a GPU gains from fused kernels")
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert choose_compile("auto", gpu, bare, None) == (False, "no C compiler (gcc), which Triton needs, was found")
    with pytest.raises(RecipeError, match="no C compiler"):
        choose_compile(True, gpu, bare, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert choose_compile("auto", gpu, bare, None) == (False, "Triton is not installed")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GTX 1080")
    assert choose_compile("auto", gpu, bare, None)[1].startswith("GTX 1080 is too old for Triton")


def test_each_process_is_given_the_card_that_join_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert choose_device("auto") == (torch.device("cuda", 3), "the accelerator of this process")
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert choose_device("cuda")[0] == torch.device("cuda", 3)
    assert choose_device("cuda:1")[0] == torch.device("cuda", 1)


def test_a_batch_goes_to_a_gpu_through_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    sent: list[tuple[str, bool]] = []
    real = Tensor.to

    def pin(self: Tensor) -> Tensor:
        pinned.append(self)
        return self

    def to(self: Tensor, device: Any, non_blocking: bool = False) -> Tensor:
        sent.append((str(device), non_blocking))
        return real(self, "meta")

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    batch = tiny_batch(SPEC, rows=2)
    batch.to(torch.device("cuda", 1))
    assert len(pinned) == len(sent) >= 3
    assert set(sent) == {("cuda:1", True)}
    pinned.clear()
    batch.to("cpu")
    assert not pinned
