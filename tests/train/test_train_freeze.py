"""What is frozen stays: parameters by name, tied ones by either name, and the statistics of batch norms that are frozen whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tauon.errors import RecipeError, TrainingError
from tauon.models import GPTConfig, materialize
from tauon.train import freeze, trainable
from tauon.train.hooks.first_step import _judged


def test_patterns_freeze_by_name() -> None:
    model = materialize(GPTConfig(layers=2, width=16, heads=2, vocab=11, seq_len=8), seed=0)
    whole = trainable(model)
    freeze(model, ["embed.*", "blocks.0.*"])
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(("embed.", "blocks.0."))}
    assert trainable(model) == whole - sum(p.numel() for p in model.parameters() if not p.requires_grad)


def test_a_tied_weight_is_frozen_by_either_name() -> None:
    model = materialize(GPTConfig(layers=1, width=16, heads=2, vocab=11, seq_len=8, tied=True), seed=0)
    freeze(model, ["head.weight"])
    assert not model.embed.weight.requires_grad  # type: ignore[union-attr]


def test_a_frozen_batch_norm_keeps_its_statistics_and_others_do_not() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    freeze(model, ["0.*", "1.*"])
    model.train()
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    before = model[1].running_mean.clone(), model[3].running_mean.clone()
    model(x)
    assert torch.equal(model[1].running_mean, before[0]) and not torch.equal(model[3].running_mean, before[1])
    assert not model[1].training and model[3].training


def test_what_freezes_nothing_or_everything_is_refused() -> None:
    with pytest.raises(RecipeError, match="'odd' matches no parameter. Available: weight, bias"):
        freeze(nn.Linear(2, 2), ["odd"])
    with pytest.raises(RecipeError, match="freezes all parameters"):
        freeze(nn.Linear(2, 2), ["*"])


def test_the_judge_of_the_first_step() -> None:
    a, b = torch.tensor(1), torch.tensor(2)
    found = _judged([("w", True), ("z", True), ("f", False)], [a, a, a], [b, a, a], [None, "its gradient is zero", None])
    assert (found.moved, found.frozen, found.still) == (1, 1, {"z": "its gradient is zero"})
    for trains, new, reason, says in (
        (False, b, None, "w is frozen, but it changed"),
        (True, a, None, r"did not change \(it has a gradient\)"),
        (True, a, "it is not in the optimizer", r"w should train, but it did not change \(it is not in the optimizer\)"),
        (True, a, "no gradient reaches it", r"w should train, but it did not change \(no gradient reaches it\)"),
    ):
        with pytest.raises(TrainingError, match=says):
            _judged([("w", trains)], [a], [new], [reason])
