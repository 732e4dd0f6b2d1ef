"""Healing: masks hold, a pruned model becomes better, the given models stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compress_models import CONFIGS, TABLE, batch_of, calibration, model_of, task_of
from test_training_distil import Rows, gpt_job

from tauon.compress import LowRank, Magnitude, Structured, Subject, Wanda, compress_model, open_compressed, save_compressed
from tauon.compress.training import HealConfig, healer, hold_masks, masks_of_zeros
from tauon.config import parse
from tauon.errors import CheckpointError, DataError
from tauon.models import materialize, open_model_folder, resolved
from tauon.models.base import ModelConfig
from tauon.optim import OptimConfig
from tauon.plan import make_plan
from tauon.tasks import Classification
from tauon.train import JobConfig, TrainConfig, build_job, train


@pytest.mark.parametrize(
    "optim", [{"kind": "adamw", "weight_decay": 0.1}, {"kind": "sgd", "momentum": 0.9}, {"kind": "muon"}, {"kind": "lion"}]
)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_masked_weights_stay_zero_whatever_the_optimizer_remembers(optim: dict[str, Any], pattern: Any) -> None:
    settings = TrainConfig(steps=6, batch=8, device="cpu", precision="fp32", compile=False, ema=0.9)
    config = JobConfig(CONFIGS["mlp"], parse(OptimConfig, optim | {"lr": 0.05}), settings, Classification(), TABLE, seed=0)
    job = build_job(config, Rows(TABLE), make_plan(config, examples=64))
    train(job)  # momentum and averages of weights that are pruned afterwards
    subject = Subject(job.model, Classification(), None, None)
    Magnitude(sparsity=0.6, pattern=pattern).apply(subject)
    job.step = 0
    job = hold_masks(job, subject.masks)
    before = {n: p.clone() for n, p in job.model.named_parameters()}
    train(job)
    for name, p in job.model.named_parameters():
        mask = subject.masks.get(name)
        if mask is not None:
            assert not p[~mask].any() and (p[mask] != before[name][mask]).any()
        if mask is not None and pattern == "2:4":
            whole = p[:, : p.shape[1] // 4 * 4]
            assert (whole.unflatten(1, (-1, 4)) != 0).sum(2).max() <= 2


def test_masks_of_another_model_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.weight"):
        hold_masks(gpt_job(), {"nothing.weight": torch.ones(2, 2, dtype=torch.bool)})


@pytest.mark.parametrize(
    "step", [Structured(remove=0.5), LowRank(keep=0.4), Magnitude(sparsity=0.8), Wanda(sparsity=0.8)], ids=lambda s: s.kind_
)
def test_healing_brings_a_pruned_model_closer_to_its_teacher(step: Any) -> None:
    model = model_of("mlp")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    heal = healer(Rows(TABLE), HealConfig(steps=60, lr=0.01, weight=1.0), teacher=model)
    broken = compress_model(model, task_of("mlp"), calibration("mlp"), [step], config=CONFIGS["mlp"])
    healed = compress_model(model, task_of("mlp"), calibration("mlp"), [step], config=CONFIGS["mlp"], heal=heal)
    x = batch_of("mlp", n=64, seed=99).inputs
    want = model(x).log_softmax(1)
    far, near = (
        torch.nn.functional.kl_div(m.model(x).log_softmax(1), want, log_target=True, reduction="batchmean") for m in (broken, healed)
    )
    assert near < 0.7 * far
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters()) and all(p.requires_grad for p in model.parameters())
    for name, mask in healed.masks.items():
        assert not healed.model.get_parameter(name)[~mask].any()


def test_the_same_healing_twice_is_the_same_and_leaves_random_numbers_alone() -> None:
    model = model_of("gpt")

    def healed() -> Any:
        heal = healer(gpt_job().loader, HealConfig(steps=3), teacher=model)
        return compress_model(model, task_of("gpt"), calibration("gpt"), [Structured(remove=0.5)], config=CONFIGS["gpt"], heal=heal)

    torch.manual_seed(5)
    first, second = healed(), healed()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True))


def test_a_loss_that_explodes_is_an_error_that_names_the_rate() -> None:
    model = model_of("mlp")

    class Bad(Rows):
        def batch_at(self, step: int) -> Any:
            batch = super().batch_at(step)
            batch.inputs.fill_(float("nan"))
            return batch

    with pytest.raises(DataError, match=r"heal\.lr"):
        compress_model(
            model, task_of("mlp"), None, [Magnitude()], heal=healer(Bad(TABLE), HealConfig(steps=30)), config=CONFIGS["mlp"]
        )  # fmt: skip


# ------------------------------------------------------------------------------------------ starting from a compressed model


@pytest.mark.parametrize("step", [Structured(remove=0.5), LowRank(keep=0.5), Magnitude(sparsity=0.5)], ids=lambda s: s.kind_)
def test_training_starts_from_a_compressed_folder(tmp_path: Any, step: Any) -> None:
    made = compress_model(model_of("gpt"), task_of("gpt"), calibration("gpt"), [step], config=CONFIGS["gpt"])
    save_compressed(tmp_path / "model", made)
    start = open_model_folder(str(tmp_path))
    spec = gpt_job().loader.spec  # type: ignore[attr-defined]
    config = resolved(parse(ModelConfig, {"from": str(tmp_path)}), spec)
    net = materialize(config, seed=0)
    batch = batch_of("gpt")
    assert torch.equal(net.eval()(batch.inputs), made.model(batch.inputs))
    assert all(p.requires_grad for p in net.parameters())
    if step.kind_ == "magnitude":
        masks = masks_of_zeros(start.tensors, list(start.sparse))
        assert masks.keys() == made.masks.keys() and all(torch.equal(masks[n], m) for n, m in made.masks.items())
    else:
        assert not start.sparse
    from tauon.models import from_record, record

    again = from_record(record(config.model_copy(update={"from_": None})))
    assert materialize(again, seed=0, weights=net.state_dict()).eval()(batch.inputs).equal(made.model(batch.inputs))


def test_weights_in_fewer_bits_do_not_train(tmp_path: Any) -> None:
    from tauon.compress import Int4WeightOnly

    made = compress_model(model_of("gpt"), task_of("gpt"), None, [Int4WeightOnly()], config=CONFIGS["gpt"])
    save_compressed(tmp_path / "model", made)
    with pytest.raises(CheckpointError, match="qat"):
        open_model_folder(str(tmp_path))
    assert open_compressed(tmp_path / "model").masks == {}
