"""Membership attacks: ROC and area are scikit-learn's, likelihood ratios SciPy's; what attackers read off a model is what it says."""

from __future__ import annotations

import math
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tauon.config import parse
from tauon.models import ModelConfig, materialize
from tauon.privacy.audit import Signals, attack_scores, difficulty_calibrated, epsilon_of_rates, lira, roc_points, score_attack, statistic
from tauon.tasks import Classification, LanguageModelling, Regression
from tauon.types import Batch


def shifted(n: int, m: int, by: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=n) + by, rng.normal(size=m)


def test_roc_and_area_are_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    members, others = shifted(300, 500, 0.7)
    members, others = np.round(members, 1), np.round(others, 1)  # ties
    truth, scores = np.r_[np.ones(300), np.zeros(500)], np.r_[members, others]
    fpr, tpr, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    ours = roc_points(members, others)
    assert ours[0] == pytest.approx(fpr) and ours[1] == pytest.approx(tpr)
    found = score_attack("loss", "", members, others)
    assert found.auc == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert found.auc_low < found.auc < found.auc_high
    assert found.accuracy == pytest.approx(((tpr - fpr) / 2 + 0.5).max())
    assert set(found.roc) <= {(float(a), float(b)) for a, b in zip(fpr, tpr, strict=True)} and len(found.roc) <= 200


def test_the_interval_of_the_area_is_evaluations() -> None:
    """DeLong's, as evaluation has it for a classifier of two classes."""
    from tauon.metrics.classification import classification

    members, others = shifted(120, 200, 0.9, seed=2)
    p = 1 / (1 + np.exp(-np.r_[others, members]))
    found = classification(
        np.stack([1 - p, p], 1), np.r_[np.zeros(200), np.ones(120)].astype(np.int64), ("out", "in"), confidence=0.95, resamples=100, seed=0
    )["metrics"]["roc_auc"]
    ours = score_attack("a", "", members, others)
    assert (ours.auc, ours.auc_low, ours.auc_high) == pytest.approx((found.value, found.low, found.high))


def test_the_rate_at_few_false_positives_counts_exactly_and_covers_the_truth() -> None:
    members, others = shifted(4000, 20_000, 2.0, seed=3)
    found = score_attack("a", "", members, others).rates
    for rate in found:
        assert rate.false_positives <= rate.fpr * 20_000 and rate.reachable
        threshold = np.sort(others)[::-1][rate.false_positives]
        assert rate.value == pytest.approx((members > threshold).mean())
        # of normal scores the truth is known: Phi(2 - z_fpr)
        truth = 1 - torch.special.ndtr(torch.tensor(float(-torch.special.ndtri(torch.tensor(rate.fpr, dtype=torch.float64)) - 2)))
        assert rate.low - 0.03 < float(truth) < rate.high + 0.03
    few = score_attack("a", "", members, others[:200])
    assert not few.rates[0].reachable and few.rates[0].false_positives == 0 and "too few" in few.notes[0]


def test_epsilon_of_rates_is_below_the_truth_of_randomised_response() -> None:
    epsilon, n = 1.0, 3000
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    rng = np.random.default_rng(1)
    bounds = [epsilon_of_rates(rng.binomial(n, p), n, rng.binomial(n, 1 - p), n) for _ in range(40)]
    assert sum(b > epsilon for b in bounds) <= 2 + 5 and np.median(bounds) > 0.85
    assert epsilon_of_rates(500, 1000, 500, 1000) == 0.0


def test_groups_are_judged_by_themselves() -> None:
    members, others = shifted(400, 400, 1.5)
    odd = np.arange(400) % 2 == 1
    members[~odd] -= 1.5
    found = score_attack("a", "", members, others, groups={"odd": (odd, odd), "even": (~odd, ~odd), "none": (odd & False, odd)})
    by = {row["name"]: row for row in found.slices}
    assert set(by) == {"odd", "even"} and by["odd"]["auc"] > 0.8 and by["even"]["auc_low"] < 0.5 < by["even"]["auc_high"]


# ------------------------------------------------------------------------------------------------ LiRA


