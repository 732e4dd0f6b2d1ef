"""Rates by layer and by name: each parameter has the product, whatever the optimizer; decay and frozen parameters are as before."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from tauon.config import parse, registered
from tauon.errors import RecipeError
from tauon.models import BERTConfig, GPTConfig, MLPConfig, materialize
from tauon.optim import OptimConfig, scale_rates

SIZES: dict[str, Any] = {"layers": 3, "width": 16, "heads": 2, "vocab": 11, "seq_len": 8}


def rates(model: Any, optim: str, **settings: Any) -> dict[str, tuple[float, float]]:
    """(rate as a share of the optimizer's, weight decay) of each parameter."""
    config = parse(OptimConfig, {"kind": optim, "lr": 0.5, **settings})
    built = config.build(model)
    before = {id(p): (g["peak_lr"], g["weight_decay"]) for g in built.param_groups for p in g["params"]}
    scale_rates(built, model, model.layer_of, config.layer_decay, config.lr_scale)
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)]: (g["peak_lr"] / before[id(p)][0], g["weight_decay"]) for g in built.param_groups for p in g["params"]}
    assert all(g["lr"] == g["peak_lr"] for g in built.param_groups)
    assert {n: d for n, (_, d) in found.items()} == {names[i]: d for i, (_, d) in before.items()}
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    return found


@pytest.mark.parametrize("optim", sorted(set(registered("optim")) - {"adamw8bit", "gd"}))
def test_each_layer_has_its_share_of_the_next_ones_rate(optim: str) -> None:
    model = materialize(GPTConfig(**SIZES), seed=0)
    found = rates(model, optim, layer_decay=0.5, lr_scale={"*.q.*": 3.0, "blocks.2.attention.q.*": 10.0})
    want = {"embed.weight": 0.5**4, "blocks.0.mlp.up.weight": 0.5**3, "blocks.2.mlp.up.weight": 0.5, "norm.weight": 1.0, "head.weight": 1.0}
    want |= {"blocks.1.attention.q.weight": 3 * 0.25, "blocks.2.attention.q.weight": 10 * 0.5}
    for name, share in want.items():
        assert found[name][0] == pytest.approx(share), name


def test_an_encoder_counts_its_embeddings_as_one_layer() -> None:
    model = materialize(BERTConfig(**SIZES, outputs=3), seed=0)
    found = rates(model, "adamw", layer_decay=0.9)
    for name in ("embed.weight", "positions.weight", "types.weight", "embed_norm.weight"):
        assert found[name][0] == pytest.approx(0.9**4)
    assert found["pooler.weight"][0] == found["head.bias"][0] == 1.0


def test_frozen_parameters_are_in_no_group() -> None:
    model = materialize(GPTConfig(**SIZES), seed=0)
    model.embed.weight.requires_grad_(False)  # type: ignore[union-attr,operator]
    assert "embed.weight" not in rates(model, "adamw", layer_decay=0.5)


def test_what_cannot_be_told_apart_is_refused() -> None:
    model: nn.Module = materialize(MLPConfig(inputs=3, outputs=2), seed=0)
    with pytest.raises(RecipeError, match="optim.layer_decay: is set, but this model has no sequence of blocks"):
        rates(model, "adamw", layer_decay=0.5)
    with pytest.raises(RecipeError, match="optim.lr_scale: 'nothing' matches no trainable parameter"):
        parse(OptimConfig, {"kind": "adamw", "lr_scale": {"nothing": 2.0}}).refuse_model(model)
    with pytest.raises(RecipeError, match="optim.embed_lr: is set, but this model has no separate embedding"):
        parse(OptimConfig, {"kind": "muon", "embed_lr": 0.1}).refuse_model(model)
