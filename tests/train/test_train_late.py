"""Steps whose loss and norm are read late, as on an accelerator: what the device decides is what the host decides, and no step is waited for.

Forced on a CPU. A step that is skipped must leave everything as if it had not happened, whichever of the two decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tauon.artifacts import CheckpointWriter, latest_checkpoint
from tauon.config import parse
from tauon.errors import Interrupted, TrainingError
from tauon.models import ModelConfig
from tauon.optim import OptimConfig, can_skip_on_device, optimizer_tensors
from tauon.plan import Plan
from tauon.tasks import Classification, LanguageModelling, losses
from tauon.testing import tiny_batch
from tauon.train import (
    GradientHealth,
    JobConfig,
    StopSignal,
    TrainConfig,
    TrainJob,
    build_job,
    every,
    job_state,
    launch_step,
    restore,
    train,
    train_step,
    watch_layers,
)
from tauon.types import Batch, DataSpec, StepInfo

IMAGES = DataSpec(input_shape=(1, 8, 8), outputs=3)
TEXT = DataSpec(vocab=31, seq_len=12)
ON_DEVICE = ["adamw", "adam", "sgd", "muon", "lion"]
ON_HOST = ["adagrad", "rmsprop", "adafactor", "schedule-free", "soap", "gd", "adamw-bc"]
NAN, SPIKE = (0, 3, 24, 25), (27,)
"""Steps whose batch gives no finite loss, and whose gradient is far above the others'."""


class Batches:
    """Random batches, some of them poisoned."""

    def __init__(self, spec: DataSpec, nan: tuple[int, ...] = NAN, spike: tuple[int, ...] = SPIKE) -> None:
        self.spec, self.nan, self.spike = spec, nan, spike

    def batch_at(self, step: int) -> Batch:
        batch = tiny_batch(self.spec, rows=8, seed=step)
        if step in self.nan:
            (batch.weights if self.spec is TEXT else batch.inputs)[1] = math.nan
        return batch


def job(kind: str, *, late: bool, spec: DataSpec = IMAGES, batches: Batches | None = None, steps: int = 30, **train: Any) -> TrainJob:
    settings = {"steps": steps, "batch": 8, "microbatch": 4, "precision": "fp32", "compile": False} | train
    plan = Plan(steps, torch.device("cpu"), "fp32", False, settings["microbatch"], 1, 1, 1)
    model = {"kind": "resnet20"} if spec is IMAGES else {"kind": "gpt", "layers": 2, "width": 16, "heads": 2, "dropout": 0.1}
    if kind == "schedule-free":
        model |= {"norm": "group"}
    made = build_job(JobConfig(parse(ModelConfig, model).resolve(spec), parse(OptimConfig, {"kind": kind}), TrainConfig(**settings), Classification() if spec is IMAGES else LanguageModelling(), spec, 0), batches or Batches(spec), plan)  # fmt: skip
    made.policy = replace(made.policy, reads_late=late)
    clip = made.functions.clip
    if spec is IMAGES:

        def spiked(job: TrainJob) -> Tensor:
            if job.step in job.loader.spike:  # type: ignore[attr-defined]
                for p in job.model.parameters():
                    p.grad.mul_(1e6)  # type: ignore[union-attr]
            return clip(job)

        made.functions = replace(made.functions, clip=spiked)
    made.model.train()
    return made


def everything(made: TrainJob) -> dict[str, Any]:
    """All that a step may move."""
    groups, state = job_state(made)
    tensors, numbers = optimizer_tensors(made.optimizer, made.model)
    found: dict[str, Any] = {f"{g}/{k}": t.clone() for g, ts in groups.items() for k, t in ts.items()}
    return found | {f"state/{k}": v for k, v in state.items()} | {f"o/{k}": t.clone() for k, t in tensors.items()} | {"numbers": numbers}


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for k, v in a.items():
        assert torch.equal(v, b[k]) if isinstance(v, Tensor) else v == b[k], k


