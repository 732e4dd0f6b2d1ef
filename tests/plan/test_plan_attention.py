"""The kernel of attention on a CPU: measured at the job's own shapes, recorded by the run, kept on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tauon.errors import RecipeError
from tauon.models import BERTConfig, GPTConfig, MLPConfig, ModelConfig, PatchTSTConfig, ViTConfig
from tauon.models.attention import can_choose
from tauon.optim import AdamWConfig
from tauon.plan import Plan, attention, context, make_plan
from tauon.plan.context import PlanContext
from tauon.plan.trial import Trial, Work, attention_seconds
from tauon.tasks import Classification, Forecasting, LanguageModelling, Task
from tauon.testing import tiny_batch
from tauon.train import JobConfig, TrainConfig, build_job, train_step
from tauon.types import Batch, DataSpec

TEXT = DataSpec(vocab=31, seq_len=12)
GPT = GPTConfig(layers=3, width=16, heads=2).resolve(TEXT)
FASTER = {"fused": 0.029, "products": 0.014, "bytes": 1e3}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(attention, "TOO_SMALL", 0.0)


class Batches:
    def __init__(self, spec: DataSpec = TEXT) -> None:
        self.batch = tiny_batch(spec, rows=8)

    def batch_at(self, step: int) -> Batch:
        return self.batch


def job(model: ModelConfig = GPT, spec: DataSpec = TEXT, task: Task | None = None, **train: Any) -> JobConfig:
    settings = TrainConfig(**({"steps": 10, "batch": 8, "device": "cpu", "precision": "fp32", "compile": False} | train))
    return JobConfig(model, AdamWConfig(), settings, task or LanguageModelling(), spec, 0)


def measured(monkeypatch: pytest.MonkeyPatch, found: dict[str, float] | None) -> list[str]:
    asked: list[str] = []

    def measure(trial: Trial, precision: str) -> dict[str, float] | None:
        asked.append(precision)
        return None if found is None else dict(found)

    monkeypatch.setattr(context, "attention_seconds", measure)
    return asked


def reason(plan: Plan) -> str:
    return next((d.source for d in plan.derived if d.path == "train.attention"), "")


@pytest.mark.parametrize(
    ("found", "kernel", "said"),
    [
        (FASTER, "products", "products 14 ms, fused 29 ms for attention in one layer, measured here"),
        ({"fused": 0.014, "products": 0.029, "bytes": 1e3}, "fused", "fused 14 ms, products 29 ms"),
        ({"fused": 0.0100, "products": 0.0095, "bytes": 1e3}, "fused", "fused 10 ms"),  # too little
        (FASTER | {"bytes": 1e15}, "fused", "GiB would be kept for the backward pass"),
        (None, "fused", ""),
    ],
)
def test_the_faster_kernel_is_chosen_where_memory_allows(
    found: dict[str, float] | None, kernel: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, found)
    plan = make_plan(job(), examples=100, work=Work(Batches()))
    assert plan.attention == plan.record()["attention"] == kernel and said in reason(plan)
    model = build_job(job(), Batches(), plan).model
    assert {m.kernel for m in model.modules() if can_choose(m)} == {kernel}


def test_a_run_keeps_its_kernel_and_one_from_before_the_choice_keeps_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, FASTER)
    record = make_plan(job(), examples=100, work=Work(Batches())).record()
    measured(monkeypatch, {"fused": 0.001, "products": 1.0, "bytes": 1.0})
    assert make_plan(job(), examples=100, work=Work(Batches()), recorded=record).attention == "products"
    del record["attention"]
    assert make_plan(job(), examples=100, work=Work(Batches()), recorded=record).attention == "fused"
    assert len(asked) == 1


def test_nothing_is_measured_where_nothing_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, FASTER)
    table = DataSpec(input_shape=(3,), outputs=2, labels=("a", "b"))
    plan = make_plan(job(MLPConfig().resolve(table), table, Classification()), examples=100, work=Work(Batches(table)))
    assert plan.attention == "fused" and reason(plan) == "" and not asked
    monkeypatch.setattr(attention, "TOO_SMALL", 1e18)
    assert make_plan(job(), examples=100, work=Work(Batches())).attention == "fused" and not asked


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["gpt", "bert", "vit"])
def test_it_is_measured_at_the_heads_length_and_mask_of_the_model(kind: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled = DataSpec(vocab=31, seq_len=12, outputs=2, labels=("a", "b"))
    pictures = DataSpec(input_shape=(3, 8, 8), outputs=2, labels=("a", "b"))
    config, spec, length = {
        "gpt": (job(), TEXT, 12),
        "bert": (job(BERTConfig(layers=2, width=16, heads=2).resolve(labelled), labelled, Classification()), labelled, 12),
        "vit": (job(ViTConfig(layers=2, width=16, heads=2, patch=2).resolve(pictures), pictures, Classification()), pictures, 17),
    }[kind]
    seen: list[dict[str, Any]] = []

    def fastest(name: str, choices: dict[str, Any], key: dict[str, Any]) -> tuple[str, dict[str, float]]:
        for run in choices.values():
            run()  # each kernel works at these inputs
        seen.append(key)
        return "fused", dict.fromkeys(choices, 1.0)

    monkeypatch.setattr("tauon.plan.trial.fastest", fastest)
    trains = {n: True for n, _ in config.model.build_on_meta().named_parameters()}
    found = attention_seconds(Trial(config, Work(Batches(spec)), trains, 8, 8), precision)
    assert found is not None and found["bytes"] == 2 * length**2 * (2 if precision == "bf16" else 4)
    assert seen[0]["shape"][1:] == [2, length, 8] and (seen[0]["mask"] == "causal") == (kind == "gpt")


def test_a_kernel_that_is_asked_for_is_taken_or_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, FASTER)
    for kernel in ("fused", "products"):
        plan = make_plan(job(attention=kernel), examples=100, work=Work(Batches()))
        assert (plan.attention, reason(plan)) == (kernel, "asked for") and not asked
    long = DataSpec(vocab=31, seq_len=1025)
    table = DataSpec(input_shape=(3,), outputs=2, labels=("a", "b"))
    for config, said in (
        (job(GPT.model_copy(update={"seq_len": 1025}), long, attention="products"), "data.seq_len is 1,025, and it takes at most 1,024"),
        (job(MLPConfig().resolve(table), table, Classification(), attention="products"), "this model has no attention"),
    ):
        with pytest.raises(RecipeError, match=said):
            make_plan(config, examples=100)


def test_a_family_that_takes_no_kernel_is_left_alone() -> None:
    spec = DataSpec(input_shape=(24, 1), outputs=6, horizon=6, labels=("x",))
    config = job(PatchTSTConfig(width=16, heads=2, layers=1).resolve(spec), spec, Forecasting())
    assert attention.attention(PlanContext(config, 100, *_alone())) is None


def _alone() -> tuple[Any, ...]:
    from tauon.distributed import Layout, Mesh

    return Mesh(Layout()), None, {}, None, lambda _: None


def test_training_with_products_is_training_with_the_fused_kernel_to_rounding() -> None:
    found = []
    for kernel in ("fused", "products"):
        plan = make_plan(job(), examples=100)
        plan.attention = kernel
        one = build_job(job(), Batches(), plan)
        for _ in range(5):
            train_step(one, one.loader.batch_at(one.step))
        found.append({n: p.detach().clone() for n, p in one.model.named_parameters()})
    for name, p in found[0].items():
        torch.testing.assert_close(p, found[1][name], rtol=1e-3, atol=1e-4, msg=name)
