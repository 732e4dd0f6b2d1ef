"""What goes to and from a GPU: checkpoints, resume, sharding on one process; and private training, generation and evaluation beside the CPU's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gpu_jobs import IMAGES, TABLE, TEXT, Batches, close, differing, everything, job_on

from tauon.artifacts import CheckpointWriter, load_checkpoint
from tauon.config import parse
from tauon.generate import Sampling, generate
from tauon.models.randomness import dropout, keyed_rows, uniform_rows
from tauon.optim import clip_gradients
from tauon.privacy import make_private
from tauon.privacy.clipped.modes import ClippingConfig
from tauon.privacy.noise import NoiseConfig, NoisePlan, NoiseSource
from tauon.train import Meter, TrainJob, job_state, launch_step, memory_mb, restore, train, train_step, validation_loss
from tauon.types import DataSpec, StepInfo

CPU = torch.device("cpu")


def save(job: TrainJob, folder: Path) -> None:
    with CheckpointWriter(folder) as writer:
        writer.save(job.step, *job_state(job))


@pytest.mark.parametrize("optim", ["adamw", "sgd", "muon"])
def test_a_checkpoint_of_the_gpu_goes_back_to_it_bit_for_bit(device: torch.device, tmp_path: Path, optim: str) -> None:
    job = job_on(device, optim=optim, ema=0.9)
    for step in range(3):
        train_step(job, job.loader.batch_at(step).to(device))
    save(job, tmp_path)
    again = job_on(device, optim=optim, ema=0.9)
    restore(again, load_checkpoint(tmp_path / "step-000003"))
    assert not differing(everything(job), everything(again))
    assert {p.device for p in again.model.parameters()} == {device}
    assert launch_step(again, again.loader.batch_at(3).to(device)).late, "its state is where a fresh optimizer has it"


def test_a_checkpoint_of_the_gpu_opens_on_the_cpu_and_the_other_way_round(device: torch.device, tmp_path: Path) -> None:
    for first, second in ((device, CPU), (CPU, device)):
        job = job_on(first)
        train_step(job, job.loader.batch_at(0).to(first))
        folder = tmp_path / first.type
        save(job, folder)
        other = job_on(second)
        restore(other, load_checkpoint(folder / "step-000001"))
        assert not differing(everything(job), everything(other))
        train_step(other, other.loader.batch_at(1).to(second))


def test_a_run_that_is_stopped_goes_on_bit_for_bit(device: torch.device, tmp_path: Path) -> None:
    """Of a model whose kernels add in a fixed order."""
    whole = train(job_on(device, TABLE, ema=0.9, nan=(6,), steps=12))
    first = job_on(device, TABLE, ema=0.9, nan=(6,), steps=12)
    train(first, hooks=[lambda job, info: "stop" if info.step == 6 else None])
    first.notes.pop("stopped")
    assert first.step in (6, 7), "told a step late"
    save(first, tmp_path)
    again = job_on(device, TABLE, ema=0.9, nan=(6,), steps=12)
    restore(again, load_checkpoint(tmp_path / f"step-{first.step:06d}"))
    assert not differing(everything(train(again)), everything(whole))


@pytest.fixture
def alone(device: torch.device) -> Iterator[None]:
    """A process group of one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(20_000 + os.getpid() % 20_000),
            "RANK": "0",
            "WORLD_SIZE": "1",
        }.items():
            patch.setenv(name, value)
        dist.init_process_group("cpu:gloo,cuda:nccl")
        yield
        dist.destroy_process_group()


