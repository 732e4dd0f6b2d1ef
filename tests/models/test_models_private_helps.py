"""What helps private training: bounded activations, standardised weights; equal to their formulas, one example at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tauon.config import parse
from tauon.errors import RecipeError
from tauon.models import ModelConfig, materialize
from tauon.models.norm import StandardisedConv2d, standardised, tempered_sigmoid


def cnn(**fields: Any) -> Any:
    config = {"kind": "cnn", "channels": [8, 16], "groups": 4, "input_shape": [1, 8, 8], "outputs": 3} | fields
    return materialize(parse(ModelConfig, config), seed=1)


def test_tempered_sigmoids_are_their_formula_and_tanh_is_one() -> None:
    x = torch.linspace(-4, 4, 50)
    assert torch.allclose(tempered_sigmoid(x, 1.58, 3.0, 0.71), 1.58 / (1 + torch.exp(-3.0 * x)) - 0.71, atol=1e-6)
    assert torch.allclose(tempered_sigmoid(x, 2.0, 2.0, 1.0), torch.tanh(x)) and torch.allclose(
        2 * torch.sigmoid(2 * x) - 1, torch.tanh(x), atol=1e-6
    )


def test_standardised_weights_have_mean_zero_and_variance_one_over_fan_in() -> None:
    w = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 3 + 5
    used = standardised(w)
    assert used.mean((1, 2, 3)).abs().max() < 1e-6
    assert torch.allclose(used.var((1, 2, 3), correction=0) * 36, torch.ones(6), atol=1e-5)
    conv = StandardisedConv2d(4, 6, 3, padding=1, bias=False)
    conv.weight.data.copy_(w)
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(conv(x), F.conv2d(x, used, padding=1), atol=1e-6)
    conv.weight.data.mul_(7).add_(1)  # scale and mean of the raw weights do not matter
    assert torch.allclose(conv(x), F.conv2d(x, used, padding=1), atol=1e-4)


@pytest.mark.parametrize(
    "fields", [{"activation": "tanh"}, {"activation": "tempered-sigmoid", "temper": [1.58, 3.0, 0.71]}, {"standardise": True}]
)
def test_the_network_learns_four_examples_with_them(fields: dict[str, Any]) -> None:
    model = cnn(**fields)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 1, 8, 8, generator=g), torch.tensor([0, 1, 2, 1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert torch.allclose(model(x)[1:2], model(x[1:2]), atol=1e-5)  # no example sees another


def test_each_option_changes_the_network_and_the_plain_one_is_as_before() -> None:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def out(**fields: Any) -> torch.Tensor:
        model = cnn(**fields)
        model.head.weight.data.fill_(0.1)
        result: torch.Tensor = model(x)
        return result

    plain = out()
    for fields in ({"activation": "tanh"}, {"activation": "tempered-sigmoid", "temper": [1.0, 1.0, 0.0]}, {"standardise": True}):
        assert not torch.allclose(out(**fields), plain)
    with pytest.raises(RecipeError, match="is for activation: tempered-sigmoid"):
        cnn(temper=[1.0, 1.0, 0.0])
    with pytest.raises(RecipeError, match="must be above 0"):
        cnn(activation="tempered-sigmoid", temper=[0.0, 1.0, 0.0])


@pytest.mark.parametrize("fields", [{}, {"activation": "tanh"}, {"standardise": True}])
def test_private_gradients_of_it_are_those_of_one_example_at_a_time(fields: dict[str, Any]) -> None:
    from tauon.privacy.clipped import ClippedSum

    model = cnn(**fields)
    g = torch.Generator().manual_seed(3)
    model.head.weight.data.normal_(generator=g)
    x, y = torch.randn(5, 1, 8, 8, generator=g), torch.randint(0, 3, (5,), generator=g)
    loop = []
    for i in range(5):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        loop.append({n: p.grad.clone() for n, p in model.named_parameters()})
    model.zero_grad(set_to_none=True)
    clipped = ClippedSum(model)
    with clipped.recording():
        F.cross_entropy(model(x), y, reduction="sum").backward()
    norms = sum(clipped.squared_norms().values()).sqrt()
    ours = [sum(float(v.square().sum()) for v in one.values()) ** 0.5 for one in loop]
    assert norms.tolist() == pytest.approx(ours, rel=1e-4)
    factors = torch.rand(5, generator=g)
    clipped.add(factors)
    for n, p in model.named_parameters():
        assert torch.allclose(p.grad, sum(f * one[n] for f, one in zip(factors, loop, strict=True)), atol=1e-5), n
    clipped.forget()
    clipped.detach()
