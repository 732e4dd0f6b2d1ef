"""GPT in both layouts against transformers' own, on the same random weights; document masks; the KV cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tauon.errors import CheckpointError
from tauon.models import GPT, GPT2Config, GPTConfig, KVCache, load_weights, materialize, parameter_count
from tauon.models.families.transformer import apply_rope, as_bias, document_mask, positions_in_segments
from tauon.tasks import LanguageModelling
from tauon.types import Batch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tokens(B: int, T: int, vocab: int) -> Tensor:
    return torch.randint(0, vocab, (B, T), generator=torch.Generator().manual_seed(1))


def gpt(**settings: Any) -> GPT:
    """A small GPT whose head is not zero, as it is at the start."""
    model = materialize(GPTConfig(**({"layers": 2, "width": 32, "heads": 4, "vocab": 31, "seq_len": 32} | settings)), seed=3)
    assert isinstance(model, GPT)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    return model.eval()


# ------------------------------------------------------------------------------------------------ the same numbers


def test_gpt2_small_has_its_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = GPT2Config(vocab=50257, seq_len=1024).build()
    assert parameter_count(model) == 124_439_808


def llama(width: int, heads: int, kv_heads: int, hidden: int, layers: int, vocab: int, base: float) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=64, rms_norm_eps=1e-6, tie_word_embeddings=False, attention_bias=False,
        mlp_bias=False, rope_parameters={"rope_type": "default", "rope_theta": base},
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def from_llama(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "model.embed_tokens": "embed",
        "model.norm": "norm",
        "lm_head": "head",
        "model.layers": "blocks",
        "self_attn.o_proj": "attention.out",
    }
    names |= {f"self_attn.{x}_proj": f"attention.{x}" for x in "qkv"} | {f"mlp.{x}_proj": f"mlp.{x}" for x in ("up", "gate", "down")}
    names |= {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
    out = {}
    for key, value in state.items():
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        out[key] = value
    return out


@pytest.mark.parametrize(("kv_heads", "base"), [(4, 10_000.0), (2, 500.0), (1, 1e6)])
def test_swiglu_rope_and_grouped_query_attention_equal_llama(kv_heads: int, base: float) -> None:
    theirs = llama(32, 4, kv_heads, 56, 2, 61, base)
    ours = gpt(vocab=61, seq_len=64, kv_heads=kv_heads, mlp="swiglu", mlp_width=56, qk_norm=False, rope_base=base)
    load_weights(ours, from_llama(dict(theirs.state_dict())))
    ids = tokens(2, 64, 61)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(ids)), theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_rope_equals_transformers_rotation() -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    model = gpt(width=64, heads=4, seq_len=40)
    config = transformers.LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=40)
    q, k = torch.randn(2, 40, 4, 16), torch.randn(2, 40, 4, 16)
    cos, sin = LlamaRotaryEmbedding(config)(q, torch.arange(40)[None])
    wanted_q, wanted_k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    torch.testing.assert_close(apply_rope(q, model.cos_TK, model.sin_TK), wanted_q.transpose(1, 2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(apply_rope(k, model.cos_TK, model.sin_TK), wanted_k.transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_rms_norm_and_squared_relu_are_their_formulas() -> None:
    model = gpt(qk_norm=True)
    block = model.layers[0]
    x = torch.randn(2, 5, 32)
    h = x @ block.mlp.up.weight.t()
    torch.testing.assert_close(block.mlp(x), (h.clamp(min=0) ** 2) @ block.mlp.down.weight.t())
    torch.testing.assert_close(model.norm(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * model.norm.weight)


def test_the_number_of_parameters_is_the_closed_form() -> None:
    D, V, L, G, K = 32, 31, 2, 2, 8
    for tied in (False, True):
        model = gpt(kv_heads=G, mlp="swiglu", mlp_width=56, tied=tied)
        per_layer = 2 * D * D + 2 * D * G * K + 3 * D * 56 + 2 * D + 2 * K
        assert parameter_count(model) == V * D * (1 if tied else 2) + L * per_layer + D


# ------------------------------------------------------------------------------------------------ what a position may see


LAYOUTS = [
    ("gpt", {}),
    ("gpt", {"kv_heads": 2, "qk_norm": False, "mlp": "swiglu"}),
    ("gpt2", {}),
    ("gpt", {"window": 5, "head_size": 6, "qkv_bias": True}),
]


def model_of(layout: str, settings: dict[str, Any]) -> GPT:
    if layout == "gpt":
        return gpt(**settings)
    model = materialize(GPT2Config(layers=2, width=32, heads=4, vocab=31, seq_len=32), seed=3).eval()
    assert isinstance(model, GPT)
    return model


def leak(model: GPT, segments: Tensor | None, reset_positions: bool = False) -> tuple[float, bool]:
    """(largest gradient of document 2's loss w.r.t. document 1's embeddings, whether document 2's outputs moved when document 1 did)."""
    ids, cut = tokens(2, 24, 31), 11
    batch = Batch(ids, ids.roll(-1, 1), torch.ones(2, 24), segments)
    batch.weights[:, :cut] = 0
    seen: list[Tensor] = []

    def catch(_: Any, __: Any, out: Tensor) -> Tensor:
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    watch = model.embed.register_forward_hook(catch)
    original = model.positions, model.cos_TK if model.rope else None, model.sin_TK if model.rope else None
    if reset_positions and model.rope is not None:  # each document counts from zero, as some packers do instead of a mask
        at = torch.cat((torch.arange(cut), torch.arange(32 - cut)))
        model.cos_TK, model.sin_TK = model.cos_TK[at], model.sin_TK[at]
    try:
        total, _ = LanguageModelling().losses(model, batch)
        total.sum().backward()
        gradient = seen[0].grad
        assert gradient is not None
        other = ids.clone()
        other[:, :cut] = (other[:, :cut] + 7) % 31
        with torch.no_grad():
            moved = not torch.equal(model(ids, segments)[:, cut:], model(other, segments)[:, cut:])
    finally:
        watch.remove()
        if model.rope is not None:
            model.cos_TK, model.sin_TK = original[1], original[2]  # type: ignore[assignment]
    assert gradient[:, cut:].abs().max() > 0  # its own document it does see
    return gradient[:, :cut].abs().max().item(), moved


@pytest.mark.parametrize(("layout", "settings"), LAYOUTS)
def test_no_document_sees_its_neighbour(layout: str, settings: dict[str, Any]) -> None:
    segments = torch.tensor([[0] * 11 + [1] * 13]).expand(2, -1).to(torch.int32)
    assert leak(model_of(layout, settings), segments) == (0.0, False)


@pytest.mark.parametrize(("layout", "settings"), LAYOUTS[:2])
def test_the_probe_finds_the_leak_that_resetting_positions_leaves(layout: str, settings: dict[str, Any]) -> None:
    gradient, moved = leak(model_of(layout, settings), None, reset_positions=True)
    assert gradient > 1e-4 and moved


@pytest.mark.parametrize(("layout", "settings"), LAYOUTS)
def test_a_document_in_a_packed_row_is_as_if_alone(layout: str, settings: dict[str, Any]) -> None:
    model, ids = model_of(layout, settings), tokens(1, 24, 31)
    segments = torch.tensor([[0] * 11 + [1] * 13], dtype=torch.int32)
    with torch.no_grad():
        packed, alone = model(ids, segments)[:, 11:], model(ids[:, 11:])
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)  # rotary positions are relative, learned ones start anew