def sharded_on(device: torch.device, **more: object) -> TrainJob:
    """The job, its blocks and the rest under FSDP2 over one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    job = job_on(device, **more)  # type: ignore[arg-type]
    mesh = init_device_mesh(device.type, (1,))
    for block in job.model.blocks_to_compile():  # type: ignore[operator]
        fully_shard(block, mesh=mesh)
    fully_shard(job.model, mesh=mesh)
    fresh = torch.optim.AdamW(list(job.model.parameters()), betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for group in fresh.param_groups:
        group["peak_lr"] = 3e-4
    job.optimizer = fresh
    return job


@pytest.mark.usefixtures("alone")
def test_sharded_over_one_process_it_is_the_plain_step_and_skips_on_the_device(device: torch.device) -> None:
    sharded, plain = sharded_on(device, nan=(2,)), job_on(device, nan=(2,))
    plain.optimizer = torch.optim.AdamW(plain.model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for group in plain.optimizer.param_groups:
        group["peak_lr"] = 3e-4
    for step in range(4):
        a, b = (launch_step(j, j.loader.batch_at(step).to(device)) for j in (sharded, plain))
        assert a.late and b.late
        one, two = a.read(), b.read()
        assert ("skipped" in one) == ("skipped" in two) == (step == 2)
        if step != 2:
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
            assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
    named = dict(plain.model.named_parameters())
    for name, p in sharded.model.named_parameters():
        close(p.full_tensor(), named[name])  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------ privacy


def private_on(device: torch.device, spec: DataSpec, clipping: str = "flat", multiplier: float = 0.5) -> TrainJob:
    job = job_on(device, spec, optim="sgd", model={"kind": "cnn", "channels": [8], "groups": 4} if spec is IMAGES else None)
    loader = job.loader

    class Drawn(Batches):
        def batch_at(self, step: int):  # type: ignore[no-untyped-def]
            return replace(loader.batch_at(step), draws=torch.arange(8) + 1000 * step)

    job.loader = Drawn(spec)
    plan = NoisePlan(parse(NoiseConfig, {"kind": "constant"}), multiplier, job.policy.total_steps)
    plan.releases(8 / 64, "poisson")
    how = parse(ClippingConfig, {"kind": clipping})
    return make_private(job, how, plan, NoiseSource.seeded(0), expected=lambda step: 8.0)


@pytest.mark.parametrize("spec", [TABLE, IMAGES, TEXT], ids=["table", "images", "text"])
@pytest.mark.parametrize("multiplier", [0.0001, 1.0], ids=["clipping", "noise"])
def test_clipped_and_noised_gradients_are_those_of_the_cpu(device: torch.device, spec: DataSpec, multiplier: float) -> None:
    found = []
    for where in (CPU, device):
        job = private_on(where, spec, multiplier=multiplier)
        job.functions.make(job, job.loader.batch_at(0).to(where))
        found.append({n: p.grad for n, p in job.model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, g in found[0].items():
        close(found[1][name], g, rtol=1e-3, atol=1e-5)


def test_noise_is_the_same_numbers_wherever_it_is_drawn(device: torch.device) -> None:
    source = NoiseSource.seeded(7)
    here, there = (source.normal(3, "weight/0", (64, 33), device=where) for where in (CPU, device))
    close(there, here, rtol=1e-5, atol=1e-6)
    assert abs(float(there.std()) - 1) < 0.1


def test_keyed_dropout_drops_the_same_places_as_on_the_cpu(device: torch.device) -> None:
    seeds, x = torch.arange(8) * 17, torch.ones(8, 40)
    found = []
    for where in (CPU, device):
        with keyed_rows(seeds.to(where), 5):
            found.append((dropout(x.to(where), 0.3).cpu(), uniform_rows(8, where).cpu()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert 0.1 < float((found[0][0] == 0).float().mean()) < 0.5


@pytest.mark.parametrize("most", [0.01, 1e9])
def test_gradient_norms_and_clipping_are_those_of_the_cpu(device: torch.device, most: float) -> None:
    g = torch.Generator().manual_seed(0)
    values = [torch.randn(n, generator=g) for n in (5, 1000, 3)]
    found = []
    for where in (CPU, device):
        parameters = [torch.nn.Parameter(torch.zeros_like(v, device=where)) for v in values]
        for p, v in zip(parameters, values, strict=True):
            p.grad = v.clone().to(where)
        norm = clip_gradients(parameters, most, None)
        assert norm.device.type == where.type
        found.append([norm, *(p.grad for p in parameters)])
    for a, b in zip(*found, strict=True):
        close(b, a)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ the rest


def test_adamw8bit_takes_steps_and_resumes(device: torch.device, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    large = {"kind": "gpt", "layers": 1, "width": 128, "heads": 2}
    job = job_on(device, optim="adamw8bit", model=large)
    losses = [train_step(job, job.loader.batch_at(0).to(device))["loss"] for _ in range(5)]
    assert losses[-1] < losses[0]
    save(job, tmp_path)
    again = job_on(device, optim="adamw8bit", model=large)
    restore(again, load_checkpoint(tmp_path / "step-000005"))
    assert not differing(everything(job), everything(again))
    train_step(again, again.loader.batch_at(5).to(device))


def test_generated_text_is_that_of_the_cpu(device: torch.device) -> None:
    texts = []
    for where in (CPU, device):
        job = job_on(where, model={"kind": "gpt", "layers": 2, "width": 32, "heads": 2, "seq_len": 32})
        with torch.no_grad():
            for name, p in job.model.named_parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(sum(name.encode()))) * 0.3)
        texts.append(generate(job.model, [1, 2, 3], max_tokens=20, sampling=Sampling(temperature=0)))  # type: ignore[arg-type]
    assert texts[0] == texts[1]


def test_validation_is_that_of_the_cpu(device: torch.device) -> None:
    losses = []
    for where in (CPU, device):
        job = job_on(where, TEXT)
        losses.append(validation_loss(job, [job.loader.batch_at(i) for i in range(3)]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_evaluation_is_that_of_the_cpu(device: torch.device) -> None:
    from tauon.tasks import Classification

    outputs = []
    for where in (CPU, device):
        job = job_on(where, IMAGES)
        job.model.eval()
        with torch.no_grad():
            outputs.append(Classification().predict(job.model, job.loader.batch_at(0).to(where))["scores"])
    close(outputs[1], outputs[0], rtol=1e-3)


def test_memory_is_the_gpus(device: torch.device) -> None:
    job, meter = job_on(device), Meter(1e6)
    seen: list[float] = []

    def look(job: TrainJob, info: StepInfo) -> None:
        seen.append(info.metrics.get("memory_mb", 0.0))

    train(job, hooks=[meter, look])
    assert 0 < seen[-1] == pytest.approx(memory_mb(device))
    assert seen[-1] >= sum(p.numel() for p in job.model.parameters()) * 16 / 1e6, "weights, gradients, two moments"
