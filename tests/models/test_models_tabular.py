"""Models of tables: published parameter counts, and what torch's own layers compute from the same weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tauon.config import parse
from tauon.errors import RecipeError
from tauon.models import FTTransformerConfig, ModelConfig, WideAndDeepConfig, materialize, parameter_count
from tauon.testing import tiny_batch
from tauon.types import DataSpec

MIXED = DataSpec(input_shape=(6,), outputs=3, labels=("a", "b", "c"), categories=(0, 4, 0, 3, 0, 2))


def rtdl_count(numbers: int, codes: tuple[int, ...], outputs: int, d: int = 192, layers: int = 3) -> int:
    """Parameters of rtdl's FTTransformer (Gorishniy et al. 2021), layer by layer, from its code's shapes."""
    hidden = int(d * 4 / 3)
    tokens = numbers * d + sum(codes) * d + (numbers + len(codes)) * d + d  # weights, embeddings, biases, CLS
    attention = 4 * (d * d + d)
    mlp = (d * 2 * hidden + 2 * hidden) + (hidden * d + d)
    norms = 2 * layers - 1  # none before the first attention
    return tokens + layers * (attention + mlp) + norms * 2 * d + 2 * d + d * outputs + outputs


@pytest.mark.parametrize(
    ("numbers", "codes", "outputs"),
    # California Housing: 8 numbers; Adult: 6 numbers and 8 columns of categories; categories alone
    [(8, (), 1), (6, (9, 16, 7, 15, 6, 5, 2, 42), 1), (0, (4, 3), 3)],
)
def test_ft_transformer_has_rtdls_parameters(numbers: int, codes: tuple[int, ...], outputs: int) -> None:
    categories = (*(0 for _ in range(numbers)), *codes) if codes else ()
    spec = DataSpec(input_shape=(numbers + len(codes),), outputs=outputs, categories=categories)
    assert parameter_count(FTTransformerConfig().resolve(spec).build_on_meta()) == rtdl_count(numbers, codes, outputs)


def test_ft_transformer_is_torchs_attention_over_column_tokens() -> None:
    model = materialize(FTTransformerConfig(width=16, heads=4, layers=2).resolve(MIXED), seed=0).eval()
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
        x = tiny_batch(MIXED, rows=5).inputs
        tokens = [model.answer.expand(5, 1, -1)]
        for i, j in enumerate((0, 2, 4)):
            tokens.append((x[:, j, None] * model.weight[i] + model.column_bias[i])[:, None])
        for i, j in enumerate((1, 3, 5)):
            tokens.append((model.tables[i].weight[x[:, j].long()] + model.column_bias[3 + i])[:, None])
        h = torch.cat(tokens, 1)
        for block in model.blocks:
            a = h if block.attention_norm is None else F.layer_norm(h, (16,), block.attention_norm.weight, block.attention_norm.bias)
            weights = [torch.cat([getattr(m, n) for m in (block.q, block.k, block.v)]) for n in ("weight", "bias")]
            theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
            theirs.load_state_dict(
                {"in_proj_weight": weights[0], "in_proj_bias": weights[1], "out_proj.weight": block.o.weight, "out_proj.bias": block.o.bias}
            )
            h = h + theirs.eval()(a, a, a, need_weights=False)[0]
            u = block.up(F.layer_norm(h, (16,), block.mlp_norm.weight, block.mlp_norm.bias))
            h = h + block.down(u[..., :21] * F.relu(u[..., 21:]))
        expected = model.head(F.relu(model.norm(h[:, 0])))
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_the_wide_part_is_a_linear_model_of_one_hot_columns_and_their_products() -> None:
    config = WideAndDeepConfig(hidden=(8,), crosses=True).resolve(MIXED)
    model = materialize(config, seed=0).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(generator=g) if name.startswith("wide_") else None
        x = tiny_batch(MIXED, rows=7).inputs
        hot = [F.one_hot(x[:, j].long(), n).float() for j, n in ((1, 4), (3, 3), (5, 2))]
        wide = x[:, [0, 2, 4]] @ model.wide_numbers.weight.t()
        wide = wide + sum(h @ t.weight for h, t in zip(hot, model.wide_codes, strict=True))
        for (a, b), table in zip(((0, 1), (0, 2), (1, 2)), model.wide_pairs, strict=True):
            wide = wide + torch.einsum("ni,nj->nij", hot[a], hot[b]).flatten(1) @ table.weight
        torch.testing.assert_close(model(x), wide, rtol=1e-5, atol=1e-5)  # the deep part's head starts at zero
    deep = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("wide_"))
    widths = [round(1.6 * n**0.56) for n in (4, 3, 2)]
    assert deep == sum(n * w for n, w in zip((4, 3, 2), widths, strict=True)) + (3 + sum(widths)) * 8 + 8 + 8 * 3 + 3
    assert parameter_count(model) == deep + 3 * (3 + 9 + 12 + 8 + 6)


def test_mlp_embeds_codes_and_knows_nothing_of_their_size() -> None:
    model = materialize(parse(ModelConfig, {"kind": "mlp", "hidden": [8], "embedding": 5}).resolve(MIXED), seed=0)
    assert [tuple(p.shape) for p in model.columns.tables.parameters()] == [(4, 5), (3, 5), (2, 5)]
    assert model.layers[0].in_features == 3 + 15
    plain = parse(ModelConfig, {"kind": "mlp", "hidden": [8]}).resolve(DataSpec(input_shape=(4,), outputs=2))
    assert [n for n, _ in plain.build().named_parameters()] == ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]


@pytest.mark.parametrize("kind", ["logistic", "linear"])
def test_codes_are_no_quantities(kind: str) -> None:
    with pytest.raises(RecipeError, match=rf"{kind} reads numbers, and 3 columns hold codes.*data\.table\.categories: onehot"):
        parse(ModelConfig, {"kind": kind}).resolve(MIXED)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(RecipeError, match="model.categories"):
        parse(ModelConfig, {"kind": "mlp", "categories": [0, 0, 0, 0, 0, 9]}).resolve(MIXED)
    with pytest.raises(RecipeError, match="heads: 5 heads do not divide width 16"):
        parse(ModelConfig, {"kind": "ft-transformer", "width": 16, "heads": 5})
    with pytest.raises(RecipeError, match="made of tokens"):
        FTTransformerConfig().resolve(DataSpec(vocab=9, seq_len=4))
