"""Forecasters: outputs and parameter counts of reference implementations from the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tauon.config import parse
from tauon.errors import RecipeError
from tauon.models import DLinearConfig, ModelConfig, PatchTSTConfig, materialize, parameter_count
from tauon.types import DataSpec

ETT = DataSpec(input_shape=(96, 7), outputs=7, labels=tuple("abcdefg"), horizon=96)


def windows(spec: DataSpec = ETT, rows: int = 4) -> Tensor:
    assert spec.input_shape is not None
    return torch.randn(rows, *spec.input_shape, generator=torch.Generator().manual_seed(0)).cumsum(1)


class TheirDLinear(nn.Module):
    """The authors' DLinear, shared weights (github.com/cure-lab/LTSF-Linear, models/DLinear.py), written down again."""

    def __init__(self, trend: nn.Linear, rest: nn.Linear) -> None:
        super().__init__()
        self.trend, self.rest = trend, rest
        self.average = nn.AvgPool1d(kernel_size=25, stride=1, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        front, end = x[:, 0:1, :].repeat(1, 12, 1), x[:, -1:, :].repeat(1, 12, 1)
        mean = self.average(torch.cat([front, x, end], dim=1).permute(0, 2, 1)).permute(0, 2, 1)
        rest = x - mean
        return (self.rest(rest.permute(0, 2, 1)) + self.trend(mean.permute(0, 2, 1))).permute(0, 2, 1)


def test_dlinear_is_the_authors() -> None:
    model = materialize(DLinearConfig().resolve(ETT), seed=0).eval()
    assert parameter_count(model) == 2 * (96 * 96 + 96) == 18_624
    far = DataSpec(input_shape=(96, 7), outputs=7, labels=tuple("abcdefg"), horizon=720)
    assert parameter_count(DLinearConfig().resolve(far).build_on_meta()) == 139_680  # the paper says 139.7K
    x = windows()
    with torch.no_grad():
        torch.testing.assert_close(model(x), TheirDLinear(model.trend[0], model.rest[0])(x), rtol=1e-5, atol=1e-4)


def test_dlinear_with_maps_of_their_own_is_a_dlinear_for_each_series() -> None:
    model = materialize(DLinearConfig(individual=True).resolve(ETT), seed=0).eval()
    assert parameter_count(model) == 7 * 18_624
    x = windows()
    with torch.no_grad():
        for k in range(7):
            alone = TheirDLinear(model.trend[k], model.rest[k])(x[:, :, k : k + 1])
            torch.testing.assert_close(model(x)[:, :, k : k + 1], alone, rtol=1e-5, atol=1e-4)


def theirs(config: PatchTSTConfig, spec: DataSpec, **changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    T, F = spec.input_shape or (0, 0)
    return transformers.PatchTSTForPrediction(
        transformers.PatchTSTConfig(
            num_input_channels=F, context_length=T, prediction_length=spec.horizon, patch_length=config.patch, patch_stride=config.stride,
            num_hidden_layers=config.layers, d_model=config.width, num_attention_heads=config.heads, ffn_dim=config.mlp_width,
            norm_type="layernorm", pre_norm=False, use_cls_token=False, share_embedding=True, share_projection=True, channel_attention=False,
            positional_encoding_type="random", scaling="std" if config.revin else None, pooling_type=None, do_mask_input=False, loss="mse",
            attention_dropout=0.0, ff_dropout=0.0, path_dropout=0.0, positional_dropout=0.0, head_dropout=0.0, activation_function="gelu", **changes,
        )
    ).eval()  # fmt: skip


def copy(ours: Any, their: Any) -> None:
    """Weights of ours into transformers' names."""
    put: dict[str, Tensor] = {}
    put["model.encoder.embedder.input_embedding"] = ours.embed
    for i, block in enumerate(ours.blocks):
        at = f"model.encoder.layers.{i}."
        for a, b in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o")):
            put[f"{at}self_attn.{a}"] = getattr(block, b)
        put |= {
            f"{at}norm_sublayer1": block.attention_norm,
            f"{at}norm_sublayer3": block.mlp_norm,
            f"{at}ff.0": block.up,
            f"{at}ff.3": block.down,
        }
    put["head.projection"] = ours.head
    state = {f"{k}.{n}": p for k, m in put.items() for n, p in m.named_parameters()}  # type: ignore[union-attr]
    state["model.encoder.positional_encoder.position_enc"] = ours.positions
    missing, unexpected = their.load_state_dict(state, strict=False)
    assert not missing and not unexpected, (missing, unexpected)


@pytest.mark.parametrize("revin", [True, False])
@pytest.mark.parametrize(("context", "patch", "stride"), [(96, 16, 8), (97, 16, 8), (36, 12, 12)])
def test_patchtst_is_transformers(revin: bool, context: int, patch: int, stride: int) -> None:
    spec = DataSpec(input_shape=(context, 7), outputs=7, labels=tuple("abcdefg"), horizon=24)
    config = PatchTSTConfig(patch=patch, stride=stride, pad_end=False, revin=revin).resolve(spec)
    ours, their = materialize(config, seed=0).eval(), theirs(config, spec)
    copy(ours, their)
    assert parameter_count(ours) == sum(p.numel() for p in their.parameters())
    x = windows(spec)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), their(past_values=x).prediction_outputs, rtol=1e-4, atol=1e-4)


