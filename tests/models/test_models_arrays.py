"""MLP, logistic and linear regression, CNN: their sizes, their formulas, and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tauon.config import parse
from tauon.errors import RecipeError
from tauon.models import CNNConfig, LinearConfig, LogisticConfig, MLPConfig, ModelConfig, from_record, materialize, parameter_count, record
from tauon.types import DataSpec

DIGITS = DataSpec(input_shape=(1, 28, 28), outputs=10, labels=tuple("0123456789"))


def test_the_published_784_128_10() -> None:
    config = MLPConfig(hidden=(128,)).resolve(DIGITS)
    model = materialize(config, seed=0)
    assert parameter_count(model) == 784 * 128 + 128 + 128 * 10 + 10
    x = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        model.layers[1].weight.normal_()
    a, b = model.layers
    wanted = F.relu(x.reshape(3, 784) @ a.weight.t() + a.bias) @ b.weight.t() + b.bias
    torch.testing.assert_close(model.eval()(x), wanted)
    assert model.flops_per_example(DIGITS) == 6 * (784 * 128 + 128 * 10)


def test_logistic_and_linear_are_one_layer() -> None:
    for config in (LogisticConfig(), LinearConfig()):
        model = materialize(config.resolve(DIGITS), seed=0)
        assert [p.shape for p in model.parameters()] == [(10, 784), (10,)]


def test_the_cnn_halves_the_image_and_is_torchs_own_layers() -> None:
    config = CNNConfig(channels=(8, 16), convs_per_stage=2, groups=4).resolve(DIGITS)
    model = materialize(config, seed=0).eval()
    with torch.no_grad():
        model.head.weight.normal_()
    x = h = torch.randn(2, 1, 28, 28)
    for i, (conv, norm) in enumerate(zip(model.convs, model.norms, strict=True)):
        h = F.relu(F.group_norm(F.conv2d(h, conv.weight, padding=1), 4, norm.weight, norm.bias))
        h = F.max_pool2d(h, 2) if i % 2 else h
    assert h.shape == (2, 16, 7, 7)
    torch.testing.assert_close(model(x), h.mean((2, 3)) @ model.head.weight.t() + model.head.bias)
    multiplied = 28 * 28 * 9 * (1 * 8 + 8 * 8) + 14 * 14 * 9 * (8 * 16 + 16 * 16) + 16 * 10
    assert model.flops_per_example(DIGITS) == 6 * multiplied


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"kind": "mlp", "inputs": 5}, "model.inputs: 5, but an example has 784 features"),
        ({"kind": "mlp", "outputs": 3}, "model.outputs: 3, but the data has 10"),
        ({"kind": "cnn", "outputs": 3}, "model.outputs: 3, but the data has 10"),
        ({"kind": "cnn", "input_shape": [3, 28, 28]}, r"model.input_shape: \(3, 28, 28\), but an example here is \(1, 28, 28\)"),
        ({"kind": "cnn", "channels": [8] * 5}, "5 stages halve 28x28 to nothing"),
        ({"kind": "gpt"}, "gpt reads tokens"),
    ],
)
def test_sizes_that_are_not_the_datas_are_refused(config: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse(ModelConfig, config).resolve(DIGITS)


def test_a_table_is_no_image_and_arrays_are_no_tokens() -> None:
    with pytest.raises(RecipeError, match="cnn needs images"):
        CNNConfig().resolve(DataSpec(input_shape=(7,), outputs=3))
    with pytest.raises(RecipeError, match="mlp reads arrays"):
        MLPConfig().resolve(DataSpec(vocab=5, seq_len=3))


def test_a_config_that_does_not_know_its_sizes_builds_nothing() -> None:
    for config in (MLPConfig(), CNNConfig()):
        with pytest.raises(RecipeError, match="not known yet"):
            config.build()


def test_a_record_gives_the_config_back() -> None:
    for config in (MLPConfig(hidden=(3, 4)).resolve(DIGITS), CNNConfig(channels=(8,)).resolve(DIGITS)):
        assert from_record(record(config)) == config


def test_dropout_acts_in_training_only() -> None:
    config = MLPConfig(hidden=(64,), dropout=0.5, input_dropout=0.5).resolve(DIGITS)
    model = materialize(config, seed=0)
    with torch.no_grad():
        model.layers[1].weight.normal_()
    x = torch.randn(2, 784)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
