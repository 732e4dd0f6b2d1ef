"""The step: accumulation, EMA, activation checkpointing, precision, skipped gradients, hooks. Against closed forms and torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tauon.errors import RecipeError, TrainingError
from tauon.models import GPTConfig, MLPConfig, materialize
from tauon.optim import AdamWConfig, Constant, SGDConfig
from tauon.plan import Plan, choose_compile, choose_precision, make_plan
from tauon.tasks import Classification, LanguageModelling
from tauon.train import (
    EMA,
    STOP,
    GradientHealth,
    JobConfig,
    TrainConfig,
    TrainJob,
    build_job,
    every,
    largest_divisor,
    plain_gradients,
    seconds_a_step,
    seed_draws,
    step_seed,
    train,
    train_step,
    validation_loss,
)
from tauon.types import Batch, DataSpec, StepInfo

SPEC = DataSpec(vocab=31, seq_len=12)
TABLE = DataSpec(input_shape=(5,), outputs=3, labels=("a", "b", "c"))


class Batches:
    """A source of random batches: a function of the step."""

    def __init__(self, rows: int, spec: DataSpec = SPEC) -> None:
        self.rows, self.spec = rows, spec

    def batch_at(self, step: int) -> Batch:
        g = torch.Generator().manual_seed(step)
        if self.spec.vocab is None:
            return Batch(torch.randn(self.rows, 5, generator=g), torch.randint(0, 3, (self.rows,), generator=g), torch.ones(self.rows))
        ids = torch.randint(0, 31, (self.rows, 13), generator=g)
        weights = (torch.rand(self.rows, 12, generator=g) > 0.4).float()
        weights[0] = 0  # a row of padding alone
        return Batch(ids[:, :-1], ids[:, 1:], weights)


def job(
    model: Any = None, *, rows: int = 8, steps: int = 5, optim: Any = None, task: Any = None, spec: DataSpec = SPEC, **train_settings: Any
) -> TrainJob:
    model = model or GPTConfig(layers=2, width=16, heads=2, vocab=31, seq_len=12)
    config = TrainConfig(**({"steps": steps, "batch": rows, "precision": "fp32", "compile": False} | train_settings))
    loader, task, optim = Batches(rows, spec), task or LanguageModelling(), optim or AdamWConfig(lr=1e-2)
    plan = make_plan(JobConfig(model, optim, config, task, spec, 5), examples=100)
    built = build_job(JobConfig(model, optim, config, task, spec, 5), loader, plan)
    head = getattr(built.model, "head", None)
    if head is not None:
        with torch.no_grad():
            head.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        if built.ema is not None:
            built.ema = EMA(built.model, built.ema.decay)
    return built


def gradients(j: TrainJob) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in j.model.named_parameters() if p.grad is not None}


def weights(j: TrainJob) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in j.model.named_parameters()}


# ------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("microbatch", [1, 2, 3, 4, 8])
def test_accumulation_equals_the_large_batch_though_microbatches_weigh_differently(microbatch: int) -> None:
    one, many = job(rows=8), job(rows=8)
    many.policy = replace(many.policy, microbatch=microbatch)  # 3 does not divide 8: the last one is short
    batch = one.loader.batch_at(0)
    losses = plain_gradients(one, batch), plain_gradients(many, batch)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    for name, g in gradients(one).items():
        torch.testing.assert_close(gradients(many)[name], g, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_the_mean_over_counted_tokens() -> None:
    j = job(rows=8)
    j.policy = replace(j.policy, microbatch=2)
    batch = j.loader.batch_at(0)
    loss = plain_gradients(j, batch)
    logits = j.model.logits(j.model(batch.inputs))  # type: ignore[operator]
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    mean = each[batch.weights.flatten() > 0].mean()
    wanted = torch.autograd.grad(mean, list(j.model.parameters()))
    assert loss.item() == pytest.approx(mean.item(), rel=1e-5)
    for g, w in zip(gradients(j).values(), wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-6)


def test_a_batch_that_weighs_nothing_moves_nothing() -> None:
    j = job(optim=SGDConfig(lr=1.0, momentum=0.0, schedule=Constant(warmup=0)))
    batch = j.loader.batch_at(0)
    batch.weights.zero_()
    before = weights(j)
    assert train_step(j, batch)["loss"] == 0.0
    assert all(torch.equal(p, before[n]) for n, p in weights(j).items())


def test_draws_are_those_of_torchs_manual_seed() -> None:
    for seed in (0, step_seed(5, 3)):
        torch.manual_seed(seed)
        wanted = torch.rand(5)
        torch.rand(3)
        seed_draws(seed, torch.device("cpu"))
        assert torch.equal(torch.rand(5), wanted)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_gives_the_same_gradients_bit_for_bit(dropout: float) -> None:
    model = GPTConfig(layers=3, width=16, heads=2, vocab=31, seq_len=12, dropout=dropout)
    plain, again = job(model), job(model, activation_checkpointing=True)
    for j in (plain, again):
        j.model.train()
        torch.manual_seed(step_seed(5, 0))
        plain_gradients(j, j.loader.batch_at(0))
    for name, g in gradients(plain).items():
        assert torch.equal(gradients(again)[name], g), name
    assert list(weights(plain)) == list(weights(again))  # names do not change


def test_activation_checkpointing_computes_blocks_twice() -> None:
    counts = []
    for on in (False, True):
        j = job(activation_checkpointing=on)
        calls: list[int] = []
        j.model.layers[0].attention.q.register_forward_hook(lambda *_, calls=calls: calls.append(1))  # type: ignore[union-attr, operator, index]
        plain_gradients(j, j.loader.batch_at(0))
        counts.append(len(calls))
    assert counts == [1, 2]


def test_dropout_is_a_function_of_seed_and_step() -> None:
    model = GPTConfig(layers=1, width=16, heads=2, vocab=31, seq_len=12, dropout=0.5)
    one, two = job(model), job(model)
    torch.manual_seed(1)
    a = [train_step(one, one.loader.batch_at(i))["loss"] for i in range(3)]
    torch.manual_seed(2)
    torch.rand(17)
    assert [train_step(two, two.loader.batch_at(i))["loss"] for i in range(3)] == a
    assert len({step_seed(s, i, r) for s in range(3) for i in range(50) for r in range(2)}) == 300


# ------------------------------------------------------------------------------------------------ the average, health


def test_the_average_of_weights_is_its_closed_form() -> None:
    j = job(ema=0.9, steps=30)
    assert j.ema is not None
    shadow = {n: w.double() for n, w in weights(j).items()}
    for t in range(30):
        train_step(j, j.loader.batch_at(t))
        d = min(0.9, (1 + t) / (10 + t))
        shadow = {n: d * s + (1 - d) * weights(j)[n].double() for n, s in shadow.items()}
    for name, s in shadow.items():
        torch.testing.assert_close(j.ema.shadow[name].double(), s, rtol=1e-4, atol=1e-6)


def test_validation_uses_the_average_and_gives_the_weights_back() -> None:
    j = job(ema=0.5)
    assert j.ema is not None
    train_step(j, j.loader.batch_at(0))
    before, batches = weights(j), [j.loader.batch_at(9), j.loader.batch_at(10)]
    averaged = validation_loss(j, batches)
    assert all(torch.equal(p, before[n]) for n, p in weights(j).items()) and j.model.training
    with j.ema.swapped_in():
        ema, j.ema = j.ema, None
        assert validation_loss(j, batches) == averaged
    assert validation_loss(j, batches) != averaged
    j.ema = ema


def test_validation_loss_is_the_mean_over_all_counted_tokens() -> None:
    j = job()
    batches = [j.loader.batch_at(9), j.loader.batch_at(10).rows(0, 3)]
    with torch.no_grad():
        parts = [LanguageModelling().losses(j.model.eval(), b) for b in batches]
    wanted = sum(p[0].sum().item() for p in parts) / sum(p[1].sum().item() for p in parts)
    assert validation_loss(j, batches) == pytest.approx(wanted, rel=1e-5)
    assert math.isnan(validation_loss(j, []))


def test_bad_steps_are_skipped_counted_and_forgiven() -> None:
    health = GradientHealth(None, 3)
    assert health.check(1, 1.0, 1.0) is None
    for loss, norm in ((math.nan, 1.0), (1.0, math.inf)):
        assert "not finite" in str(health.check(2, loss, norm))
    assert health.check(3, 1.0, 1.0) is None and health.bad_in_a_row == 0 and health.skipped == 2
    assert health.check(4, math.nan, 1.0) and health.check(5, math.nan, 1.0)
    with pytest.raises(TrainingError, match="step 6: 3 steps in a row were skipped"):
        health.check(6, math.nan, 1.0)


def test_a_spike_is_told_from_the_running_mean() -> None:
    health, mean = GradientHealth(4.0, 3), 0.0
    norms = [1 + 0.1 * (i % 3) for i in range(40)]
    for i, norm in enumerate(norms):
        assert health.check(i, 1.0, norm) is None
        mean = norm if i == 0 else 0.95 * mean + 0.05 * norm
    assert health.mean == pytest.approx(mean)
    assert health.check(41, 1.0, 3.9 * mean) is None
    assert "over 4 times its running mean" in str(health.check(42, 1.0, 4.5 * health.mean))
    again = GradientHealth(4.0, 3)
    again.load(health.state())
    assert again.state() == health.state()
    early = GradientHealth(4.0, 3)
    assert early.check(1, 1.0, 1.0) is None and early.check(2, 1.0, 1e6) is None  # too soon to tell


def test_a_skipped_step_moves_neither_weights_nor_state_nor_average() -> None:
    j = job(ema=0.9, spike_factor=3.0, steps=60)
    for i in range(25):
        train_step(j, j.loader.batch_at(i))
    assert j.ema is not None
    before, shadow = weights(j), {k: v.clone() for k, v in j.ema.shadow.items()}
    moments = {n: {k: torch.as_tensor(v).clone() for k, v in j.optimizer.state[p].items()} for n, p in j.model.named_parameters()}
    original = j.functions

    def poisoned(job: TrainJob, batch: Batch) -> Tensor:
        loss = original.make(job, batch)
        next(iter(job.model.parameters())).grad.mul_(1e9)  # type: ignore[union-attr]
        return loss

    j.functions = replace(original, make=poisoned)
    metrics = train_step(j, j.loader.batch_at(25))
    assert "running mean" in metrics["skipped"] and j.step == 26
    assert all(torch.equal(p, before[n]) for n, p in weights(j).items())
    assert all(torch.equal(v, shadow[k]) for k, v in j.ema.shadow.items())
    for name, p in j.model.named_parameters():
        assert p.grad is None
        assert all(torch.equal(torch.as_tensor(v), moments[name][k]) for k, v in j.optimizer.state[p].items())
    j.functions = original
    assert "skipped" not in train_step(j, j.loader.batch_at(26))


# ------------------------------------------------------------------------------------------------ the loop


def test_hooks_run_in_order_after_each_step_and_may_stop() -> None:
    j = job(steps=10)
    told: list[tuple[str, int]] = []

    def hook(name: str, stop_at: int | None = None) -> Callable[[TrainJob, StepInfo], str | None]:
        def call(job: TrainJob, info: StepInfo) -> str | None:
            assert (info.step, info.total_steps, info.examples, info.tokens) == (job.step, 10, 8 * job.step, 96 * job.step)
            assert {"loss", "grad_norm", "lr", "seconds"} <= set(info.metrics)
            told.append((name, info.step))
            return STOP if info.step == stop_at else None

        return call

    saved: list[int] = []
    train(j, hooks=[hook("a"), every(3, hook("b", stop_at=6)), hook("c")], save=lambda j: saved.append(j.step), save_every=4)
    assert told == [(n, s) for s in range(1, 7) for n in "abc" if n != "b" or s % 3 == 0]
    assert saved == [4, 6] and j.notes["stopped"]
    train(j, hooks=[hook("never")])  # a job that stopped does not go on
    assert len(told) == 14


@pytest.mark.parametrize(("n", "calls"), [(1, 10), (3, 4), (10, 1), (7, 2), (100, 1)])
def test_every_n_steps_and_at_the_end(n: int, calls: int) -> None:
    seen: list[int] = []
    train(job(steps=10), hooks=[every(n, lambda j, info: seen.append(info.step))])  # type: ignore[list-item, func-returns-value]
    assert len(seen) == calls and seen[-1] == 10


def test_the_learning_rate_follows_the_schedule_in_every_group() -> None:
    from tauon.optim import MuonConfig

    optim = MuonConfig(lr=0.02, adamw_lr=0.005)
    j, rates = job(steps=8, optim=optim), []
    train(j, hooks=[lambda job, info: rates.append([g["lr"] for g in job.optimizer.param_groups])])  # type: ignore[list-item, func-returns-value]
    for i, groups in enumerate(rates):
        f = optim.schedule.factor(i, 8)
        assert groups == pytest.approx([0.02 * f] + [0.005 * f] * (len(groups) - 1))


# ------------------------------------------------------------------------------------------------ the plan


def plan_of(config: TrainConfig, spec: DataSpec = SPEC, model: Any = None, **more: Any) -> Plan:
    model = model or GPTConfig(layers=1, width=16, heads=2, vocab=31, seq_len=12)
    task = LanguageModelling() if spec.vocab else Classification()
    made = JobConfig(model, AdamWConfig(), config, task, spec, 0)
    return make_plan(made, examples=100, measure=partial(seconds_a_step, made, Batches(config.batch, spec), None, None), **more)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"steps": 7}, 7), ({"epochs": 1}, 13), ({"epochs": 2.5}, 32), ({"tokens": 1000}, 11), ({"epochs": 0.001}, 1)],
)
def test_steps_come_from_what_was_asked_for(settings: dict[str, Any], steps: int) -> None:
    plan = plan_of(TrainConfig(batch=8, compile=False, **settings))
    assert plan.steps == steps
    assert next(d for d in plan.derived if d.path == "train.steps").value == steps


def test_ten_validations_and_ten_checkpoints_unless_asked_otherwise() -> None:
    plan = plan_of(TrainConfig(steps=1234, compile=False))
    assert (plan.validate_every, plan.checkpoint_every) == (124, 124)
    assert plan_of(TrainConfig(steps=10**6, compile=False)).checkpoint_every == 1000
    assert plan_of(TrainConfig(steps=3, validate_every=2, checkpoint_every=5, compile=False)).validate_every == 2


def test_a_time_is_measured_once_and_kept() -> None:
    config = TrainConfig(time=0.5, batch=8, compile=False)
    plan = plan_of(config)
    assert plan.steps >= 1 and "measured here" in next(d for d in plan.derived if d.path == "train.steps").source
    again = plan_of(config, recorded=plan.record() | {"steps": 4321})
    assert again.steps == 4321
    assert {d.path: d.source for d in again.derived}["train.steps"] == "recorded by this run"


def test_every_derived_setting_says_where_it_comes_from() -> None:
    plan = plan_of(TrainConfig(steps=5))
    assert {d.path for d in plan.derived} >= {
        "train.device",
        "train.precision",
        "train.compile",
        "train.microbatch",
        "train.steps",
        "optim.lr",
    }
    assert all(d.source for d in plan.derived)


def test_tokens_of_a_table_and_compiling_what_has_no_blocks_are_refused() -> None:
    mlp = MLPConfig().resolve(TABLE)
    with pytest.raises(RecipeError, match="train.tokens"):
        plan_of(TrainConfig(tokens=100), TABLE, mlp)
    with pytest.raises(RecipeError, match="train.compile"):
        plan_of(TrainConfig(steps=3, compile=True), TABLE, mlp)


@pytest.mark.parametrize("n", [1, 2, 12, 96, 97, 1024, 2**31, 2**31 - 1])
def test_the_largest_divisor(n: int) -> None:
    for at_most in (1, 2, 5, 7, n // 2, n, 10**12):
        d = largest_divisor(n, at_most)
        assert n % d == 0 and 1 <= d <= max(1, at_most)
        if n < 2000:
            assert d == max(k for k in range(1, n + 1) if n % k == 0 and k <= max(1, at_most))


# ------------------------------------------------------------------------------------------------ precision, compile


def test_bf16_runs_matrix_products_in_bfloat16_and_keeps_weights_in_fp32() -> None:
    j = job(precision="bf16")
    seen: list[torch.dtype] = []
    j.model.layers[0].mlp.up.register_forward_hook(lambda m, i, out: seen.append(out.dtype))  # type: ignore[union-attr, operator, index]
    train_step(j, j.loader.batch_at(0))
    assert seen == [torch.bfloat16]
    assert all(p.dtype == torch.float32 for p in j.model.parameters())
    assert all(v.dtype == torch.float32 for s in j.optimizer.state.values() for k, v in s.items() if k != "step")
    plain = job()
    assert train_step(plain, plain.loader.batch_at(0))["loss"] == pytest.approx(
        train_step(job(precision="bf16"), plain.loader.batch_at(0))["loss"], rel=0.02
    )


def test_auto_takes_fp32_for_small_models_and_says_why() -> None:
    cpu = torch.device("cpu")
    small = materialize(MLPConfig().resolve(TABLE), seed=0)
    precision, why = choose_precision("auto", cpu, small)
    assert precision.name == "fp32" and "too small" in why
    assert choose_compile("auto", cpu, small, 1e9) == (False, "the model has no repeated blocks")
    large = materialize(GPTConfig(layers=1, width=16, heads=2, vocab=31, seq_len=12), seed=0)
    assert choose_compile("auto", cpu, large)[0] is False
    assert choose_compile(False, cpu, large, lambda: (True, "it pays")) == (False, "asked for")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, inside its compiler
def test_compiled_by_block_is_the_eager_step_and_never_compiles_again_in_the_loop() -> None:
    import torch._dynamo

    model = GPTConfig(layers=3, width=32, heads=2, vocab=31, seq_len=12)
    eager, compiled = job(model, steps=12), job(model, steps=12, compile=True)
    losses: list[list[float]] = [[], []]
    torch._dynamo.reset()
    train_step(compiled, compiled.loader.batch_at(0))
    train_step(eager, eager.loader.batch_at(0))
    compiled.model.eval()
    validation_loss(compiled, [compiled.loader.batch_at(50)])
    compiled.model.train()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for i in range(1, 12):
        losses[0].append(train_step(eager, eager.loader.batch_at(i))["loss"])
        losses[1].append(train_step(compiled, compiled.loader.batch_at(i))["loss"])
    validation_loss(compiled, [compiled.loader.batch_at(51)])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before > 0
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert list(weights(eager)) == list(weights(compiled))
