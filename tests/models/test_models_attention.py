"""Attention as batched products against torch's own: values, gradients, masks, types, compiled, checkpointed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tauon.models import BERTConfig, GPTConfig, ViTConfig, materialize
from tauon.models.attention import LONGEST, attend_heads, set_attention
from tauon.models.families.transformer import document_mask, window_mask
from tauon.testing import tiny_batch
from tauon.types import DataSpec


def qkv(B: int, H: int, T: int, K: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Queries, keys, values with the strides that projections give them: BTHK, transposed."""
    g = torch.Generator().manual_seed(B * T + K)
    return [torch.randn(B, T, H, K, generator=g).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]


def values_and_gradients(inputs: list[Tensor], mask: Tensor | None, causal: bool, kernel: str) -> list[Tensor]:
    out = attend_heads(*inputs, mask, causal=causal, kernel=kernel)
    toward = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, toward)]


def masks(B: int, T: int) -> dict[str, tuple[Tensor | None, bool]]:
    segments = torch.randint(0, 3, (B, T), generator=torch.Generator().manual_seed(2)).sort(1).values
    seen = document_mask(segments)
    return {
        "none": (None, False),
        "causal": (None, True),
        "documents": (seen, False),
        "window": (window_mask(T, T, 3, torch.device("cpu")), False),
        "bias": (torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf), False),
    }


@given(B=st.integers(1, 4), H=st.integers(1, 3), T=st.integers(2, 40), K=st.integers(1, 20), kind=st.sampled_from(sorted(masks(1, 2))))
@settings(deadline=None, max_examples=60)
def test_values_and_gradients_are_those_of_float64(B: int, H: int, T: int, K: int, kind: str) -> None:
    mask, causal = masks(B, T)[kind]
    inputs = qkv(B, H, T, K)
    ours = values_and_gradients(inputs, mask, causal, "products")
    exact = [x.detach().double().requires_grad_() for x in inputs]
    bias = mask.double() if mask is not None and mask.dtype != torch.bool else mask
    for a, b in zip(ours, values_and_gradients(exact, bias, causal, "fused"), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "documents"])
def test_examples_that_do_not_fit_at_once_are_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, causal = masks(5, 16)[kind]
    whole = values_and_gradients(qkv(5, 2, 16, 8), mask, causal, "products")
    monkeypatch.setattr("tauon.models.attention._CACHED", 2 * 2 * 16 * 16)
    for a, b in zip(whole, values_and_gradients(qkv(5, 2, 16, 8), mask, causal, "products"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_in_bfloat16_the_error_is_at_most_two_and_a_half_times_that_of_the_fused_kernel() -> None:
    inputs = qkv(4, 4, 64, 32, torch.bfloat16)
    exact = values_and_gradients([x.detach().double().requires_grad_() for x in inputs], None, True, "fused")
    ours, fused = (values_and_gradients(inputs, None, True, kernel) for kernel in ("products", "fused"))
    for a, b, c in zip(ours, fused, exact, strict=True):
        assert (a.double() - c).norm() <= 2.5 * (b.double() - c).norm()


def test_autocast_applies_as_it_does_to_torchs_own() -> None:
    inputs = qkv(2, 2, 16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert attend_heads(*inputs, causal=True, kernel="products").dtype == torch.bfloat16
        assert attend_heads(*inputs, causal=True).dtype == torch.bfloat16


def test_the_operator_keeps_the_contract_of_torchs_dispatcher() -> None:
    q, k, v = qkv(2, 2, 8, 4)
    mask = masks(2, 8)["documents"][0]
    torch.library.opcheck(torch.ops.tauon.attention.default, (q, k, v, mask, True))


def test_compiled_it_computes_the_same() -> None:
    inputs = qkv(2, 2, 16, 8)

    def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_heads(q * 1.0, k, v, causal=True, kernel="products").square()

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    ours, plain = (torch.autograd.grad(f(*inputs).sum(), inputs) for f in (compiled, block))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "shape", [((2, 2, 1, 4), (2, 2, 1, 4)), ((2, 2, 3, 4), (2, 2, 9, 4)), ((1, 1, LONGEST + 1, 2), (1, 1, LONGEST + 1, 2))],
    ids=["one position", "fewer queries than keys", "too long"],
)  # fmt: skip
def test_where_it_does_not_apply_the_fused_kernel_is_taken(shape: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauon.models.attention._attention", None)  # calling it would fail
    q, kv = (torch.randn(s) for s in shape)
    torch.testing.assert_close(attend_heads(q, kv, kv, kernel="products"), F.scaled_dot_product_attention(q, kv, kv))


def test_every_family_with_attention_takes_the_kernel_and_learns_the_same() -> None:
    text = DataSpec(vocab=31, seq_len=16, outputs=2, labels=("a", "b"))
    pictures = DataSpec(input_shape=(3, 8, 8), outputs=2, labels=("a", "b"))
    for config, spec in (
        (GPTConfig(layers=2, width=16, heads=2, kv_heads=1), text),
        (BERTConfig(layers=1, width=16, heads=2, dropout=0.0), text),
        (ViTConfig(layers=1, width=16, heads=2, patch=2, dropout=0.0), pictures),
    ):  # fmt: skip
        model = materialize(config.resolve(spec), seed=0).double()
        inputs = tiny_batch(spec).inputs
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        found = []
        for kernel in ("fused", "products"):
            set_attention(model, kernel)
            out = model(inputs)
            found.append(torch.autograd.grad(out.square().sum(), [p for p in model.parameters() if p.requires_grad], allow_unused=True))
        with torch.no_grad():
            assert torch.allclose(model(inputs), out.detach(), atol=1e-12)
        for a, b in zip(*found, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="'flash' is no attention kernel. Choose from: fused, products"):
        set_attention(torch.nn.Linear(1, 1), "flash")
