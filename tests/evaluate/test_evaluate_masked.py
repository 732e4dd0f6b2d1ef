"""Metrics of hidden tokens are their formulas, and do not depend on how examples are batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tauon.metrics.masked import masked_language_modelling
from tauon.models import BERTConfig, materialize
from tauon.tasks import MaskedLanguageModelling
from tauon.testing import tiny_batch
from tauon.types import DataSpec

HOW = {"confidence": 0.95, "resamples": 200, "seed": 0}


def test_loss_perplexity_and_accuracy_are_their_formulas() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, 50)
    nll, correct = rng.random(50) * tokens, rng.integers(0, tokens + 1)
    found = masked_language_modelling(nll, tokens, correct, **HOW)
    metrics = found["metrics"]
    assert found["primary"] == "accuracy" and found["counts"] == {"sequences": 50, "hidden_tokens": int(tokens.sum())}
    assert metrics["loss"].value == pytest.approx(nll.sum() / tokens.sum())
    assert metrics["perplexity"].value == pytest.approx(np.exp(nll.sum() / tokens.sum()))
    assert metrics["accuracy"].value == pytest.approx(correct.sum() / tokens.sum())
    for m in metrics.values():
        assert m.low < m.value < m.high
    broken = masked_language_modelling(np.full(3, np.nan), np.ones(3), np.ones(3), **HOW)
    assert broken["metrics"]["loss"].value is None and "not finite" in broken["notes"][0]


def test_the_loss_is_the_cross_entropy_of_hidden_tokens_and_only_theirs() -> None:
    spec = DataSpec(vocab=31, seq_len=12)
    model = materialize(BERTConfig(layers=1, width=16, heads=2, dropout=0.0).resolve(spec), seed=0).eval()
    batch, task = tiny_batch(spec, masked=True), MaskedLanguageModelling()
    with torch.no_grad():
        model.head.bias.normal_()  # type: ignore[union-attr,operator]
        logits = model.logits(model(batch.inputs))  # type: ignore[operator]
        at = batch.weights > 0
        total, weight = task.loss(model, batch)
        assert float(total / weight) == pytest.approx(float(torch.nn.functional.cross_entropy(logits[at], batch.targets[at])), rel=1e-5)
        found = task.predict(model, batch)
        assert int(found["correct"].sum()) == int((logits.argmax(-1) == batch.targets)[at].sum())
        assert torch.equal(found["tokens"], at.sum(1))


def test_a_batch_without_a_hidden_token_still_has_gradients() -> None:
    spec = DataSpec(vocab=31, seq_len=12)
    model = materialize(BERTConfig(layers=1, width=16, heads=2, dropout=0.0).resolve(spec), seed=0)
    batch = tiny_batch(spec, masked=True)
    batch.weights.zero_()
    total, _ = MaskedLanguageModelling().loss(model, batch)
    total.backward()
    assert total == 0 and all(p.grad is not None and not p.grad.any() for p in model.parameters())
