"""Activations are those of the model, and units that never act or always saturate are named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from explain.test_cases import KINDS, made
from tauon.errors import DataError
from tauon.explain import cases_of
from tauon.explain.activations import activation_maps


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(4, 3)
        with torch.no_grad():
            self.conv.bias[2] = -100
            self.fc.weight[0] = 0
            self.fc.bias.copy_(torch.tensor([50.0, 0, 0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(F.relu(self.fc(self.act(self.conv(x)).mean((2, 3)))))


def test_dead_and_saturated_units_are_named() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(6, 1, 8, 8)
    found = activation_maps(model, lambda: (model(x[:4]), model(x[4:])))
    layers = {layer.name: layer for layer in found.layers}
    assert list(layers) == ["conv", "act", "fc", "relu", "tanh"]
    assert layers["act"].dead == [2] and layers["act"].units == 4 and layers["act"].count == 6 * 64
    assert 0 in layers["tanh"].saturated
    assert "act: 1 of 4 units are never active on these examples (2)" in found.findings
    with torch.no_grad():
        wanted = model.conv(x)
    torch.testing.assert_close(layers["conv"].mean, float(wanted.mean()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layers["act"].share_of_zeros, float((wanted <= 0).float().mean()), rtol=1e-5, atol=1e-5)
    assert layers["conv"].map is not None and layers["conv"].unit_maps is not None
    torch.testing.assert_close(layers["conv"].map, wanted[:4].abs().mean(1))
    torch.testing.assert_close(layers["conv"].unit_maps, wanted[:4])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()) and model.training


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_has_activations(kind: str) -> None:
    model, task, spec, batch = made(kind)
    cases = cases_of(model, task, spec, batch)
    found = activation_maps(model, lambda: cases.outputs(cases.inputs, torch.arange(4)))
    assert found.layers and all(layer.count for layer in found.layers)
    assert found.to_json()["layers"][0]["units"] > 0


def test_functions_in_a_block_are_named_by_their_block() -> None:
    model, _, _, batch = made("resnet")
    names = [layer.name for layer in activation_maps(model, lambda: model(batch.inputs), ["layer3.2"]).layers]
    assert names == ["layer3.2.relu", "layer3.2.relu_2", "layer3.2"]
    with pytest.raises(DataError, match=r"did you mean 'layer3\.2'"):
        activation_maps(model, lambda: None, ["layer3.9"])
