"""Gradients of single examples and factors of layers, against autograd one example after the other; projections; the model stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from influence_samples import assert_same_state, blobs, one_by_one, perceptron, state_of
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.explain.influence.factors import LayerFactors
from tauon.explain.influence.gradients import ExampleGradients, loss_value, margin_value, untouched, weights_hash
from tauon.explain.influence.projection import Projection
from tauon.models import materialize
from tauon.models.families.cnn import CNNConfig
from tauon.models.families.gpt import GPTConfig
from tauon.models.families.resnet import ResNet20Config
from tauon.privacy.clipped import Dense, Outer, Rows
from tauon.tasks import Task
from tauon.tasks.arrays import Classification
from tauon.tasks.language import LanguageModelling
from tauon.testing import tiny_batch
from tauon.types import Batch, DataSpec

IMAGES = DataSpec(input_shape=(3, 8, 8), outputs=4, labels=("a", "b", "c", "d"))
TOKENS = DataSpec(vocab=17, seq_len=6)


def randomised(model: nn.Module) -> nn.Module:
    """Weights, also those that start at zero, and running statistics that are not 0 and 1."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
        for name, b in model.named_buffers():
            if b.is_floating_point():
                b.copy_(torch.rand(b.shape, generator=g) + (0.5 if "var" in name else 0))
    return model


def cases() -> dict[str, tuple[nn.Module, Task, Batch]]:
    image = tiny_batch(IMAGES, rows=3)
    data = blobs(5)
    return {
        "perceptron": (perceptron((6, 5, 3)), Classification(label_smoothing=0.1), data.all()),
        "resnet": (randomised(materialize(ResNet20Config(width=4).resolve(IMAGES), seed=0)), Classification(), image),
        "cnn": (randomised(materialize(CNNConfig(channels=(8, 8)).resolve(IMAGES), seed=0)), Classification(), image),
        "gpt": (
            randomised(materialize(GPTConfig(layers=1, width=8, heads=2, tied=True).resolve(TOKENS), seed=0)), LanguageModelling(), tiny_batch(TOKENS, rows=3),
        ),
    }  # fmt: skip


