"""The step on a GPU: it waits for nothing, skips bad gradients by itself, and computes what the CPU computes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gpu_jobs import IMAGES, TABLE, TEXT, Batches, close, differing, everything, job_on, no_waits

from tauon.data import DeviceBatches
from tauon.errors import TrainingError
from tauon.plan import choose_device, choose_precision
from tauon.train import TrainJob, every, launch_step, train, train_step, validation_loss, watch_layers
from tauon.types import DataSpec, StepInfo


@pytest.mark.parametrize("optim", ["adamw", "adam", "sgd", "muon", "lion"])
def test_a_step_makes_the_host_wait_for_nothing(device: torch.device, optim: str) -> None:
    job = job_on(device, optim=optim, ema=0.9, microbatch=4, spike_factor=10.0)
    for step in range(3):  # memory is allocated, kernels are loaded
        train_step(job, job.loader.batch_at(step).to(device))
    batch = job.loader.batch_at(3).to(device)
    with no_waits():
        launched = launch_step(job, batch)
    assert launched.late
    assert math.isfinite(launched.read()["loss"])


@pytest.mark.parametrize("spec", [TABLE, IMAGES], ids=["table", "images"])
def test_nor_does_a_step_with_batch_norm_and_a_look_at_the_layers(device: torch.device, spec: DataSpec) -> None:
    job = watch_layers(job_on(device, spec, ema=0.9), 1)
    for step in range(3):
        train_step(job, job.loader.batch_at(step).to(device))
    batch = job.loader.batch_at(3).to(device)
    with no_waits():
        launched = launch_step(job, batch)
    assert all(look.update is not None and look.update > 0 for look in launched.read()["layers"].values() if look.gradient > 0)


def test_the_next_batch_is_copied_without_waiting(device: torch.device) -> None:
    source = Batches(TEXT)
    batches = DeviceBatches(source, device, total_steps=6)
    batches.batch_at(0)
    batches.prefetch(1)  # pinned memory is allocated
    batches.batch_at(1)
    with no_waits():
        batches.prefetch(2)
        here = batches.batch_at(2)
    want = source.batch_at(2)
    assert here.inputs.device == device
    assert torch.equal(here.inputs.cpu(), want.inputs) and torch.equal(here.weights.cpu(), want.weights)


def test_prefetched_batches_are_those_of_their_steps_also_after_a_jump(device: torch.device) -> None:
    source = Batches(TABLE)
    batches = DeviceBatches(source, device, total_steps=9)
    for step in (0, 1, 2, 7, 8, 3):
        assert torch.equal(batches.batch_at(step).inputs.cpu(), source.batch_at(step).inputs)
        batches.prefetch(step + 1)


def test_a_batch_goes_through_pinned_memory(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[bool] = []
    real = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        pinned.append(self.is_pinned())
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    Batches(TEXT).batch_at(0).to(device)
    assert len(pinned) >= 3 and all(pinned)


@pytest.mark.parametrize("optim", ["adamw", "sgd", "muon", "lion"])
def test_a_step_that_the_gpu_skips_moves_nothing(device: torch.device, optim: str) -> None:
    job = job_on(device, IMAGES if optim != "muon" else TEXT, optim=optim, ema=0.9, nan=(4,))
    for step in range(4):
        train_step(job, job.loader.batch_at(step).to(device))
    before = everything(job)
    launched = launch_step(job, job.loader.batch_at(4).to(device))
    assert launched.late and "not finite" in launched.read()["skipped"]
    assert differing(before, everything(job)) == {"state/step", "state/examples", "state/health"} | (
        {"state/tokens"} if optim == "muon" else set()
    )
    assert "skipped" not in train_step(job, job.loader.batch_at(5).to(device))


@pytest.mark.parametrize("optim", ["adagrad", "schedule-free", "soap"])
def test_optimizers_that_count_on_the_host_skip_too(device: torch.device, optim: str) -> None:
    job = job_on(device, optim=optim, nan=(2,))
    for step in range(2):
        train_step(job, job.loader.batch_at(step).to(device))
    before = everything(job)
    launched = launch_step(job, job.loader.batch_at(2).to(device))
    assert not launched.late and "skipped" in launched.metrics
    assert differing(before, everything(job)) == {"state/step", "state/examples", "state/tokens", "state/health"}


def test_hooks_are_told_late_and_validation_finds_the_job_as_it_was(device: torch.device) -> None:
    job, seen, looked = job_on(device, steps=9, nan=(3,)), [], []

    def each(job: TrainJob, info: StepInfo) -> None:
        seen.append((info.step, "skipped" in info.metrics, job.step - info.step))

    def validate(job: TrainJob, info: StepInfo) -> None:
        assert job.step == info.step
        looked.append(validation_loss(job, [job.loader.batch_at(100)]))

    train(job, hooks=[each, every(4, validate)])
    assert [s for s, _, _ in seen] == [*range(1, 10)]
    assert [s for s, skipped, _ in seen if skipped] == [4]
    assert {late for _, _, late in seen} == {0, 1}
    assert len(looked) == 3 and all(math.isfinite(x) for x in looked)


def test_too_many_bad_steps_are_named(device: torch.device) -> None:
    job = job_on(device, TABLE, nan=(4, 5, 6, 7), max_bad_steps=3)
    with pytest.raises(TrainingError, match="^step 7: 3 steps in a row were skipped"):
        train(job)


@pytest.mark.parametrize("spec", [TABLE, IMAGES, TEXT], ids=["table", "images", "text"])
def test_losses_and_gradient_norms_are_those_of_the_cpu(device: torch.device, spec: DataSpec) -> None:
    found = []
    for where in (torch.device("cpu"), device):
        job = job_on(where, spec)
        found.append([train_step(job, job.loader.batch_at(step).to(where)) for step in range(4)])
    for cpu, gpu in zip(*found, strict=True):
        assert gpu["loss"] == pytest.approx(cpu["loss"], rel=1e-3)
        assert gpu["grad_norm"] == pytest.approx(cpu["grad_norm"], rel=1e-2)
        assert gpu["lr"] == cpu["lr"]


def test_microbatches_add_up_to_the_large_batch(device: torch.device) -> None:
    norms = []
    for microbatch in (8, 2):
        job = job_on(device, microbatch=microbatch)
        norms.append(train_step(job, job.loader.batch_at(0).to(device)))
    assert norms[1]["loss"] == pytest.approx(norms[0]["loss"], rel=1e-5)
    assert norms[1]["grad_norm"] == pytest.approx(norms[0]["grad_norm"], rel=1e-3)


def test_bf16_multiplies_in_bf16_and_keeps_weights_in_fp32(device: torch.device) -> None:
    job, plain = job_on(device, precision="bf16"), job_on(device)
    seen: list[torch.dtype] = []
    job.model.layers[0].mlp.up.register_forward_hook(lambda m, i, out: seen.append(out.dtype))  # type: ignore[union-attr, operator, index]
    losses = [train_step(j, j.loader.batch_at(0).to(device))["loss"] for j in (job, plain)]
    assert seen == [torch.bfloat16]
    assert all(p.dtype == torch.float32 for p in job.model.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_auto_takes_the_gpu_and_bf16(device: torch.device) -> None:
    assert choose_device("auto") == (device, "the accelerator of this process")
    precision, why = choose_precision("auto", device, job_on(device).model)  # type: ignore[arg-type]
    assert (precision.name == "bf16") == torch.cuda.is_bf16_supported(including_emulation=False)
    assert torch.cuda.get_device_name(device) in why


def test_memory_that_ends_names_the_setting_to_change(device: torch.device) -> None:
    job = job_on(device, TABLE)

    def greedy(job: TrainJob, batch: Any) -> torch.Tensor:
        return torch.empty(2**46, device=device)

    from dataclasses import replace

    job.functions = replace(job.functions, make=greedy)
    with pytest.raises(TrainingError, match=r"out of memory at step 1 with microbatch 8. Try train.microbatch=4"):
        train(job)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, inside its compiler
def test_compiled_by_block_is_the_eager_step_and_waits_for_nothing(device: torch.device) -> None:
    eager, compiled = job_on(device), job_on(device, compiled=True)
    for step in range(3):
        a, b = (train_step(j, j.loader.batch_at(step).to(device))["loss"] for j in (eager, compiled))
        assert b == pytest.approx(a, rel=1e-3)
    batch = compiled.loader.batch_at(3).to(device)
    with no_waits():
        launched = launch_step(compiled, batch)
    assert math.isfinite(launched.read()["loss"])


def test_averaged_weights_follow_the_weights(device: torch.device) -> None:
    job, plain = job_on(device, TABLE, ema=0.5), job_on(device, TABLE)
    shadow = {n: p.detach().clone() for n, p in plain.model.named_parameters()}
    for step in range(4):
        for j in (job, plain):
            train_step(j, j.loader.batch_at(step).to(device))
        d = min(0.5, (1 + step) / (10 + step))
        shadow = {n: d * shadow[n] + (1 - d) * p.detach() for n, p in plain.model.named_parameters()}
    assert job.ema is not None
    for name, value in shadow.items():
        close(job.ema.shadow[name], value)
