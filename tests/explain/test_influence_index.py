"""The index on disk, its answers, suspicious examples, and the linear datamodelling score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from influence_samples import Rows, assert_same_state, blobs, fit, one_by_one, perceptron, state_of

from tauon.errors import CheckpointError, DataError, RunError
from tauon.explain.influence import (
    EkFac,
    Index,
    IndexOf,
    TracIn,
    Trak,
    build_index,
    dominance,
    lds,
    self_influence,
    suspicious,
)
from tauon.explain.influence import index as index_module
from tauon.explain.influence.encoder import products
from tauon.explain.influence.gradients import loss_value
from tauon.explain.influence.lds import rank_correlation
from tauon.tasks.arrays import Classification

CLASSES = Classification()
METHODS = [TracIn(rates=(0.5,)), Trak(columns=16), EkFac(columns=30)]


def about(data: Rows, fingerprint: str = "data", seed: int = 0) -> IndexOf:
    return IndexOf([perceptron((6, 5, 3), seed=seed)], CLASSES, fingerprint)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
def test_scores_from_disk_equal_those_in_memory_and_the_model_stays_as_it_was(method: Any, tmp_path: Path, monkeypatch: Any) -> None:
    data, queries = blobs(50), blobs(4, seed=1).all()
    of = about(data)
    before = state_of(of.models[0])
    monkeypatch.setattr(index_module, "PART_BYTES", 1)  # a part for each batch
    seen: list[tuple[int, int]] = []
    built = build_index(tmp_path / "index", of, data, method, batch=16, progress=lambda done, total: seen.append((done, total)))
    assert len(built.parts) == 4 and len(built) == 50 and seen[-1] == (50, 50)
    encoder = method.fit(of.models, CLASSES, data)
    expected = products(encoder.encode(queries), encoder.encode(data.all()), encoder.blocks) * encoder.importance(data.all())
    opened = Index.open(tmp_path / "index", of)
    for index in (built, opened):
        np.testing.assert_allclose(index.scores(queries), expected.numpy(), rtol=1e-4, atol=1e-6)
    own = np.diagonal(opened.scores(data.all()))
    np.testing.assert_allclose(opened.self_influence(), own, rtol=1e-4, atol=1e-6)
    assert_same_state(before, state_of(of.models[0]))
    assert not list((tmp_path / "index").glob("*.p*kl*"))


def test_a_build_that_was_stopped_continues_and_gives_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    data = blobs(50)
    of, method = about(data), EkFac(columns=30)
    monkeypatch.setattr(index_module, "PART_BYTES", 1)

    def stop(done: int, total: int) -> None:
        if (done, total) == (48, 50):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path / "a", of, data, method, batch=16, progress=stop)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a").glob("part-*.npy")}
    assert sorted(kept) == ["part-00000.npy", "part-00001.npy"]
    with pytest.raises(DataError, match="no finished influence index"):
        Index.open(tmp_path / "a", of)
    resumed = build_index(tmp_path / "a", of, data, method, batch=16)
    assert all((tmp_path / "a" / name).stat().st_mtime_ns == t for name, t in kept.items())
    undisturbed = build_index(tmp_path / "b", of, data, method, batch=16)
    queries = blobs(4, seed=1).all()
    assert np.array_equal(resumed.scores(queries), undisturbed.scores(queries))
    assert build_index(tmp_path / "a", of, data, method, batch=16).folder == tmp_path / "a"


def test_an_index_of_other_weights_or_other_data_or_other_settings_is_refused(tmp_path: Path) -> None:
    data = blobs(20)
    of = about(data)
    build_index(tmp_path / "i", of, data, TracIn())
    with pytest.raises(CheckpointError, match="of other weights"):
        Index.open(tmp_path / "i", about(data, seed=1))
    with pytest.raises(DataError, match="is an index of data data, and the run's data are other"):
        Index.open(tmp_path / "i", about(data, "other"))
    with pytest.raises(RunError, match="holds an influence index with other config"):
        build_index(tmp_path / "i", of, data, TracIn(columns=7))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(RunError, match="is not empty and holds no influence index"):
        build_index(tmp_path / "full", of, data, TracIn())
    np.save(tmp_path / "i" / "part-00000.npy", np.zeros((3, 3), np.float32))
    with pytest.raises(DataError, match="Build the index again"):
        Index.open(tmp_path / "i", of)


def test_the_most_influential_are_in_order_with_both_signs_and_the_meaning_beside_them(tmp_path: Path) -> None:
    data, queries = blobs(80), blobs(6, seed=1).all()
    of = IndexOf([fit(perceptron((6, 5, 3)), data, steps=20)], CLASSES, "data")
    index = build_index(tmp_path / "i", of, data, EkFac())
    scores = index.scores(queries)
    answer = index.most_influential(queries, k=5)
    for q in range(6):
        assert answer.helped_scores[q].tolist() == sorted(scores[q], reverse=True)[:5]
        assert answer.hurt_scores[q].tolist() == sorted(scores[q])[:5]
        assert np.array_equal(scores[q, answer.helped[q]], answer.helped_scores[q])
    shown = json.loads(json.dumps(answer.to_json()))
    assert shown["method"] == "ekfac" and "Positive: without this training example the query's loss would be higher" in shown["meaning"]
    assert len(shown["queries"]) == 6 and all(e["score"] > 0 for e in shown["queries"][0]["helped"])
    relative = index.most_influential(queries, k=5, relative=True)
    expected = scores / np.maximum(index.lengths(), 1e-30)
    assert np.allclose(relative.helped_scores, -np.sort(-expected, axis=1)[:, :5]) and "only the order has a meaning" in relative.meaning
    with pytest.raises(DataError, match="k is 0"):
        index.most_influential(queries, k=0)


def test_an_example_that_leads_for_every_query_is_reported_and_relative_influence_lowers_it(tmp_path: Path) -> None:
    data = blobs(200)
    data.x[7] = data.x[7] * 60  # a broken measurement: a gradient much larger than any other
    model = perceptron((6, 3))
    queries = blobs(30, seed=1).all()
    answer = build_index(tmp_path / "i", IndexOf([model], CLASSES, "data"), data, TracIn()).most_influential(queries)
    assert answer.dominance.found and answer.dominance.examples[0] == 7 and answer.dominance.largest_share > 0.8
    assert "Training example 7 is among the 10 most influential of" in answer.to_json()["dominance"]["message"]
    assert answer.dominance.expected_share == pytest.approx(10 / 200)
    plain = dominance(np.random.default_rng(0).normal(size=(40, 200)))
    assert not plain.found and plain.examples == ()
    assert "message" not in plain.to_json()


def test_self_influence_is_the_squared_norm_of_the_gradient() -> None:
    data, model = blobs(9), perceptron((6, 5, 3))
    gradients = one_by_one(model, loss_value(CLASSES), data.all())
    expected = torch.cat([g.flatten(1) for g in gradients.values()], 1).square().sum(1)
    np.testing.assert_allclose(self_influence(model, CLASSES, data, batch=4), expected, rtol=1e-4)


def test_flipped_labels_are_the_most_suspicious_on_an_early_checkpoint() -> None:
    data = blobs(400, spread=0.7)
    flipped = np.random.default_rng(0).choice(400, 20, replace=False)
    data.y[flipped] = (data.y[flipped] + 1) % 3
    models = [fit(perceptron((6, 32, 3)), data, steps=n, lr=0.1) for n in (10, 20, 40)]
    before = state_of(models[0])
    seen: list[tuple[int, int]] = []
    ranked = suspicious(models, CLASSES, data, progress=lambda done, total: seen.append((done, total)))
    assert_same_state(before, state_of(models[0]))
    assert len(set(ranked.top(0.1)) & set(flipped)) >= 19 and seen[-1] == (1200, 1200)
    assert ranked.by_checkpoint.shape == (3, 400) and 0 <= ranked.suspicion.min() <= ranked.suspicion.max() <= 1
    shown = json.loads(json.dumps(ranked.to_json(5)))
    assert [e["example"] for e in shown["examples"]] == ranked.order[:5].tolist() and "look before you remove one" in shown["meaning"]
    with pytest.raises(DataError, match=r"train.keep_early=5"):
        suspicious([], CLASSES, data)


# ---------------------------------------------------------------------------------------------- linear datamodelling score


def test_rank_correlation_equals_scipys_with_ties() -> None:
    g = np.random.default_rng(0)
    x, y = g.integers(0, 5, (30, 4)).astype(float), g.normal(size=(30, 4))
    y[:, 1] = np.round(y[:, 1])
    expected = [scipy.stats.spearmanr(x[:, q], y[:, q]).statistic for q in range(4)]
    np.testing.assert_allclose(rank_correlation(x, y), expected, rtol=1e-12)
    assert rank_correlation(np.ones((5, 1)), np.arange(5.0)[:, None]).tolist() == [0.0]


def additive(noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs that are sums of true effects, and noise of retraining."""
    g = np.random.default_rng(seed)
    effects, subsets = g.normal(size=(20, 100)), g.random((60, 100)) < 0.5
    outputs = subsets @ effects.T + noise * g.normal(size=(2, 60, 20))
    return effects, subsets, outputs


