"""DPO: its loss is the closed form, and that of trl; pairs of weight zero count nowhere; gradients are finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tauon.config import parse
from tauon.metrics.preference import preference
from tauon.models import Model, ModelConfig, materialize
from tauon.tasks import DPO, Task, answer_log_probs
from tauon.types import Batch, DataSpec

SPEC = DataSpec(vocab=23, seq_len=10)


@pytest.fixture
def model() -> Model:
    net = materialize(parse(ModelConfig, {"kind": "gpt", "layers": 1, "width": 16, "heads": 2}).resolve(SPEC), seed=0)
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return net.eval()


def pairs(n: int = 6) -> Batch:
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 23, (n, 2, 11), generator=g)
    weights, segments = torch.zeros(n, 2, 10), torch.zeros(n, 2, 10, dtype=torch.int32)
    for i in range(n):
        for side in range(2):
            length = 5 + (i + side) % 5
            weights[i, side, 3:length] = 1
            segments[i, side, length:] = -1
    return Batch(tokens[..., :-1], tokens[..., 1:], weights, segments, reference=-10 + torch.randn(n, 2, generator=g))


def log_probs(model: Model, batch: Batch) -> torch.Tensor:
    """Row by row, token by token, without segments: what the definition says."""
    out = torch.zeros(len(batch), 2)
    for i in range(len(batch)):
        for side in range(2):
            n = int((batch.segments[i, side] >= 0).sum())  # type: ignore[index]
            logits = model.logits(model(batch.inputs[i, side, :n][None]))[0]  # type: ignore[operator]
            for t in range(n):
                if batch.weights[i, side, t] > 0:
                    out[i, side] += F.log_softmax(logits[t].float(), -1)[batch.targets[i, side, t]]
    return out


@torch.no_grad()
def test_log_probabilities_are_those_of_each_token_of_the_answer(model: Model) -> None:
    torch.testing.assert_close(answer_log_probs(model, pairs()), log_probs(model, pairs()), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (0.5, 0.2)])
def test_the_loss_is_the_closed_form(model: Model, beta: float, smoothing: float) -> None:
    """-(1 - e) log s(m) - e log s(-m), m = beta ((log p_w - log r_w) - (log p_l - log r_l)): Rafailov et al. 2023, eq. 7; trl's
    `DPOTrainer.dpo_loss` writes the same as -logsigmoid(beta * logits) * (1 - label_smoothing) - logsigmoid(-beta * logits) * label_smoothing."""
    batch = pairs()
    task = DPO(beta=beta, label_smoothing=smoothing)
    ours, weights = task.losses(model, batch)
    p, r = log_probs(model, batch), batch.reference
    assert r is not None
    for i in range(len(batch)):
        logits = float((p[i, 0] - r[i, 0]) - (p[i, 1] - r[i, 1]))
        m = beta * logits
        closed = (1 - smoothing) * math.log1p(math.exp(-m)) + smoothing * math.log1p(math.exp(m))
        assert float(ours[i]) == pytest.approx(closed, rel=1e-4)
    logits_B = (p[:, 0] - p[:, 1]) - (r[:, 0] - r[:, 1])
    trl = -F.logsigmoid(beta * logits_B) * (1 - smoothing) - F.logsigmoid(-beta * logits_B) * smoothing
    torch.testing.assert_close(ours, trl, rtol=1e-4, atol=1e-5)
    assert weights.tolist() == [1.0] * len(batch)


@torch.no_grad()
def test_at_the_reference_the_loss_is_log_two_and_accuracy_half(model: Model) -> None:
    from dataclasses import replace

    batch = pairs()
    batch = replace(batch, reference=answer_log_probs(model, batch))
    loss, weight = DPO().loss(model, batch)
    assert float(loss / weight) == pytest.approx(math.log(2))
    seen = DPO().observe(model, batch)
    assert float(seen["reward_margin"][0]) == pytest.approx(0.0, abs=1e-6)
    assert float(seen["reward_accuracy"][0] / seen["reward_accuracy"][1]) == 0.5


def test_rows_of_weight_zero_count_nowhere(model: Model) -> None:
    from dataclasses import replace

    batch = pairs()
    weights = batch.weights.clone()
    weights[4:] = 0
    short = replace(batch, weights=weights)
    task: Task = DPO()
    a, b = task.loss(model, short), task.loss(model, batch.rows(0, 4))
    torch.testing.assert_close(a, b)
    assert task.weight(short) == 4
    assert DPO().observe(model, short)["reward_margin"][1] == 4


def test_metrics_are_means_over_pairs() -> None:
    import numpy as np

    rewards = np.array([[1.0, 0.0], [0.5, 1.5], [2.0, 2.0]])
    found = preference(rewards, np.array([0.1, 0.2, 0.3]), confidence=0.95, resamples=200, seed=0)["metrics"]
    assert found["reward_accuracy"].value == 0.5
    assert found["reward_margin"].value == pytest.approx(0.0)
    assert found["loss"].value == pytest.approx(0.2)