NAMES = ["perceptron", "resnet", "cnn", "gpt"]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_each_example_equal_autograd_and_the_model_stays_as_it_was(name: str) -> None:
    model, task, batch = cases()[name]
    model.train()
    value = loss_value(task)
    expected = one_by_one(model, value, batch)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before = state_of(model)
    with ExampleGradients(model).of(value, batch) as terms:
        found = {k: sum(t.dense() for t in v) for k, v in terms.items()}
    assert_same_state(before, state_of(model))
    assert set(found) == set(expected)
    for k, each in found.items():
        assert isinstance(each, Tensor)
        torch.testing.assert_close(each.view_as(expected[k]), expected[k], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_factors_multiply_to_the_gradients(name: str) -> None:
    model, task, batch = cases()[name]
    value = loss_value(task)
    expected = one_by_one(model, value, batch)
    before = state_of(model)
    pairs = LayerFactors(model).of(value, batch)
    assert_same_state(before, state_of(model))
    assert pairs
    for layer, calls in pairs.items():
        total = sum(torch.bmm(g.mT, a) for a, g in calls)
        assert isinstance(total, Tensor)
        weight = expected[f"{layer}.weight"].flatten(2)
        torch.testing.assert_close(total[..., : weight.shape[2]], weight, rtol=1e-4, atol=1e-5)
        if f"{layer}.bias" in expected:
            torch.testing.assert_close(total[..., -1], expected[f"{layer}.bias"], rtol=1e-4, atol=1e-5)


class Layers(nn.Module):
    """Convolution with stride, dilation and reflected padding, twice the same linear layer, batch norm; activations as modules or functions."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, stride=2, dilation=2, padding=2, padding_mode="reflect")
        self.norm = nn.BatchNorm1d(4)
        self.conv2 = nn.Conv1d(4, 4, 3, padding="same", bias=False)
        self.linear = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        self.act = nn.ReLU(inplace=True)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        act: Any = F.relu if self.functional else self.act
        h = self.conv2(act(self.norm(self.conv(x)))).mean(2)
        out: Tensor = self.head(act(self.linear(act(self.linear(h)))))
        return out


def test_a_twin_with_functional_activations_gives_the_same() -> None:
    g = torch.Generator().manual_seed(0)
    batch = Batch(torch.randn(4, 2, 11, generator=g), torch.tensor([0, 1, 2, 1]), torch.tensor([1.0, 2.0, 0.0, 1.0]))
    torch.manual_seed(0)
    first, twin = Layers(False), Layers(True)
    twin.load_state_dict(randomised(first).state_dict())
    value = loss_value(Classification())
    expected = one_by_one(twin, value, batch)
    factors = [LayerFactors(m).of(value, batch) for m in (first, twin)]
    for model in (first, twin):
        with ExampleGradients(model).of(value, batch) as terms:
            for name, found in terms.items():
                total = sum(t.dense() for t in found)
                assert isinstance(total, Tensor)
                torch.testing.assert_close(total.view_as(expected[name]), expected[name], rtol=1e-4, atol=1e-5)
                assert torch.equal(total[2], torch.zeros_like(total[2]))  # of weight 0
    for name, calls in factors[0].items():
        for (a, g_), (a2, g2) in zip(calls, factors[1][name], strict=True):
            torch.testing.assert_close(torch.bmm(g_.mT, a), torch.bmm(g2.mT, a2))
    assert len(factors[0]["linear"]) == 2
    conv = torch.bmm(factors[0]["conv"][0][1].mT, factors[0]["conv"][0][0])
    torch.testing.assert_close(conv[..., :-1], expected["conv.weight"].flatten(2), rtol=1e-4, atol=1e-5)


def test_batch_norms_alone() -> None:
    model, task, batch = cases()["resnet"]
    value = loss_value(task)
    expected = one_by_one(model, value, batch)
    with ExampleGradients(model, ["*bn1*"]).of(value, batch) as terms:
        assert set(terms) == {n for n in expected if "bn1" in n}
        for name, (term,) in terms.items():
            torch.testing.assert_close(term.dense(), expected[name], rtol=1e-4, atol=1e-5)


def test_the_margin_is_the_log_odds_of_the_correct_class() -> None:
    model, data = perceptron((6, 5, 3)), blobs(9)
    p = model(data.x).softmax(1).gather(1, data.y[:, None])[:, 0]
    torch.testing.assert_close(margin_value(model, data.all()), (p / (1 - p)).log())
    with pytest.raises(RecipeError, match=r"needs logits \(examples, classes\) and class indices"):
        margin_value(model, Batch(data.x, torch.zeros(9, 3), torch.ones(9)))


def test_a_layer_that_mixes_examples_is_named_and_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.Flatten(), nn.Linear(36, 3))
    batch = Batch(torch.randn(3, 2, 11), torch.tensor([0, 1, 2]), torch.ones(3))
    before = state_of(model)
    with pytest.raises(RecipeError, match=r"^1 has running statistics"), ExampleGradients(model).of(loss_value(Classification()), batch):
        pass
    assert_same_state(before, state_of(model))


def test_patterns_that_match_nothing_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"no trainable parameter matches nothing\.\*. The model has layers.0.weight"):
        ExampleGradients(perceptron((6, 3)), ["nothing.*"])
    with pytest.raises(RecipeError, match="no linear layer or convolution matches"):
        LayerFactors(perceptron((6, 3)), ["nothing"])


def test_a_projection_is_linear_and_the_same_from_factors_rows_and_dense() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 2, 40, generator=g), torch.randn(3, 2, 30, generator=g)
    ids = torch.randint(0, 30, (3, 2), generator=g)
    project = Projection("w", (30, 40), columns=48, seed=1)
    assert project.columns == 48
    outer, rows = Outer(a, b), Rows(ids, a, 30)
    for term in (outer, rows):
        torch.testing.assert_close(project([term]), project([Dense.of(term.dense())]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(project([outer, rows]), project([outer]) + project([rows]))
    assert not torch.equal(project([outer]), Projection("other", (30, 40), columns=48, seed=1)([outer]))


def test_projected_inner_products_are_unbiased() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 20, 30, generator=g)
    x[1] += 0.5 * x[0]
    exact = (x[0] * x[1]).sum()
    found = []
    for seed in range(400):
        p = Projection("w", (20, 30), columns=64, seed=seed)([Dense.of(x)])
        found.append(p[0] @ p[1])
    products = torch.stack(found)
    assert abs(products.mean() - exact) < 4 * products.std() / 20


def test_a_short_gradient_is_kept_exactly() -> None:
    x = torch.randn(3, 7)
    assert torch.equal(Projection("b", (7,), columns=64, seed=0)([Dense.of(x)]), x)


def test_the_hash_of_the_weights_changes_with_one_number() -> None:
    model = perceptron((6, 5, 3))
    before = weights_hash(model)
    assert weights_hash(perceptron((6, 5, 3))) == before
    with torch.no_grad():
        model.layers[1].bias[0] += 1e-3  # type: ignore[union-attr, operator, index]
    assert weights_hash(model) != before


def test_untouched_restores_after_an_error() -> None:
    model = perceptron((6, 3)).train()
    before = state_of(model)
    with pytest.raises(ZeroDivisionError), untouched(model):
        torch.rand(3)
        for p in model.parameters():
            p.requires_grad_(False)
        _ = 1 / 0
    assert_same_state(before, state_of(model))