def test_the_true_effects_reach_the_ceiling_and_chance_is_zero() -> None:
    effects, subsets, outputs = additive(0.0)
    perfect = lds(effects, subsets, outputs)
    assert perfect.value == pytest.approx(1) and perfect.agreement == pytest.approx(1) and perfect.ceiling == pytest.approx(1)
    effects, subsets, outputs = additive(5.0)
    noisy = lds(effects, subsets, outputs)
    assert noisy.ceiling is not None and noisy.agreement is not None
    assert noisy.agreement < noisy.value < 0.95 and noisy.value == pytest.approx(noisy.ceiling, abs=0.05)
    assert noisy.low < noisy.value < noisy.high
    chance = lds(np.random.default_rng(1).normal(size=(20, 100)), subsets, outputs)
    assert abs(chance.value) < 0.1 and chance.low < 0 < chance.high
    assert json.loads(json.dumps(noisy.to_json()))["retrainings"] == 2
    assert lds(effects, subsets, outputs[:1]).ceiling is None


def test_shapes_that_do_not_fit_and_too_few_subsets_are_refused() -> None:
    effects, subsets, outputs = additive(1.0)
    with pytest.raises(DataError, match="do not fit: expected QN, SN, RSQ"):
        lds(effects[:, :-1], subsets, outputs)
    with pytest.raises(DataError, match="needs at least 3"):
        lds(effects, subsets[:2], outputs[:, :2])
