"""Distillation: the mixed loss against torch's own, equal students, weight zero, projections."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compress_models import CONFIGS, TABLE, TEXT, batch_of, model_of
from torch import Tensor

from tauon.compress.training import distilled, divergence, linear_distillation
from tauon.errors import RecipeError
from tauon.models import BERTConfig, GPTConfig, MLPConfig, ModelConfig, materialize
from tauon.optim import AdamWConfig
from tauon.plan import make_plan
from tauon.tasks import Classification, LanguageModelling, MaskedLanguageModelling, Regression, Task
from tauon.testing import tiny_batch
from tauon.train import JobConfig, TrainConfig, TrainJob, build_job, train, train_step, validation_loss
from tauon.types import DataSpec

SMALL = GPTConfig(layers=1, width=16, heads=2).resolve(TEXT)
NUMBERS = DataSpec(input_shape=(24,), outputs=1)
NARROW = MLPConfig(hidden=(8,)).resolve(TABLE)


class Rows:
    """Other batches of eight at every step."""

    def __init__(self, spec: DataSpec, masked: bool = False) -> None:
        self.spec, self.masked = spec, masked

    def batch_at(self, step: int) -> Any:
        return tiny_batch(self.spec, rows=8, seed=step, masked=self.masked)


def job_of(config: ModelConfig, spec: DataSpec, task: Task, *, micro: int = 8, steps: int = 4) -> TrainJob:
    settings = TrainConfig(steps=steps, batch=8, microbatch=micro, device="cpu", precision="fp32", compile=False)
    job = JobConfig(config, AdamWConfig(lr=0.01), settings, task, spec, seed=0)
    return build_job(job, Rows(spec, isinstance(task, MaskedLanguageModelling)), make_plan(job, examples=64))


def gpt_job(**how: Any) -> TrainJob:
    return job_of(SMALL, TEXT, LanguageModelling(), **how)


def plain_formula(z: Tensor, t: Tensor, target: Tensor, g: Tensor, weight: float, T: float) -> Tensor:
    kl = F.kl_div((z / T).log_softmax(1), (t / T).log_softmax(1), reduction="none", log_target=True).sum(1)
    return (((1 - weight) * F.cross_entropy(z, target, reduction="none") + weight * T * T * kl) * g).sum()


@pytest.mark.parametrize("T", [1.0, 2.5])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_loss_and_gradients_equal_those_of_the_formula_by_autograd(T: float, weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauon.compress.training.soft.chunk_rows", lambda *_: 10)  # several chunks, the last one shorter
    g = torch.Generator().manual_seed(0)
    h, w, h_t, w_t = (torch.randn(n, d, generator=g) for n, d in ((37, 8), (50, 8), (37, 12), (50, 12)))
    target, share = torch.randint(50, (37,), generator=g), torch.rand(37, generator=g)
    share[:5] = 0
    ours, plain = [[x.clone().requires_grad_() for x in (h, w)] for _ in range(2)]
    loss = linear_distillation(ours[0], ours[1], (h_t, w_t), target, share, weight=weight, temperature=T)
    loss.backward()
    want = plain_formula(plain[0].double() @ plain[1].double().t(), h_t.double() @ w_t.double().t(), target, share.double(), weight, T)
    want.backward()
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-4)
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)
    assert not ours[0].grad[:5].any()  # tokens of weight zero


def test_bfloat16_is_as_close_as_its_rounding() -> None:
    g = torch.Generator().manual_seed(0)
    h, w, h_t, w_t = (torch.randn(n, 16, generator=g).bfloat16() / 2 for n in (20, 40, 20, 40))
    target, ones = torch.randint(40, (20,), generator=g), torch.ones(20)
    w.requires_grad_()
    loss = linear_distillation(h, w, (h_t, w_t), target, ones, weight=0.5, temperature=2.0)
    loss.backward()
    real = w.detach().float().requires_grad_()
    want = plain_formula(h.float() @ real.t(), h_t.float() @ w_t.float().t(), target, ones, 0.5, 2.0)
    want.backward()
    torch.testing.assert_close(loss, want, rtol=1e-2, atol=0)
    assert (w.grad.float() - real.grad).norm() < 0.02 * real.grad.norm()


@pytest.mark.parametrize("family", ["classification", "multi-label", "regression", "forecasting", "ordinal", "quantile-regression"])
def test_equal_outputs_have_no_divergence_and_others_have_some(family: str) -> None:
    out = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert divergence(family, out, out.clone(), 2.0).abs().max() < 1e-6
    assert (divergence(family, out, out.roll(1, 1), 2.0) > 0).all()


@pytest.mark.parametrize("weight", [0.4, 1.0])
def test_a_student_with_the_teachers_weights_only_has_its_tasks_loss(weight: float) -> None:
    job = gpt_job()
    teacher = materialize(SMALL, seed=0)  # the job's own seed
    batch = job.loader.batch_at(0)
    plain, _ = job.task.loss(job.model, batch)
    mixed, _ = distilled(job, teacher, weight=weight).task.loss(job.model, batch)
    torch.testing.assert_close(mixed, (1 - weight) * plain, rtol=1e-6, atol=1e-6)
    if weight == 1:
        assert mixed.item() == 0.0


def test_weight_zero_is_plain_training_bit_for_bit() -> None:
    plain = train(gpt_job())
    other = train(distilled(gpt_job(), model_of("gpt"), weight=0.0))
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), other.model.parameters(), strict=True))


def test_validation_is_the_tasks_own_loss() -> None:
    plain, job = gpt_job(), distilled(gpt_job(), model_of("gpt"))
    assert validation_loss(job, [batch_of("gpt")]) == validation_loss(plain, [batch_of("gpt")])


@pytest.mark.parametrize("kind", ["gpt", "z-loss", "mlp", "regression", "masked"])
def test_accumulation_equals_the_whole_batch(kind: str) -> None:
    made: dict[str, tuple[Any, DataSpec, Task, Any]] = {
        "gpt": (SMALL, TEXT, LanguageModelling(), model_of("gpt")),
        "z-loss": (SMALL, TEXT, LanguageModelling(z_loss=1e-3), model_of("gpt")),
        "mlp": (NARROW, TABLE, Classification(), model_of("mlp")),
        "regression": (
            MLPConfig(hidden=(8,)).resolve(NUMBERS),
            NUMBERS,
            Regression(),
            materialize(MLPConfig(hidden=(32,)).resolve(NUMBERS), seed=1),
        ),
        "masked": (bert(1), TEXT, MaskedLanguageModelling(), materialize(bert(2), seed=1)),
    }
    config, spec, task, teacher = made[kind]
    whole, parts = (distilled(job_of(config, spec, task, micro=m), teacher, features=features_of(kind)) for m in (8, 2))
    for job in (whole, parts):
        job.model.train()
    a, b = (train_step(job, job.loader.batch_at(0)) for job in (whole, parts))
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def features_of(kind: str) -> dict[str, str]:
    return {"gpt": {"blocks.0": "blocks.1"}, "mlp": {"layers.0": "layers.1"}}.get(kind, {})


def bert(layers: int) -> ModelConfig:
    return BERTConfig(layers=layers, width=16 * layers, heads=2, dropout=0.0).resolve(TEXT)


def test_masked_tokens_equal_the_formula() -> None:
    job, teacher = job_of(bert(1), TEXT, MaskedLanguageModelling()), materialize(bert(2), seed=1).eval()
    batch = job.loader.batch_at(0)
    where = batch.weights > 0
    assert where.any() and not where.all()
    logits = [net.head(net(batch.inputs, batch.segments)[where]) for net in (job.model, teacher)]
    want = plain_formula(*logits, batch.targets[where], batch.weights[where], 0.5, 2.0)
    mixed, _ = distilled(job, teacher).task.loss(job.model, batch)
    torch.testing.assert_close(mixed, want, rtol=1e-5, atol=1e-5)


def test_hidden_states_come_closer_and_the_projection_is_in_no_checkpoint_of_the_model() -> None:
    job = distilled(gpt_job(steps=40), model_of("gpt"), weight=0.0, features={"blocks.0": "blocks.1"})
    names = set(job.model.state_dict())
    losses: list[float] = []
    match: Any = job.extra["distil"]
    match.weight, real = 1.0, match.loss

    def watched(batch: Any) -> Tensor:
        loss: Tensor = real(batch)
        losses.append(loss.item())
        return loss

    match.loss = watched
    train(job)
    assert losses[-1] < 0.8 * losses[0]
    assert set(job.model.state_dict()) == names == set(gpt_job().model.state_dict())


def test_what_cannot_be_compared_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="no module 'blocks.7'"):
        distilled(gpt_job(), model_of("gpt"), features={"blocks.0": "blocks.7"})
    with pytest.raises(RecipeError, match="same tokenizer"):
        other = materialize(GPTConfig(layers=1, width=16, heads=2).resolve(DataSpec(vocab=60, seq_len=16)), seed=0)
        job = distilled(gpt_job(), other)
        job.task.loss(job.model, job.loader.batch_at(0))
    with pytest.raises(RecipeError, match="same targets"):
        other = materialize(MLPConfig(hidden=(8,)).resolve(DataSpec(input_shape=(24,), outputs=3)), seed=0)
        job = distilled(job_of(NARROW, TABLE, Classification()), other)
        job.task.loss(job.model, job.loader.batch_at(0))


def test_the_teacher_stays_as_it_is() -> None:
    teacher = model_of("gpt")
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    train(distilled(gpt_job(), teacher))
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters()) and CONFIGS["gpt"] is not None