def test_no_position_sees_a_later_one() -> None:
    for layout, settings in LAYOUTS:
        model, ids = model_of(layout, settings), tokens(1, 16, 31)
        other = ids.clone()
        other[:, 9:] = (other[:, 9:] + 3) % 31
        with torch.no_grad():
            assert torch.equal(model(ids)[:, :9], model(other)[:, :9])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_added_to_the_logits_hides_what_the_mask_of_truth_values_hides(dtype: torch.dtype) -> None:
    """What a GPU is given for packed rows, against what a CPU is given: outputs and gradients."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 8, 4, generator=g).to(dtype).requires_grad_() for _ in range(3))
    mask = document_mask(torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 1]], dtype=torch.int32))
    found = []
    for given in (mask, as_bias(mask, dtype)):
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=given)
        found.append((y, *torch.autograd.grad(y.float().square().sum(), (q, k, v))))
    assert as_bias(mask, dtype).dtype == dtype
    for truth, bias in zip(*found, strict=True):
        torch.testing.assert_close(bias, truth, rtol=0, atol=0)


def test_positions_in_segments_count_from_each_start() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 1, 3], [5, 6, 6, 7, 7, 7]])
    assert positions_in_segments(segments).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 1, 0, 1, 2]]


# ------------------------------------------------------------------------------------------------ the cache


@pytest.mark.parametrize(("layout", "settings"), LAYOUTS)
@pytest.mark.parametrize("pieces", [[1] * 20, [7, 1, 1, 5, 6], [20]])
def test_what_comes_through_the_cache_equals_computing_all_of_it(layout: str, settings: dict[str, Any], pieces: list[int]) -> None:
    model, ids = model_of(layout, settings), tokens(3, 20, 31)
    cache = KVCache(model, 3, 32)
    with torch.no_grad():
        parts, at = [], 0
        for n in pieces:
            parts.append(model(ids[:, at : at + n], cache=cache))
            at += n
        torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=1e-5, atol=1e-5)
    assert cache.length == 20


def test_more_tokens_than_the_model_takes_is_an_error() -> None:
    with pytest.raises(ValueError, match="at most seq_len=32"):
        gpt()(tokens(1, 33, 31))


# ------------------------------------------------------------------------------------------------ weights


def test_loading_lists_what_is_missing_left_over_and_of_another_shape() -> None:
    model = gpt()
    state = dict(model.state_dict())
    state["extra.weight"] = torch.zeros(2)
    state["norm.weight"] = torch.zeros(5)
    del state["embed.weight"]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, state, where="there")
    for says in (
        "there is of another architecture",
        "missing embed.weight (31, 32)",
        "left over extra.weight (2,)",
        "norm.weight has shape (5,), the model's is (32,)",
    ):
        assert says in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_start_is_a_function_of_seed_and_name_alone() -> None:
    small, deep = gpt(layers=1), gpt(layers=3)
    shared = dict(small.named_parameters())
    for name, p in deep.named_parameters():
        if name in shared and not name.endswith(("out.weight", "down.weight")):  # these are scaled by the depth
            assert torch.equal(p, shared[name]), name
    torch.manual_seed(99)  # nor of torch's own generator
    again = gpt(layers=1)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    "config",
    [GPTConfig(layers=1, width=16, heads=2, vocab=31, seq_len=8, tied=True), GPT2Config(layers=1, width=16, heads=2, vocab=31, seq_len=8)],
)
def test_a_tied_head_is_the_embedding_after_it_was_built_too(config: GPTConfig | GPT2Config) -> None:
    model = materialize(config, seed=0)
    assert isinstance(model, GPT) and model.tied
    assert "head.weight" not in dict(model.named_parameters())
    assert model.embed.weight.std().item() == pytest.approx(0.02, rel=0.2)
    total, _ = LanguageModelling().loss(model, Batch(tokens(2, 8, 31), tokens(2, 8, 31), torch.ones(2, 8)))
    total.backward()  # type: ignore[no-untyped-call]
    assert model.head.weight.grad is model.embed.weight.grad is not None


def test_the_start_has_the_variances_that_it_says() -> None:
    model = materialize(GPTConfig(layers=2, width=256, heads=4, vocab=300, seq_len=8), seed=0)
    state = dict(model.named_parameters())
    assert state["blocks.0.attention.q.weight"].std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert state["blocks.0.mlp.down.weight"].std().item() == pytest.approx((4 * 256) ** -0.5 / math.sqrt(4), rel=0.02)
    assert state["embed.weight"].std().item() == pytest.approx(1.0, rel=0.02)
    assert state["head.weight"].abs().max() == 0  # so that the first loss is log V
    total, weight = LanguageModelling().loss(model, Batch(tokens(2, 8, 300), tokens(2, 8, 300), torch.ones(2, 8)))
    assert (total / weight).item() == pytest.approx(math.log(300), rel=1e-5)
