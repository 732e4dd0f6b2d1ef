"""Explicit attention has the outputs of fused attention, and its weights roll out as the paper says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from explain.test_cases import CODES, TEXTS, TOKENS, made, stirred
from tauon.errors import DataError
from tauon.explain import Cases, Work, cases_of
from tauon.explain.methods import attention_rollout, attention_weights, explicit_attention, rollout
from tauon.models import from_record
from tauon.models.attention import set_attention
from tauon.testing.contracts import tiny_batch
from tauon.types import Batch

MODELS: dict[str, tuple[dict[str, Any], Any]] = {
    "gpt": ({"kind": "gpt", "layers": 2, "width": 8, "heads": 2}, TOKENS),
    "grouped": ({"kind": "llama", "layers": 2, "width": 16, "heads": 4, "kv_heads": 2}, TOKENS),
    "window": ({"kind": "mistral", "layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "window": 3}, TOKENS),
    "bert": ({"kind": "bert", "layers": 2, "width": 8, "heads": 2}, TEXTS),
}


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kernel", ["fused", "products"])
def test_explicit_attention_equals_fused_attention(name: str, kernel: str, documents: bool) -> None:
    tree, spec = MODELS[name]
    model, tokens = stirred(from_record(tree).resolve(spec)), tiny_batch(spec).inputs
    set_attention(model, kernel)
    segments = torch.tensor([0, 0, 1, 1, 1, -1], dtype=torch.int32).expand(4, -1) if documents else None
    layers: list[torch.Tensor] = []
    with torch.no_grad():
        wanted = model(tokens, segments)
        with explicit_attention(model, lambda _, weights, __: layers.append(weights)):
            torch.testing.assert_close(model(tokens, segments), wanted, rtol=1e-5, atol=1e-5)
    assert len(layers) == 2 and all(m.kernel == kernel for m in model.modules() if hasattr(m, "attend"))
    for weights in layers:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
        if name == "window":
            assert not weights[..., 5, :3].any()
        if documents:
            assert not weights[..., 2:5, :2].any()


@pytest.mark.parametrize("kind", ["vit", "conformer"])
def test_other_families_are_explicit_too(kind: str) -> None:
    model, task, spec, batch = made(kind)
    cases, rows = cases_of(model, task, spec, batch), torch.arange(4)
    with torch.no_grad():
        wanted = cases.outputs(cases.inputs, rows)
        with explicit_attention(model, lambda *_: None):
            torch.testing.assert_close(cases.outputs(cases.inputs, rows), wanted, rtol=1e-5, atol=1e-5)


def test_scaled_grouped_and_masked_calls_equal_torchs() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    mask = torch.rand(2, 1, 5, 7) > 0.4
    mask[0, 0, 1] = False  # sees nothing
    for given in ({"attn_mask": mask, "enable_gqa": True}, {"attn_mask": torch.randn(5, 7), "enable_gqa": True, "scale": 0.3}):
        with explicit_attention(nn.Identity(), lambda *_: None):
            ours = F.scaled_dot_product_attention(q, k, v, **given)
        torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v, **given), rtol=1e-5, atol=1e-5)


def test_weights_are_named_by_their_module() -> None:
    model, _, _, batch = made("gpt")
    assert list(attention_weights(model, lambda: model(batch.inputs))) == ["blocks.0.attention", "blocks.1.attention"]
    layer = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    weights = attention_weights(layer, lambda: layer(x))["self_attn"]
    wanted = layer.self_attn(x, x, x, average_attn_weights=False)[1]
    torch.testing.assert_close(weights, wanted.detach(), rtol=1e-5, atol=1e-6)


def test_rollout_equals_the_papers_loop() -> None:
    torch.manual_seed(0)
    layers = [torch.randn(1, 2, 4, 4).softmax(-1) for _ in range(3)]
    wanted = torch.eye(4)
    for weights in layers:
        mixed = 0.5 * weights[0].mean(0) + 0.5 * torch.eye(4)
        wanted = mixed @ wanted
    torch.testing.assert_close(rollout(layers)[0], wanted)
    with pytest.raises(DataError, match="at least one layer"):
        rollout([])


READ_FROM = {"bert": 0, "gpt": 5, "vit": 0}


@pytest.mark.parametrize("kind", READ_FROM)
def test_the_positions_that_the_output_is_read_from_are_found(kind: str) -> None:
    model, task, spec, batch = made(kind)
    cases = cases_of(model, task, spec, batch)
    weights = attention_weights(model, lambda: cases.outputs(cases.inputs, torch.arange(4)))
    row = rollout(list(weights.values()))[:, READ_FROM[kind]]
    found = attention_rollout(cases, Work(at_once=3))
    assert found.coarse is not None
    torch.testing.assert_close(found.coarse.flatten(1), row[:, 1:] if kind == "vit" else row)


def test_all_valid_frames_of_a_recording_count() -> None:
    model, task, spec, batch = made("conformer")
    cases = cases_of(model, task, spec, batch)
    weights = attention_weights(model, lambda: cases.outputs(cases.inputs, torch.arange(4)))
    last = rollout(list(weights.values()))[-1]
    found = attention_rollout(cases, Work())
    assert found.coarse is not None
    torch.testing.assert_close(found.coarse[-1], last.mean(0))


def test_tokens_of_columns_find_their_columns() -> None:
    tree = {"kind": "ft-transformer", "layers": 2, "width": 8, "heads": 2}
    model = stirred(from_record(tree).resolve(CODES))
    cases = cases_of(model, "arrays", CODES, tiny_batch(CODES))
    weights = attention_weights(model, lambda: model(cases.inputs))
    row = rollout(list(weights.values()))[:, 0]
    torch.testing.assert_close(attention_rollout(cases, Work()).values, row[:, 1:])  # column 0 is the only number, and stays first


def test_a_model_without_attention_is_refused() -> None:
    model, task, spec, batch = made("resnet")
    with pytest.raises(DataError, match="computes no attention"):
        attention_rollout(cases_of(model, task, spec, batch), Work())


def test_padding_gets_nothing() -> None:
    model, task, spec, batch = made("bert")
    segments = torch.zeros_like(batch.inputs, dtype=torch.int32)
    segments[0, 3:] = -1
    cases: Cases = cases_of(model, task, spec, Batch(batch.inputs, batch.targets, batch.weights, segments=segments))
    assert not attention_rollout(cases, Work()).values[0, 3:].any()
