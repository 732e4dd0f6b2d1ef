"""Quantisation-aware training: what it computes is what the compressed model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compress_models import CONFIGS, TEXT, batch_of, model_of, outputs, task_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training_distil import SMALL, gpt_job
from torch import nn

from tauon.compress import Int4Linear, Int4WeightOnly, Int8, Int8WeightOnly, compress_model
from tauon.compress.training import FakeQuantised, fake_quantise, quantisation_aware
from tauon.errors import RecipeError
from tauon.models import materialize
from tauon.tasks import LanguageModelling
from tauon.train import train, train_step, validation_loss

STEPS: dict[str, Any] = {
    "int4": Int4WeightOnly(group=32), "int4 by 7": Int4WeightOnly(group=7), "int4 alone": Int4WeightOnly(embeddings=False, skip=("head",)),
    "int8": Int8WeightOnly(), "int8 dynamic": Int8(),
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["mlp", "gpt", "gpt2"])
def test_rounded_weights_equal_those_of_the_compressed_model(kind: str, step: str) -> None:
    model = model_of(kind)
    small = compress_model(model, task_of(kind), None, [STEPS[step]], config=CONFIGS[kind]).model
    switch = fake_quantise(model, STEPS[step], hidden_states=kind != "mlp")
    assert switch.layers
    switch.on = True
    for name in switch.layers:
        layer: Any = small.get_submodule(name)
        mine: Any = model.get_submodule(name)
        assert torch.equal(mine.weight, layer.float_weight()), name
    batch = batch_of(kind)
    if STEPS[step].kind_ == "int8":  # integers there, floats here
        torch.testing.assert_close(outputs(kind, model, batch), outputs(kind, small, batch), rtol=2e-2, atol=2e-2)
    else:
        assert torch.equal(outputs(kind, model, batch), outputs(kind, small, batch))


@given(st.integers(1, 5), st.integers(1, 70), st.integers(2, 40), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_one_layer_of_any_shape(n: int, k: int, group: int, seed: int) -> None:
    layer = nn.Linear(k, n)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed % 7 - 3))
    want = Int4Linear.quantize(layer, group)
    model = nn.Sequential(layer)
    fake_quantise(model, Int4WeightOnly(group=group)).on = True
    x = torch.randn(3, k)
    assert torch.equal(model(x), want(x))


def test_the_gradient_passes_straight_through() -> None:
    layer = nn.Linear(16, 4)
    model = nn.Sequential(layer)
    switch = fake_quantise(model, Int4WeightOnly(group=8))
    switch.on = True
    x, up = torch.randn(5, 16), torch.randn(5, 4)
    (model(x) * up).sum().backward()
    p = model[0]._parameters["weight"]
    assert p is not None
    torch.testing.assert_close(p.grad, up.t() @ x)


def test_names_parameters_and_checkpoints_are_those_of_the_float_model() -> None:
    plain, model = model_of("gpt"), model_of("gpt")
    fake_quantise(model, Int4WeightOnly()).on = True
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.state_dict().items())


def test_before_the_start_training_is_plain_and_afterwards_validation_is_rounded() -> None:
    plain, job = gpt_job(steps=6), quantisation_aware(gpt_job(steps=6), Int4WeightOnly(group=8), start=0.5)
    for j in (plain, job):
        j.model.train()
    batch = batch_of("gpt")
    for step in range(6):
        same = all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), job.model.parameters(), strict=True))
        assert same == (step <= 3), step
        rounded = compress_model(job.model, LanguageModelling(), None, [], config=None).model
        own = float(LanguageModelling().losses(rounded, batch)[0].detach().sum() / batch.weights.sum())
        assert (validation_loss(job, [batch]) == pytest.approx(own, rel=1e-6)) == (step <= 3), step
        for j in (plain, job):
            train_step(j, j.loader.batch_at(step))


def test_it_costs_less_than_rounding_afterwards() -> None:
    step = Int4WeightOnly(group=512)
    found = {}
    for name in ("plain", "aware"):
        job = gpt_job(steps=150)
        job.loader = _Same(job.loader.batch_at(0))  # memorised: every bit of the weights is used
        job = quantisation_aware(job, step, start=0.3) if name == "aware" else job
        train(job)
        weights = {k: v.detach().clone() for k, v in job.model.state_dict().items()}
        small = compress_model(materialize(SMALL, seed=0, weights=weights), LanguageModelling(), None, [step]).model
        batch = job.loader.batch_at(0)
        found[name] = float(LanguageModelling().losses(small, batch)[0].detach().sum() / batch.weights.sum())
    assert found["aware"] < 0.8 * found["plain"], found


class _Same:
    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def batch_at(self, step: int) -> Any:
        return self.batch


def test_what_cannot_be_rounded_in_training_is_refused() -> None:
    with pytest.raises(RecipeError, match="batch norms are folded"):
        fake_quantise(model_of("resnet"), Int8WeightOnly())
    with pytest.raises(RecipeError, match="calibration"):
        fake_quantise(model_of("mlp"), Int4WeightOnly(method="gptq"))
    with pytest.raises(RecipeError, match="rounds no layer"):
        fake_quantise(model_of("mlp"), Int4WeightOnly(only=("nothing*",)))
    assert isinstance(fake_quantise(model_of("resnet"), Int4WeightOnly()), FakeQuantised) and TEXT.vocab
