"""`precision: auto` and `compile: auto` on a CPU: what was measured decides, once for a machine, for all processes, and for a whole run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tauon.config import parse
from tauon.models import (
    CNNConfig,
    ConformerConfig,
    DoraConfig,
    GPTConfig,
    LoraConfig,
    LSTMConfig,
    MLPConfig,
    ModelConfig,
    ViTConfig,
)
from tauon.optim import AdamWConfig
from tauon.plan import Plan, compiling, context, make_plan, measured, precision, training_precision, trial
from tauon.plan.trial import Trial, Work, compiled_seconds, fused_seconds, seconds_a_step
from tauon.privacy.clipped import ClippingConfig
from tauon.privacy.trial import MadeUpRows, clipped_gradients
from tauon.tasks import AudioClassification, Classification, Forecasting, LanguageModelling, MaskedLanguageModelling, Task
from tauon.testing import tiny_batch
from tauon.train import JobConfig, TrainConfig
from tauon.train import seconds_a_step as seconds_of_a_job
from tauon.types import Batch, DataSpec

TEXT = DataSpec(vocab=31, seq_len=12)
GPT = GPTConfig(layers=4, width=16, heads=2).resolve(TEXT)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Batches:
    """The same random batch at every step; counts how often it is read."""

    def __init__(self, spec: DataSpec = TEXT, rows: int = 8, *, masked: bool = False) -> None:
        self.batch, self.reads = tiny_batch(spec, rows=rows, masked=masked), 0

    def batch_at(self, step: int) -> Batch:
        self.reads += 1
        return self.batch


def job(model: ModelConfig = GPT, spec: DataSpec = TEXT, task: Task | None = None, **train: Any) -> JobConfig:
    settings = TrainConfig(**({"steps": 10, "batch": 8, "device": "cpu"} | train))
    return JobConfig(model, AdamWConfig(), settings, task or LanguageModelling(), spec, 0)


def reason(plan: Plan, path: str) -> str:
    return next(d.source for d in plan.derived if d.path == path)


def timed(monkeypatch: pytest.MonkeyPatch, found: dict[str, float] | None, *, small: float = 0.0) -> list[tuple[str, ...]]:
    """Let a step take these seconds; return the precisions that were asked for. `small`: operations of a step that is not measured."""
    asked: list[tuple[str, ...]] = []

    def measure(trial: Trial, precisions: tuple[str, ...]) -> dict[str, float] | None:
        asked.append(tuple(precisions))
        return None if found is None else {p: found[p] for p in precisions}

    monkeypatch.setattr(context, "seconds_a_step", measure)
    monkeypatch.setattr(precision, "TOO_SMALL", small)
    return asked


# ---------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("found", "name", "figures"),
    [
        ({"fp32": 0.98, "bf16": 0.412}, "bf16", "bf16 412 ms, fp32 980 ms"),
        ({"fp32": 0.98, "bf16": 2.5}, "fp32", "fp32 980 ms, bf16 2,500 ms"),
        ({"fp32": 0.0041, "bf16": 0.004}, "fp32", "fp32 4.1 ms, bf16 4 ms"),  # too little to round for
    ],
)
def test_the_faster_precision_is_chosen_and_both_figures_are_stated(
    found: dict[str, float], name: str, figures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, found)
    plan = make_plan(job(), examples=100, work=Work(Batches()))
    assert plan.precision == name and reason(plan, "train.precision").startswith(figures)
    assert training_precision(job(), Work(Batches())).name == name


def test_no_flag_of_the_processor_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> bool:
        raise AssertionError("asked for a flag")

    for flag in ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, flag, refuse, raising=False)
    monkeypatch.setattr(precision, "TOO_SMALL", 0.0)
    assert make_plan(job(), examples=100, work=Work(Batches())).precision in ("fp32", "bf16")


def test_a_small_model_is_fp32_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, batches = timed(monkeypatch, {"fp32": 1.0, "bf16": 0.1}, small=1e9), Batches()
    plan = make_plan(job(), examples=100, work=Work(batches))
    assert plan.precision == "fp32" and "too small" in reason(plan, "train.precision") and not asked and not batches.reads


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_precision_that_was_asked_for_is_taken_unmeasured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, {"fp32": 1.0, "bf16": 0.1})
    assert make_plan(job(precision=name), examples=100, work=Work(Batches())).precision == name and not asked


@pytest.mark.parametrize("here", [{"fp32": 1.0, "bf16": 9.0}, {"fp32": 9.0, "bf16": 1.0}])
def test_a_resumed_run_keeps_its_choices_whatever_this_machine_measures(here: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {"fp32": 1.0, "bf16": 0.5})
    first = make_plan(job(), examples=100, work=Work(Batches()))
    asked, batches = timed(monkeypatch, here), Batches()
    again = make_plan(job(), examples=100, work=Work(batches), recorded=first.record())
    assert (again.precision, again.compile) == ("bf16", False) and not asked and not batches.reads
    assert reason(again, "train.precision") == "recorded by this run"
    assert training_precision(job(), Work(batches), recorded=first.record()).name == "bf16"


@pytest.mark.parametrize("batches", [None, Batches()], ids=["no data", "a trial that fails"])
def test_what_cannot_be_measured_is_fp32(batches: Batches | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "TOO_SMALL", 0.0)
    monkeypatch.setattr(trial.Trial, "model", lambda *a, **k: 1 / 0)
    plan = make_plan(job(), examples=100, work=None if batches is None else Work(batches))
    assert plan.precision == "fp32" and "not measured" in reason(plan, "train.precision")


def test_all_processes_take_what_rank_0_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {"fp32": 1.0, "bf16": 9.0})  # as this process would measure
    ctx = context.PlanContext(job(), 100, context.Mesh(context.Layout()), None, {}, None, lambda _: None, Work(Batches()))
    monkeypatch.setattr(type(ctx.mesh.world), "rank0_broadcast", lambda self, work: {"fp32": 9.0, "bf16": 1.0})
    ctx.decided["train.device"] = torch.device("cpu")
    assert precision.precision(ctx).value == "bf16"


# ---------------------------------------------------------------------------------------------- the trial

AUDIO = DataSpec(input_shape=(1600,), outputs=3, sample_rate=8000, labels=("a", "b", "c"))
TABLE = DataSpec(input_shape=(5,), outputs=3, labels=("a", "b", "c"))
PICTURE = DataSpec(input_shape=(3, 32, 32), outputs=3, labels=("a", "b", "c"))
SERIES = DataSpec(input_shape=(24, 2), outputs=2, horizon=4, labels=("a", "b"))
KINDS: dict[str, tuple[ModelConfig, DataSpec, Task]] = {
    "gpt": (GPT, TEXT, LanguageModelling()),
    "lora": (GPT.model_copy(update={"adapt": LoraConfig(rank=2)}), TEXT, LanguageModelling()),
    "lora in four bits": (GPTConfig(layers=3, width=64, heads=2, adapt=LoraConfig(rank=2, quantize="nf4")).resolve(TEXT), TEXT, LanguageModelling()),
    "dora": (GPT.model_copy(update={"adapt": DoraConfig(rank=2)}), TEXT, LanguageModelling()),
    "mlp": (MLPConfig(hidden=(8,)).resolve(TABLE), TABLE, Classification()),
    "cnn": (CNNConfig().resolve(PICTURE), PICTURE, Classification()),
    "resnet": (parse(ModelConfig, {"kind": "resnet20"}).resolve(PICTURE), PICTURE, Classification()),
    "vit": (ViTConfig(layers=3, width=16, heads=2).resolve(PICTURE), PICTURE, Classification()),
    "conformer": (ConformerConfig(layers=3, width=16, heads=2).resolve(AUDIO), AUDIO, AudioClassification()),
    "lstm": (LSTMConfig(layers=3, width=8).resolve(SERIES), SERIES, Forecasting()),
}  # fmt: skip


def trial_of(config: JobConfig, batches: Any, rows: int = 8) -> Trial:
    model = config.model.build_on_meta()
    return Trial(config, Work(batches), {n: p.requires_grad for n, p in model.named_parameters(remove_duplicate=False)}, rows, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_can_be_tried(kind: str) -> None:
    model, spec, task = KINDS[kind]
    tried = trial_of(job(model, spec, task), Batches(spec))
    state = torch.get_rng_state()
    found = seconds_a_step(tried, ("fp32", "bf16"))
    if kind == "lstm" and found is None and "avx512" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no bf16 LSTM")
    assert found is not None and set(found) == {"fp32", "bf16"} and all(s > 0 for s in found.values())
    assert fused_seconds(tried, "bf16") >= 0
    assert torch.equal(torch.get_rng_state(), state)  # what training draws does not depend on it


@pytest.mark.parametrize("kind", ["gpt", "lora", "cnn", "mlp"])
def test_a_private_job_is_tried_with_clipped_gradients(kind: str) -> None:
    model, spec, task = KINDS[kind]
    tried = trial_of(job(model, spec, task), Batches(spec))
    clipped = replace(
        tried, work=Work(Batches(spec), clipped_gradients(parse(ClippingConfig, {"kind": "flat"}), 2), name="clipped", unit=2)
    )
    found = seconds_a_step(clipped, ("fp32", "bf16"))
    assert found is not None and set(found) == {"fp32", "bf16"} and found != seconds_a_step(tried, ("fp32", "bf16"))


def test_one_disturbed_call_does_not_hide_what_compiling_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def clocked(run: Any, rows: int) -> float:
        calls.append(rows)
        return 5.0 if len(calls) == 1 else 0.1 if len(calls) % 2 else 0.2  # one layer, two layers; something else disturbed the first call

    monkeypatch.setattr(trial, "_clocked", clocked)
    assert fused_seconds(trial_of(job(), Batches()), "fp32") > 0 and len(calls) == 6


class Held:
    """Private rows of which only shapes may be looked at."""

    def __init__(self, spec: DataSpec, batch: Batch) -> None:
        self.spec, self.facts, self.held = spec, {}, batch  # type: ignore[var-annotated]

    def __len__(self) -> int:
        return len(self.held)

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        rows = torch.from_numpy(index)
        lengths = None if self.held.lengths is None else self.held.lengths[rows]
        return Batch(self.held.inputs[rows], self.held.targets[rows], self.held.weights[rows], lengths=lengths)


@pytest.mark.parametrize("kind", ["gpt", "lora", "cnn", "mlp", "conformer"])
def test_a_private_job_is_tried_on_rows_that_do_not_depend_on_the_data(kind: str) -> None:
    model, spec, task = KINDS[kind]
    tried = []
    for seed in (1, 2):
        found = MadeUpRows(Held(spec, tiny_batch(spec, rows=3, seed=seed)), rows=6).batch_at(0)
        assert len(found) == 6
        tried.append(found)
    assert all(torch.equal(a, b) for a, b in zip(tried[0].tensors(), tried[1].tensors(), strict=True))
    batches = Batches(spec)
    batches.batch = tried[0]
    found_seconds = seconds_a_step(trial_of(job(model, spec, task), batches), ("fp32",))
    assert found_seconds is not None  # they are rows that the model and its loss take


def test_masked_text_and_frozen_layers_can_be_tried() -> None:
    model = parse(ModelConfig, {"kind": "bert", "layers": 3, "width": 16, "heads": 2}).resolve(TEXT)
    assert seconds_a_step(trial_of(job(model, task=MaskedLanguageModelling()), Batches(masked=True)), ("fp32",))
    plan_context = context.PlanContext(
        job(freeze=("blocks.3.*", "blocks.0.*")), 100, context.Mesh(context.Layout()), None, {}, None, lambda _: None, Work(Batches())
    )
    assert plan_context.seconds_a_step("fp32", "bf16")


def test_a_layer_counts_as_often_as_the_model_has_it_and_the_head_once() -> None:
    tried = trial_of(job(), Batches())
    assert tried.depths == (1, 2) and tried.whole([5.0, 7.0]) == 5.0 + 3 * 2.0
    assert tried.whole([5.0, 4.9]) == 5.0  # less for more is chance
    two = trial_of(job(GPT.model_copy(update={"layers": 2})), Batches())
    assert two.depths == (2,) and two.whole([5.0]) == 5.0


def test_a_pass_has_the_rows_of_training_where_time_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    now = [0.0]
    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])

    def model(self: Trial, precision: str, layers: int, *, compiled: bool = False) -> trial.Pass:
        def run(rows: int) -> None:
            seen.append(rows)
            now[0] += rows * (0.001 if precision == "fp32" else 0.0005) * layers

        return run

    monkeypatch.setattr(Trial, "model", model)
    found = seconds_a_step(trial_of(job(batch=40), Batches(rows=40), rows=40), ("fp32", "bf16"))
    assert found == pytest.approx({"fp32": 40 * 0.004, "bf16": 40 * 0.002})  # four layers, though one and two were tried
    assert max(seen) == 40
    seen.clear()
    spec = DataSpec(vocab=31, seq_len=256)
    long = job(GPT.model_copy(update={"seq_len": 256}), spec, batch=4096)
    found = seconds_a_step(trial_of(long, Batches(spec, 4096), rows=4096), ("fp32", "bf16"))
    assert found == pytest.approx({"fp32": 4096 * 0.004, "bf16": 4096 * 0.002}) and 2 <= max(seen) < 200


def test_what_was_tried_is_not_tried_again_for_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "TOO_SMALL", 0.0)
    first, second = Batches(), Batches()
    one = make_plan(job(), examples=100, work=Work(first))
    monkeypatch.setattr(measured, "_here", {})  # another process
    other = make_plan(job(), examples=100, work=Work(second))
    assert first.reads == 1 and second.reads == 0 and one.record() == other.record()
    assert reason(one, "train.precision") == reason(other, "train.precision")
    for changed in (
        job(GPT.model_copy(update={"width": 32})),
        job(batch=4),
        job(microbatch=2),
        job(activation_checkpointing=True),
        job(freeze=("blocks.0.*",)),
    ):
        make_plan(changed, examples=100, work=Work(second))
    assert second.reads == 5


# ---------------------------------------------------------------------------------------------- compile


def figures(monkeypatch: pytest.MonkeyPatch, *, fused: float, saved: float, cost: float) -> list[str]:
    """Let these be measured; return what was."""
    done: list[str] = []

    def fused_(trial: Trial, precision: str) -> float:
        done.append("fused")
        return fused

    def compiled(*_: Any) -> dict[str, float]:
        done.append("compiled")
        return {"saved": saved, "cost": cost}

    monkeypatch.setattr(context, "fused_seconds", fused_)
    monkeypatch.setattr(context, "compiled_seconds", compiled)
    monkeypatch.setattr(compiling, "longest_step", lambda ctx: 1e3)
    monkeypatch.setattr(compiling, "_cannot_compile", lambda device: None)
    return done


@pytest.mark.parametrize(
    ("steps", "fused", "saved", "cost", "chosen", "done", "says"),
    [
        (10, 0.5, 0.5, 5, False, [], "longer than it could save"),
        (1000, 0.01, 0.5, 5, False, ["fused"], "would save about 8 s and cost 30 s"),
        (1000, 0.2, 0.1, 20, True, ["fused", "compiled"], "saves about 100 s and costs 20 s, measured here"),
        (1000, 0.2, 0.1, 200, False, ["fused", "compiled"], "saves about 100 s and costs 200 s, measured here"),
        (1000, 0.2, 0.0, 0.1, False, ["fused", "compiled"], "saves about 0 s"),
    ],
)
def test_compiling_pays_by_what_it_saves_in_the_run(
    steps: int, fused: float, saved: float, cost: float, chosen: bool, done: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, {"fp32": 1.0, "bf16": 2.0})
    measured_ = figures(monkeypatch, fused=fused, saved=saved, cost=cost)
    plan = make_plan(job(steps=steps), examples=100, work=Work(Batches()))
    assert plan.compile is chosen and measured_ == done and says in reason(plan, "train.compile")


def test_steps_epochs_tokens_and_time_of_one_length_compile_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {"fp32": 1.0, "bf16": 2.0})
    figures(monkeypatch, fused=0.2, saved=0.1, cost=20)
    lengths: list[dict[str, Any]] = [{"steps": 1000}, {"epochs": 80}, {"tokens": 96_000}, {"time": 1000.01 / 0.85}]  # 15% is for validation
    for length in lengths:
        plan = make_plan(job(**{"steps": None} | length), examples=100, work=Work(Batches()), measure=lambda plan, seconds: 1.0)
        assert plan.steps == 1000 and plan.compile and "saves about 100 s" in reason(plan, "train.compile")


def test_a_kind_of_model_that_never_gains_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {"fp32": 1.0, "bf16": 2.0})
    done = figures(monkeypatch, fused=0.5, saved=0.5, cost=1)
    model, spec, task = KINDS["resnet"]
    plan = make_plan(job(model, spec, task, steps=1000), examples=100, work=Work(Batches(spec)))
    assert not plan.compile and done == [] and "does not gain" in reason(plan, "train.compile")


def test_a_short_run_of_a_small_model_measures_nothing() -> None:
    batches = Batches()
    plan = make_plan(job(steps=100), examples=100, work=Work(batches))
    assert not plan.compile and not batches.reads


def test_a_compiler_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {"fp32": 1.0, "bf16": 2.0})
    figures(monkeypatch, fused=0.2, saved=0.1, cost=20)
    monkeypatch.setattr(context, "compiled_seconds", compiled_seconds)
    monkeypatch.setattr(nn.Module, "compile", lambda *a, **k: 1 / 0)
    plan = make_plan(job(steps=1000), examples=100, work=Work(Batches()))
    assert not plan.compile and "could not be compiled" in reason(plan, "train.compile")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, inside its compiler
def test_a_block_is_compiled_to_measure_what_it_saves() -> None:
    notes: list[str] = []
    found = compiled_seconds(trial_of(job(), Batches()), "fp32", 8, notes.append)
    assert found is not None and found["cost"] > 0 and found["saved"] >= 0 and len(notes) == 1
    assert compiled_seconds(trial_of(job(), Batches()), "fp32", 8, notes.append) == found and len(notes) == 1


def test_a_plan_for_a_time_still_measures_real_steps() -> None:
    config = job(steps=None, time=0.3)
    batches = Batches()
    plan = make_plan(config, examples=100, work=Work(batches), measure=lambda p, s: seconds_of_a_job(config, batches, None, None, p, s))
    assert plan.steps >= 1 and "measured here" in reason(plan, "train.steps")