def references(n: int, r: int, *, effect: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Examples of very different difficulty: (target, reference, included, members)."""
    rng = np.random.default_rng(seed)
    difficulty, spread = rng.normal(size=n) * 4, np.exp(rng.normal(size=n) * 0.3)
    included = np.argsort(rng.random((n, r)), 1) < r // 2
    draw = difficulty[:, None] + spread[:, None] * (rng.normal(size=(n, r)) + effect * included)
    member = rng.random(n) < 0.5
    return difficulty + spread * (rng.normal(size=n) + effect * member), draw, included, member


def test_scores_are_scipys_log_likelihood_ratios() -> None:
    stats = pytest.importorskip("scipy.stats")
    target, reference, included, _ = references(40, 64, effect=2.0)
    ours, offline = lira(target, reference, included, mode="online"), lira(target, reference, included, mode="offline")
    for i in range(40):
        inside, outside = reference[i, included[i]], reference[i, ~included[i]]
        at = stats.norm.logpdf(target[i], inside.mean(), inside.std(ddof=1)) - stats.norm.logpdf(
            target[i], outside.mean(), outside.std(ddof=1)
        )
        assert ours[i] == pytest.approx(at)
        assert stats.norm.cdf(offline[i]) == pytest.approx(stats.norm.cdf(target[i], outside.mean(), outside.std(ddof=1)))


@pytest.mark.parametrize("models", [8, 64])
def test_reference_models_find_members_that_the_loss_hides(models: int) -> None:
    target, reference, included, member = references(4000, models, effect=2.5)
    plain = score_attack("loss", "", target[member], target[~member])
    ways = {
        "online": lira(target, reference, included),
        "offline": lira(target, reference, included, mode="offline"),
        "difference": difficulty_calibrated(target, reference, included),
    }
    for name, scores in ways.items():
        found = score_attack(name, "", scores[member], scores[~member])
        assert found.auc > plain.auc + 0.2 and found.rates[0].value > plain.rates[0].value, name


def test_too_few_reference_models_are_refused() -> None:
    target, reference, included, _ = references(10, 4, effect=1.0)
    with pytest.raises(ValueError, match="mode online needs at least one"):
        lira(target, reference, included & False, mode="online")
    assert np.isfinite(lira(target, reference, included & False, mode="offline")).all()


# ------------------------------------------------------------------------------------------------ signals


def test_the_logit_of_the_right_class_does_not_round_away() -> None:
    """log p - log(1 - p), where 1 - p is far below float32's step next to 1."""
    logits = torch.tensor([[0.0, 40.0, -3.0], [5.0, 5.0, 5.0], [60.0, 0.0, 0.0]])
    model: Any = torch.nn.Identity()
    batch = Batch(logits, torch.tensor([1, 2, 1]), torch.ones(3))
    found = Signals(Classification()).predict(model, batch)
    wide = logits.double()
    expected = [wide[0, 1] - torch.logsumexp(wide[0, [0, 2]], 0), wide[1, 2] - torch.logsumexp(wide[1, [0, 1]], 0)]
    assert found["logit"][:2].tolist() == pytest.approx([float(e) for e in expected], rel=1e-6)
    assert found["logit"][2] < -50 and torch.isfinite(found["logit"]).all()
    assert found["loss"][:2].tolist() == pytest.approx(F.cross_entropy(logits, batch.targets, reduction="none")[:2].tolist(), rel=1e-5)
    numbers = {k: v.numpy() for k, v in found.items()}
    assert set(attack_scores(numbers)) == {"loss"}
    sure = Signals(Classification()).predict(model, Batch(torch.tensor([[30.0, 0.0], [31.0, 0.0]]), torch.tensor([0, 0]), torch.ones(2)))
    assert sure["loss"].tolist() == [0.0, 0.0]  # float32 knows no difference
    assert np.diff(attack_scores({k: v.numpy() for k, v in sure.items()})["loss"][1]) == pytest.approx(1.0, rel=1e-5)


def test_losses_of_other_tasks_are_their_means() -> None:
    model: Any = torch.nn.Identity()
    found = Signals(Regression()).predict(model, Batch(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.5])))
    assert found["loss"].tolist() == pytest.approx([1.0, 4.0])
    assert statistic({"loss": np.array([1.0, 4.0])}).tolist() == [-1.0, -4.0]


def test_a_language_model_is_read_token_by_token() -> None:
    config = parse(ModelConfig, {"kind": "gpt", "layers": 1, "width": 16, "heads": 2, "vocab": 20, "seq_len": 12})
    model: Any = materialize(config, seed=1)
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.add_(torch.randn(p.shape, generator=g) * 0.3)
    tokens = torch.randint(0, 20, (3, 13), generator=g)
    weights = torch.ones(3, 12)
    weights[1, 7:] = 0
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights)
    decode = SimpleNamespace(text=lambda ids: " ".join(map(str, ids)))
    with torch.no_grad():
        found = Signals(LanguageModelling(), decode.text).predict(model, batch)
        log_p = model.logits(model(batch.inputs)).float().log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    for row, n in ((0, 12), (1, 7), (2, 12)):
        own = -log_p[row, :n]
        assert float(found["loss"][row]) == pytest.approx(float(own.mean()), rel=1e-5)
        worst = own.sort(descending=True).values[: math.ceil(0.2 * n)]
        assert float(found["min_k"][row]) == pytest.approx(float(worst.mean()), rel=1e-5)
        size = len(zlib.compress(decode.text(batch.targets[row, :n].tolist()).encode()))
        assert float(found["zlib"][row]) == pytest.approx(float(own.sum()) / size, rel=1e-5)
    assert set(attack_scores({k: v.numpy() for k, v in found.items()})) == {"loss", "min_k", "zlib"}
