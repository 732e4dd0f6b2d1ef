"""Each method against its formula, or against what we did not write: torch, closed forms, exhaustive search."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compress_models import CONFIGS, batch_of, calibration, model_of, outputs, task_of
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from tauon.compress import (
    Calibration,
    Int4WeightOnly,
    Int8,
    Int8Linear,
    LowRank,
    Magnitude,
    Structured,
    Wanda,
    compress_model,
    ordered,
)
from tauon.compress.gptq import awq_scales, gptq_round, output_error
from tauon.compress.parts import groups_of
from tauon.compress.quantized.fbgemm import fbgemm_is_exact
from tauon.compress.quantized.numbers import dequantize_groups, int_matmul, pack_int4, quantize_groups, unpack_int4
from tauon.compress.steps.low_rank import factorise
from tauon.errors import DataError


def correlated(seed: int = 0, rows: int = 256, inputs: int = 32, outputs: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight, second moments of inputs with outliers)."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=g) @ torch.randn(inputs, inputs, generator=g)
    x[:, 3] *= 20
    return torch.randn(outputs, inputs, generator=g), (x.t() @ x).double() / rows


@pytest.mark.parametrize("seed", range(4))
def test_gptq_and_awq_have_a_lower_output_error_than_rounding_to_nearest(seed: int) -> None:
    weight, H = correlated(seed)
    nearest = output_error(weight, dequantize_groups(*quantize_groups(weight, 16), 16), H)
    assert output_error(weight, dequantize_groups(*gptq_round(weight, H, 16), 16), H) < 0.9 * nearest
    s = awq_scales(weight, H, 16)
    assert output_error(weight, dequantize_groups(*quantize_groups(weight * s, 16), 16) / s, H) < nearest


def test_gptq_of_uncorrelated_inputs_is_rounding_to_nearest() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    q, scale = gptq_round(weight, torch.eye(32), 8)
    expected_q, expected_scale = quantize_groups(weight, 8)
    assert torch.equal(q, expected_q) and torch.allclose(scale.float(), expected_scale)


def test_singular_values_give_the_error_of_a_low_rank() -> None:
    weight, H = correlated()
    A, B = factorise(weight, 5)
    singular = torch.linalg.svdvals(weight)
    assert (weight - B @ A).norm().item() == pytest.approx(singular[5:].norm().item(), rel=1e-4)
    A2, B2 = factorise(weight, 5, H)
    assert output_error(weight, B2 @ A2, H) < output_error(weight, B @ A, H)
    root = torch.linalg.cholesky(H)
    best = torch.linalg.svdvals(weight.double() @ root)[5:].square().sum() / len(weight)  # Eckart & Young, of W C
    assert output_error(weight, B2 @ A2, H) == pytest.approx(best.item(), rel=1e-3)


def test_wanda_keeps_by_its_formula_and_2_4_keeps_two_of_four() -> None:
    model, data = model_of("mlp"), calibration("mlp")
    sparse = compress_model(model, task_of("mlp"), data, [Wanda(sparsity=0.5)])
    x = torch.cat([b.inputs for b in data.batches])
    score = model.layers[0].weight.detach().abs() * x.norm(dim=0)
    below = score < score.median(1, keepdim=True).values  # torch's median is the lower one of the middle
    weight: Any = sparse.model.get_submodule("layers.0").weight
    assert torch.equal(weight == 0, score <= score.median(1, keepdim=True).values) and below.any()
    for step in (Wanda(pattern="2:4"), Magnitude(pattern="2:4")):
        two: Any = compress_model(model, task_of("mlp"), data, [step]).model.get_submodule("layers.0").weight
        assert ((two != 0).view(32, 6, 4).sum(2) == 2).all()
    plain: Any = compress_model(model, task_of("mlp"), None, [Magnitude(sparsity=0.25)]).model.get_submodule("layers.0").weight
    reference = model_of("mlp").layers[0]
    l1_unstructured(reference, "weight", amount=0.25)
    assert torch.equal(plain, reference.weight)


def test_masks_hold_after_healing() -> None:
    def heal(subject: Any, step: Any) -> None:
        with torch.no_grad():
            for p in subject.model.parameters():
                p.add_(1.0)

    healed = compress_model(model_of("mlp"), task_of("mlp"), None, [Int8(), Magnitude(sparsity=0.5)], heal=heal)
    assert [s["kind"] for s in healed.steps] == ["magnitude", "int8"]
    layer: Any = healed.model.get_submodule("layers.0")
    assert (layer.float_weight() == 0).float().mean() >= 0.49
    assert [s.kind_ for s in ordered([Int8(), Magnitude(), LowRank(), Structured()])] == ["structured", "low_rank", "magnitude", "int8"]


def test_smoothing_leaves_the_float_function_and_helps_with_outliers() -> None:
    g = torch.Generator().manual_seed(0)
    linear, x = nn.Linear(32, 16), torch.randn(64, 32, generator=g)
    x[:, 5] *= 100
    s = (x.abs().amax(0) / linear.weight.abs().amax(0)).sqrt().detach()
    assert torch.allclose(F.linear(x / s, linear.weight * s, linear.bias), linear(x), rtol=1e-4, atol=1e-3)
    scale = float((x / s).abs().max()) / 127
    plain = Int8Linear.quantize(linear, "static", input_scale=float(x.abs().max()) / 127)(x)
    smooth = Int8Linear.quantize(linear, "static", input_scale=scale, smooth_K=s)(x)
    assert (smooth - linear(x)).norm() < 0.5 * (plain - linear(x)).norm()


def test_int8_rows_do_not_depend_on_their_batch_and_equal_exact_integers() -> None:
    g = torch.Generator().manual_seed(0)
    linear, x = nn.Linear(96, 40), torch.randn(33, 96, generator=g)
    layer = Int8Linear.quantize(linear)
    y = layer(x)
    assert torch.equal(torch.cat([layer(x[i : i + 1]) for i in range(33)]), y)
    assert torch.equal(layer(x[:16].view(2, 8, 96)).view(16, 40), y[:16])
    assert ((y - linear(x)).norm() / linear(x).norm()).item() < 0.02
    a, b = torch.randint(-127, 128, (17, 96), generator=g).to(torch.int8), layer.weight_q
    assert torch.equal(int_matmul(a, b).long(), a.long() @ b.long().t())
    extreme = torch.full((17, 4096), -127, dtype=torch.int8)
    assert (int_matmul(extreme, extreme) == 127 * 127 * 4096).all()


@pytest.mark.parametrize("inputs", [7, 96, 1030])
@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_packed_weights_give_the_exact_products(inputs: int, activations: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fbgemm_is_exact():
        pytest.skip("this processor or this torch has no FBGEMM that adds exactly")
    g = torch.Generator().manual_seed(0)
    layer = Int8Linear.quantize(nn.Linear(inputs, 40), activations, input_scale=0.02 if activations == "static" else None)
    x = torch.randn(33, inputs, generator=g)
    y = layer(x)
    assert torch.equal(torch.cat([layer(part) for part in x.split([1, 2, 5, 25])]), y)
    twin = copy.deepcopy(layer)
    twin.weight_q.neg_()  # noticed: the packed weights are of another tensor
    assert twin.state_dict().keys() == layer.state_dict().keys() and not torch.equal(twin(x), y)
    monkeypatch.setattr("tauon.compress.quantized.layers.fbgemm_is_exact", lambda: False)
    assert ((layer(x) - y).abs() <= 0.01 * y.abs().max()).all()  # one integer may differ where x / scale is next to a half
    assert (layer(x) == y).float().mean() > 0.9


def test_int8_weights_equal_those_of_torch() -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    linear = nn.Linear(16, 8, bias=False)
    linear.weight.data = weight
    layer = Int8Linear.quantize(linear)
    expected = torch.fake_quantize_per_channel_affine(weight, layer.scale_N, torch.zeros(8, dtype=torch.int32), 0, -127, 127)
    assert torch.allclose(layer.float_weight(), expected)


def test_int4_is_packed_without_loss() -> None:
    q = torch.randint(-8, 8, (5, 7), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    assert torch.equal(unpack_int4(pack_int4(q), 7), q) and pack_int4(q).shape == (5, 4)
    data = calibration("gpt")
    errors = {
        m: compress_model(model_of("gpt"), task_of("gpt"), data, [Int4WeightOnly(method=m)]).facts[0]["output_errors"]
        for m in ("gptq", "awq")
    }
    assert errors["gptq"].keys() == errors["awq"].keys() and len(errors["gptq"]) == 14  # 7 of each block: the head's weight is only read


@pytest.mark.parametrize("kind", ["mlp", "gpt", "gpt2", "vit", "cnn", "resnet"])
def test_units_without_effect_can_be_removed(kind: str) -> None:
    model, batch, generator = model_of(kind), batch_of(kind), torch.Generator().manual_seed(0)
    groups = list(groups_of(model))
    assert groups
    with torch.no_grad():
        for group in groups:
            dead = torch.cat(
                [
                    part[torch.randperm(len(part), generator=generator)][: len(part) // 4]
                    for part in torch.arange(group.units).chunk(group.multiple)
                ]
            )
            for name, size in group.columns:
                weight = model.get_submodule(name).weight
                for i in dead.tolist():
                    weight[:, i * size : (i + 1) * size] = 0
    step = Structured(remove=0.25, refit=kind != "cnn")
    small = compress_model(model, task_of(kind), Calibration((batch,)), [step], config=CONFIGS[kind])
    before, after = outputs(kind, model, batch), outputs(kind, small.model, batch)
    if kind != "cnn":  # a group norm sees which channels are gone
        assert torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    assert sum(p.numel() for p in small.model.parameters()) < sum(p.numel() for p in model.parameters())
    if kind in ("mlp", "gpt", "cnn"):
        assert small.config is not None
        built = {k: v.shape for k, v in small.config.build_on_meta().state_dict().items()}
        assert built == {k: v.shape for k, v in small.model.state_dict().items()}


def test_blocks_that_change_nothing_are_removed_first() -> None:
    model = model_of("gpt")
    with torch.no_grad():
        model.blocks[1].attention.out.weight.zero_()
        model.blocks[1].mlp.down.weight.zero_()
    small = compress_model(model, task_of("gpt"), calibration("gpt"), [Structured(remove=0.0, blocks=1)], config=CONFIGS["gpt"])
    assert small.facts[0]["blocks"] == [1] and torch.equal(
        outputs("gpt", small.model, batch_of("gpt")), outputs("gpt", model, batch_of("gpt"))
    )
    with pytest.raises(DataError, match="leaves nothing"):
        compress_model(model, task_of("gpt"), calibration("gpt"), [Structured(blocks=2)], config=CONFIGS["gpt"])
    with pytest.raises(DataError, match="nothing of"):
        compress_model(model_of("cnn"), task_of("cnn"), calibration("cnn"), [Structured(remove=0.9)], config=CONFIGS["cnn"])
    with pytest.raises(DataError, match="nothing of"):
        compress_model(model_of("mlp"), task_of("mlp"), None, [Magnitude(sparsity=0.999)])