@pytest.mark.parametrize("kind", [*ON_DEVICE, *ON_HOST])
def test_what_the_device_skips_is_what_the_host_skips_bit_for_bit(kind: str) -> None:
    more = {} if kind == "schedule-free" else {"ema": 0.9}
    found: list[dict[str, Any]] = []
    metrics: list[list[dict[str, Any]]] = []
    for late in (False, True):
        made = job(kind, late=late, spike_factor=4.0, **more)
        metrics.append([train_step(made, made.loader.batch_at(step)) for step in range(30)])
        found.append(everything(made))
        skipped = [i for i, m in enumerate(metrics[-1]) if "skipped" in m]
        assert skipped == [*NAN, *SPIKE], "the poison worked"
        assert "running mean" in metrics[-1][27]["skipped"]
    same(*found)
    for host, device in zip(*metrics, strict=True):
        if "skipped" in host:  # the device has set the rate of a step that it did not take
            assert {k: str(v) for k, v in host.items() if k != "lr"} == {k: str(v) for k, v in device.items() if k != "lr"}
        else:
            assert host == device


@pytest.mark.parametrize("kind", ON_DEVICE)
def test_a_step_that_the_device_skips_moves_nothing(kind: str) -> None:
    made = job(kind, late=True, ema=0.9, batches=Batches(IMAGES, nan=(5,), spike=()))
    for step in range(5):
        train_step(made, made.loader.batch_at(step))
    before = everything(made)
    launched = launch_step(made, made.loader.batch_at(5))
    assert launched.late
    assert "not finite" in launched.read()["skipped"]
    after = everything(made)
    moved = {k for k, v in before.items() if not (torch.equal(v, after[k]) if isinstance(v, Tensor) else v == after[k])}
    assert moved == {"state/step", "state/examples", "state/health"}


def test_which_optimizers_can_skip_on_the_device() -> None:
    for kind in [*ON_DEVICE, *ON_HOST]:
        made = job(kind, late=True, batches=Batches(IMAGES, nan=()))
        train_step(made, made.loader.batch_at(0))
        assert can_skip_on_device(made.optimizer) == (kind in ON_DEVICE), kind
        assert not hasattr(made.optimizer, "grad_scale")


def test_the_first_step_of_momentum_is_decided_on_the_host() -> None:
    """Torch's fused SGD sets momentum in its first step: skipped on the device, it would leave memory that nobody has written."""
    made = job("sgd", late=True, batches=Batches(IMAGES, nan=(), spike=()))
    assert not launch_step(made, made.loader.batch_at(0)).late
    assert launch_step(made, made.loader.batch_at(1)).late


# ------------------------------------------------------------------------------------------------ reads

READS = ("item", "__bool__", "__float__", "__int__", "__index__", "tolist", "cpu", "numpy", "__array__")


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """Names of what made the host read a tensor."""
    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in READS:
            real = getattr(Tensor, name)

            def read(self: Tensor, *args: Any, _name: str = name, _real: Any = real, **kwargs: Any) -> Any:
                found.append(_name)
                return _real(self, *args, **kwargs)

            patch.setattr(Tensor, name, read)
        yield found