def test_patchtst_has_the_papers_parameters() -> None:
    """The authors' supervised model (github.com/yuqinie98/PatchTST), ETTh1 script: 336 -> 96, patch 16, stride 8, padded by one stride."""
    spec = DataSpec(input_shape=(336, 7), outputs=7, labels=tuple("abcdefg"), horizon=96)
    D, hidden, patches = 16, 128, (336 - 16) // 8 + 2
    layer = 4 * (D * D + D) + (D * hidden + hidden) + (hidden * D + D) + 2 * 2 * D  # two BatchNorms there, two LayerNorms here
    assert patches == 42  # "PatchTST/42" with 336 steps
    expected = (16 * D + D) + patches * D + 3 * layer + (D * patches * 96 + 96)
    assert parameter_count(PatchTSTConfig().resolve(spec).build_on_meta()) == expected


@pytest.mark.parametrize("kind", ["dlinear", "patchtst"])
def test_each_series_is_predicted_from_its_own_past_alone(kind: str) -> None:
    model = materialize(parse(ModelConfig, {"kind": kind}).resolve(ETT), seed=0).eval()
    x = windows()
    other = x.clone()
    other[:, :, 3] += 5
    with torch.no_grad():
        before, after = model(x), model(other)
    same = [k for k in range(7) if k != 3]
    torch.testing.assert_close(before[:, :, same], after[:, :, same], rtol=0, atol=0)
    assert not torch.equal(before[:, :, 3], after[:, :, 3])


@pytest.mark.parametrize("settings", [{"kind": "dlinear", "revin": True}, {"kind": "patchtst"}, {"kind": "lstm"}])
def test_reversible_normalisation_moves_a_forecast_with_its_window(settings: dict[str, Any]) -> None:
    fan = DataSpec(input_shape=(96, 7), outputs=21, labels=tuple("abcdefg"), horizon=12)
    model = materialize(parse(ModelConfig, settings).resolve(fan), seed=0).eval()
    with torch.no_grad():
        if settings["kind"] == "lstm":
            model.head.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        x = windows(fan)
        shift, scale = torch.arange(7.0), torch.arange(1.0, 8.0)
        moved = model(x * scale + shift).unflatten(2, (7, 3))
        expected = model(x).unflatten(2, (7, 3)) * scale[:, None] + shift[:, None]
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-2)


def test_the_lstm_is_torchs_and_reads_every_column() -> None:
    spec = DataSpec(input_shape=(12, 5), outputs=2, labels=("a", "b"), horizon=4)
    model = materialize(parse(ModelConfig, {"kind": "lstm", "width": 8, "layers": 2, "revin": False}).resolve(spec), seed=0).eval()
    assert parameter_count(model) == 4 * 8 * (5 + 8 + 2) + 4 * 8 * (8 + 8 + 2) + 8 * 8 + 8
    for name, p in model.layers.named_parameters():
        if "bias_ih" in name:
            assert p.tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 16  # torch's order: input, forget, cell, output
    their = nn.LSTM(5, 8, num_layers=2, batch_first=True)
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            for name, p in layer.named_parameters():
                getattr(their, name.replace("l0", f"l{i}")).copy_(p)
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
        x = windows(spec)
        torch.testing.assert_close(model(x), model.head(their(x)[0][:, -1]).view(4, 4, 2))
        other = x.clone()
        other[:, :, 4] += 1
        assert not torch.equal(model(other), model(x))


def test_forecasters_refuse_what_they_cannot_read() -> None:
    covariates = DataSpec(input_shape=(48, 9), outputs=7, labels=tuple("abcdefg"), horizon=12)
    for kind in ("dlinear", "patchtst"):
        with pytest.raises(RecipeError, match=r"2 columns of inputs or calendar.*use lstm"):
            parse(ModelConfig, {"kind": kind}).resolve(covariates)
    with pytest.raises(RecipeError, match="16 steps, longer than the context of 9"):
        PatchTSTConfig().resolve(DataSpec(input_shape=(9, 1), outputs=1, labels=("a",), horizon=2))
    with pytest.raises(RecipeError, match="kernel: 24 is even"):
        parse(ModelConfig, {"kind": "dlinear", "kernel": 24})
    with pytest.raises(RecipeError, match=r"model\.horizon: 24, but the data has 96"):
        parse(ModelConfig, {"kind": "dlinear", "horizon": 24}).resolve(ETT)
    with pytest.raises(RecipeError, match="reads a time series, and this data is none"):
        DLinearConfig().resolve(DataSpec(input_shape=(7,), outputs=2))