@pytest.mark.parametrize("kind", ON_DEVICE)
@pytest.mark.parametrize("spec", [IMAGES, TEXT], ids=["images", "text"])
def test_no_number_is_read_on_the_host_inside_a_step(kind: str, spec: DataSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_on_a_gpu(z: Tensor, at: Tensor, h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return z.softmax(1), z.logsumexp(1, keepdim=True) - z.gather(1, at)

    monkeypatch.setattr(losses, "softmax_and_nll", as_on_a_gpu)  # on a CPU it looks for probabilities that are too small
    made = watch_layers(job(kind, late=True, spec=spec, ema=0.9, spike_factor=4.0, batches=Batches(spec, spike=())), 2)
    for step in range(2):
        train_step(made, made.loader.batch_at(step))
    for step in range(2, 5):  # one of them skipped, every second one with a look at the layers
        batch = made.loader.batch_at(step)
        with host_reads() as reads:
            launched = launch_step(made, batch)
        assert launched.late and reads == []
        metrics = launched.read()
        assert ("skipped" in metrics) == (step == 3)
        if "layers" in metrics:
            assert all((look.update is None) == (step == 3) for look in metrics["layers"].values())


def test_a_step_whose_verdict_the_host_gives_reads_two_numbers() -> None:
    made = job("adamw", late=False)
    with host_reads() as reads:
        launch_step(made, made.loader.batch_at(0))
    assert reads == ["item", "item"]


# ------------------------------------------------------------------------------------------------ the loop


def test_hooks_come_one_step_late_and_those_that_are_thinned_out_find_the_job_as_it_was() -> None:
    made = job("adamw", late=True, steps=10, batches=Batches(IMAGES, nan=(4,), spike=()))
    order: list[tuple[str, int, int]] = []

    def each(job: TrainJob, info: StepInfo) -> None:
        assert math.isfinite(info.metrics["loss"]) == (info.step != 5)
        assert ("skipped" in info.metrics) == (info.step == 5) and info.metrics["seconds"] > 0
        order.append(("each", info.step, job.step))

    def validate(job: TrainJob, info: StepInfo) -> None:
        order.append(("validate", info.step, job.step))

    saved: list[tuple[int, int]] = []
    train(made, hooks=[each, every(3, validate)], save=lambda j: saved.append((j.step, j.health.good)), save_every=5)
    assert [s for name, s, _ in order if name == "each"] == [*range(1, 11)]
    assert all(at - step in (0, 1) for name, step, at in order if name == "each")
    assert any(at - step == 1 for _, step, at in order), "late"
    assert [(s, at) for name, s, at in order if name == "validate"] == [(3, 3), (6, 6), (9, 9), (10, 10)]
    assert saved == [(5, 4), (10, 9)], "what is saved knows of every step before it"


def test_losses_and_weights_of_the_loop_are_those_that_are_read_at_once() -> None:
    ends = []
    for late in (False, True):
        made, losses = job("adamw", late=late, ema=0.9), []
        train(made, hooks=[lambda j, info, losses=losses: losses.append(str(info.metrics["loss"]))])
        ends.append((losses, everything(made)))
    assert ends[0][0] == ends[1][0] and len(ends[0][0]) == 30
    same(ends[0][1], ends[1][1])


def test_too_many_bad_steps_end_training_at_the_step_that_was_one_too_many() -> None:
    raised = []
    for late in (False, True):
        made = job("adamw", late=late, max_bad_steps=3, batches=Batches(IMAGES, nan=(4, 6, 7, 8, 9), spike=()))
        saved: list[int] = []
        with pytest.raises(TrainingError, match="^step 9: 3 steps in a row were skipped") as caught:
            train(made, save=lambda j, saved=saved: saved.append(j.step), save_every=4)
        assert saved == [4, 8]
        raised.append(str(caught.value))
    assert raised[0] == raised[1]


def test_a_run_that_is_read_late_is_stopped_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = train(job("adamw", late=True, ema=0.9))
    made, stop = job("adamw", late=True, ema=0.9), StopSignal()

    def interrupt(job: TrainJob, info: StepInfo) -> None:
        if info.step == 24:
            stop.name = "SIGTERM"

    writer = CheckpointWriter(tmp_path, keep_last=2)
    with pytest.raises(Interrupted, match="SIGTERM: saved at step 25"), writer:
        train(made, hooks=[interrupt], stop=stop, save=lambda j: writer.save(j.step, *job_state(j)), save_every=100)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.state["health"]["bad_in_a_row"] == 1, "step 25 was skipped, and that is known"
    again = job("adamw", late=True, ema=0.9)
    restore(again, checkpoint)
    same(everything(train(again)), everything(whole))


@pytest.mark.parametrize("factor", [None, 2.0, 30.0])
def test_the_device_judges_as_the_host_does(factor: float | None) -> None:
    g = torch.Generator().manual_seed(0)
    norms = (torch.randn(400, generator=g).exp() * (1 + 50 * (torch.rand(400, generator=g) > 0.95))).tolist()
    losses = [math.inf if i % 37 == 5 else 1.0 for i in range(400)]
    norms[100] = math.nan
    for by_loss in (True, False):
        host, device = GradientHealth(factor, 10**6), GradientHealth(factor, 10**6)
        host.by_loss = device.by_loss = by_loss
        for step, (loss, norm) in enumerate(zip(losses, torch.tensor(norms), strict=True)):
            reason = host.check(step, loss, norm.item())
            bad = device.judge(torch.tensor(loss), norm)
            assert bool(bad) == (reason is not None)
            assert device.record(step, loss, norm.item(), bool(bad)) == reason
            if step % 50 == 0:  # what a checkpoint keeps is what a resume goes on from
                device.load(device.state())
        assert host.state() == device.state()
