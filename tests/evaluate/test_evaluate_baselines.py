"""Baselines equal what scikit-learn and closed forms say; differences are paired; each task has its reference."""

from __future__ import annotations

import lzma
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tauon.config import parse
from tauon.data import DataConfig, prepare
from tauon.evaluate import EvaluateConfig, evaluate
from tauon.evaluate.baselines import Training, compared_with_baselines, fit_baselines, verdict
from tauon.evaluate.baselines.series import seasons
from tauon.evaluate.baselines.sounds import mfcc
from tauon.evaluate.paired import PairedTerms, RecordingTask, improvement
from tauon.metrics import Scoring
from tauon.metrics.preference import preference
from tauon.metrics.thresholds import thresholds
from tauon.models import LogisticConfig, materialize
from tauon.report.baselines import verdict_line
from tauon.tasks import DPO, AudioClassification, Classification, Forecasting, LanguageModelling, Regression
from tauon.types import Batch, DataSpec
from toy import Tauon, table_recipe

SCORING = Scoring(resamples=300, seed=3)


class Rows:
    """Arrays as a data set."""

    def __init__(self, x: np.ndarray, y: np.ndarray, **spec: Any) -> None:
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        self.spec, self.facts = DataSpec(input_shape=tuple(x.shape[1:]), **spec), {}

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        rows = torch.as_tensor(index)
        return Batch(self.x[rows], self.y[rows], torch.ones(len(rows)), index=rows)


def of_two_classes(n: int, seed: int, noise: float) -> Rows:
    g = np.random.default_rng(seed)
    x = g.normal(size=(n, 4)).astype(np.float32)
    y = (x @ np.array([1.0, -1.0, 0.5, 0.0]) + noise * g.normal(size=n) > 0.8).astype(np.int64)
    return Rows(x, y, outputs=2, labels=("no", "yes"))


def compared(task: Any, train: Any, held_out: Any, model: torch.nn.Module, *, fits: bool = True) -> tuple[Any, list[Any]]:
    config, recording = EvaluateConfig(resamples=200), RecordingTask(task)
    result = evaluate(model, recording, held_out, config, seed=0, split="test")
    assert recording.terms is not None
    baselines = fit_baselines(task, Training(train, fits=fits), held_out)
    return result, compared_with_baselines(result, recording.terms, task, baselines, held_out, config)


def test_logistic_regression_and_the_majority_are_those_of_scikit_learn() -> None:
    linear, dummy = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.dummy")
    scale = pytest.importorskip("sklearn.preprocessing").StandardScaler
    train, test = of_two_classes(400, 0, 0.5), of_two_classes(300, 1, 0.5)
    _, found = compared(Classification(), train, test, materialize(LogisticConfig().resolve(train.spec), seed=0))
    x, y = train.x.double().numpy(), train.y.numpy()
    own = scale().fit(x)
    want = linear.LogisticRegression(max_iter=300).fit(own.transform(x), y).score(own.transform(test.x.double().numpy()), test.y.numpy())
    by_name = {c.name: c for c in found}
    assert by_name["logistic regression"].metrics["accuracy"].value == pytest.approx(want)
    majority = dummy.DummyClassifier().fit(x, y).score(test.x.numpy(), test.y.numpy())
    assert by_name["the most frequent class"].metrics["accuracy"].value == pytest.approx(majority)
    assert by_name["the most frequent class"].metrics["roc_auc"].value == 0.5


def test_an_untrained_model_is_said_to_be_no_better_and_a_good_one_better() -> None:
    train, test = of_two_classes(600, 0, 0.1), of_two_classes(400, 1, 0.1)
    config = LogisticConfig().resolve(train.spec)
    bad = materialize(config, seed=0)
    result, found = compared(Classification(), train, test, bad)
    summary = verdict(result, found)
    assert summary is not None
    assert summary["verdict"] in ("no better", "worse")
    tone, sentence = verdict_line(replace(result, verdict=summary).to_json()) or ("", "")
    assert tone in ("warn", "bad")
    assert "than" in sentence
    perfect = torch.nn.Linear(4, 2)
    with torch.no_grad():
        perfect.weight.copy_(torch.tensor([[0.0] * 4, [50.0, -50.0, 25.0, 0.0]]))
        perfect.bias.copy_(torch.tensor([0.0, -40.0]))
    result, found = compared(Classification(), train, test, perfect)
    assert next(c for c in found if c.name == "the most frequent class").verdict == "better"


def test_the_paired_interval_is_narrower_than_two_and_covers_the_truth() -> None:
    """Two classifiers that err on almost the same examples: their difference is certain though both are not."""
    g = np.random.default_rng(5)
    inside = 0
    for _ in range(60):
        y = g.integers(0, 2, 400)
        hard = g.random(400) < 0.3
        a_right = ~hard | (g.random(400) < 0.5)
        b_right = a_right & (g.random(400) > 0.05)
        terms = []
        for right in (a_right, b_right):
            scores = np.where(right, y, 1 - y)
            one = PairedTerms("classification", SCORING)
            one.add({"scores": np.stack([1.0 - scores, scores], 1) * 0.8 + 0.1, "targets": y}, np.ones(400), np.ones(400, bool))
            terms.append(one)
        found = improvement(*terms, "accuracy")
        assert found is not None
        assert found.value == pytest.approx(a_right.mean() - b_right.mean())
        assert found.low is not None
        assert found.high is not None
        assert found.high - found.low < 0.06  # two intervals of 400 examples would be 0.07 wide each
        inside += found.low <= 0.85 * 0.05 <= found.high
    assert inside >= 52


def test_the_paired_area_is_that_of_a_bootstrap() -> None:
    g = np.random.default_rng(2)
    y = g.integers(0, 2, 500)
    a, b = y + g.normal(size=500), y + 1.5 * g.normal(size=500)
    terms = []
    for score in (a, b):
        p = 1 / (1 + np.exp(-score))
        one = PairedTerms("classification", SCORING)
        one.add({"scores": np.stack([1 - p, p], 1), "targets": y}, np.ones(500), np.ones(500, bool))
        terms.append(one)
    found = improvement(*terms, "roc_auc")
    metrics = pytest.importorskip("sklearn.metrics")
    assert found is not None
    assert found.value == pytest.approx(metrics.roc_auc_score(y, a) - metrics.roc_auc_score(y, b))
    drawn = [metrics.roc_auc_score(y[i], a[i]) - metrics.roc_auc_score(y[i], b[i]) for i in (g.integers(0, 500, 500) for _ in range(400))]
    assert found.high is not None
    assert found.low is not None
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.std(drawn), rel=0.15)


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc"])
def test_examples_of_one_group_count_once(metric: str) -> None:
    """Each example eight times: over examples the interval would be sqrt(8) too narrow."""
    g = np.random.default_rng(4)
    y = g.integers(0, 2, 120)
    scores = [1 / (1 + np.exp(-(y + s * g.normal(size=120)))) for s in (0.8, 1.6)]
    widths = {}
    for times, grouped in ((1, False), (8, True), (8, False)):
        terms = []
        for score in scores:
            p, true = np.repeat(score, times), np.repeat(y, times)
            one = PairedTerms("classification", SCORING, groups=np.repeat(np.arange(120), times) if grouped else None)
            for part in (slice(0, 37), slice(37, None)):
                rows = {"scores": np.stack([1 - p, p], 1)[part], "targets": true[part]}
                one.add(rows, np.ones(len(true[part])), np.ones(len(true[part]), bool))
            terms.append(one)
        found = improvement(*terms, metric)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        widths[times, grouped] = found.high - found.low
    assert widths[8, True] == pytest.approx(widths[1, False], rel=0.15)
    assert widths[8, False] < 0.5 * widths[1, False]


def test_regression_has_mean_median_and_ridge() -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=(300, 3)).astype(np.float32)
    y = (x @ np.array([1.0, 2.0, -1.0]) + 0.3 * g.normal(size=300)).astype(np.float32)[:, None]
    train, test = Rows(x[:200], y[:200], outputs=1), Rows(x[200:], y[200:], outputs=1)
    _, found = compared(Regression(), train, test, torch.nn.Linear(3, 1))
    values = {c.name: c.metrics["r2"].value for c in found}
    assert set(values) >= {"the mean", "the median"}
    want = 1 - float(((test.y - train.y.mean()) ** 2).sum() / ((test.y - test.y.mean()) ** 2).sum())
    assert values["the mean"] == pytest.approx(want, abs=1e-5)
    assert values.get("ridge regression", 1.0) > 0.95
    assert all(c.verdict in ("better", "worse", "no better") for c in found)


def series_splits(tmp_path: Any, values: np.ndarray) -> Any:
    times = np.datetime64("2024-01-01T00") + np.arange(len(values)) * np.timedelta64(1, "h")
    path = tmp_path / "load.csv"
    path.write_text("date,load\n" + "".join(f"{t},{v:.6f}\n" for t, v in zip(times, values, strict=True)))
    tree = {
        "source": {"kind": "series", "path": str(path), "targets": ["load"]}, "window": {"context": 24, "horizon": 30},
        "split": {"validation": 0.1, "test": 0.3},
    }  # fmt: skip
    return prepare(parse(DataConfig, tree), seed=0, input_kind="series")


def test_copies_of_a_series_are_exact_where_it_repeats_and_beat_no_one_where_it_does_not(tmp_path: Any) -> None:
    hours = np.arange(24 * 40)
    weekly = np.sin(hours / 24 * 2 * np.pi) + (hours // 24 % 7 >= 5) * 2.0
    splits = series_splits(tmp_path, weekly)
    assert [name for _, name in seasons(splits.test.facts)][:2] == ["day", "week"]
    zero = torch.nn.Module()
    zero.forward = lambda x: x.new_zeros(len(x), 30, 1)  # type: ignore[method-assign]
    _, found = compared(Forecasting(), splits.train, splits.test, zero)
    mse = {c.name: c.metrics["mse"].value for c in found}
    assert mse["the value one week ago"] == pytest.approx(0, abs=1e-10)
    assert mse["the value one day ago"] > 0.01
    assert next(c for c in found if c.name == "the value one week ago").verdict in ("worse", "no better")
    index = np.array([0, 5])
    assert np.array_equal(splits.test.earlier(index, 1)[:, :, 0], np.repeat(splits.test.batch(index).inputs[:, -1:, 0].numpy(), 30, 1))


def test_texts_have_token_frequencies_and_the_compressor(tmp_path: Any) -> None:
    text = "the cat sat on the mat. a dog sat on a log. " * 60
    (tmp_path / "a.txt").write_text(text)
    tree = {
        "source": {"kind": "text", "path": str(tmp_path / "a.txt")}, "tokenizer": {"kind": "bytes"}, "seq_len": 32,
        "split": {"by": "position", "validation": 0.2},
    }  # fmt: skip
    splits = prepare(parse(DataConfig, tree), seed=0, input_kind="tokens")
    task = LanguageModelling()
    frequencies, xz = fit_baselines(task, Training(splits.train, tokenizer=splits.tokenizer), splits.validation)
    batch = splits.validation.batch(np.arange(len(splits.validation)))
    out = xz.predict(batch)
    kept = splits.tokenizer.decode(batch.targets[batch.weights > 0].tolist()).encode()
    bits = float(out["nll"].sum()) / np.log(2)
    assert bits == pytest.approx(8 * len(lzma.compress(kept, preset=9 | lzma.PRESET_EXTREME)), rel=1e-6)
    own = frequencies.predict(batch)
    train = splits.train.batch(np.arange(len(splits.train)))
    counts = np.bincount(train.targets[train.weights > 0].numpy(), minlength=splits.spec.vocab) + 1
    want = -np.log(counts / counts.sum())[batch.targets[batch.weights > 0].numpy()].sum()
    assert float(own["nll"].sum()) == pytest.approx(float(want), rel=1e-6)


def test_recordings_of_two_pitches_are_told_apart_by_cepstra_and_padding_changes_nothing() -> None:
    pytest.importorskip("sklearn")
    g = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    pitch = torch.where(y == 0, 300.0, 900.0)[:, None] * (1 + 0.1 * torch.randn(60, 1, generator=g))
    x = torch.sin(2 * torch.pi * pitch * torch.arange(4000) / 8000) + 0.3 * torch.randn(60, 4000, generator=g)
    lengths = torch.randint(2000, 4000, (60,), generator=g)
    x = x * (torch.arange(4000) < lengths[:, None])
    whole = mfcc(x, lengths, 8000)
    assert np.allclose(mfcc(torch.cat([x, torch.zeros(60, 1600)], 1), lengths, 8000), whole, atol=1e-4)
    rows = Rows(x.numpy(), y.numpy(), outputs=2, labels=("low", "high"), sample_rate=8000)
    found = fit_baselines(AudioClassification(), Training(rows), rows)
    scores = found[1].predict(Batch(x, y, torch.ones(60)))["scores"]
    assert found[1].name.startswith("MFCC")
    assert (scores.argmax(1) == y).float().mean() > 0.95


def test_private_training_lends_its_records_to_no_baseline() -> None:
    class Closed(Rows):
        def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
            raise AssertionError("a training record was read")

    train = Closed(np.zeros((5, 2), np.float32), np.zeros(5, np.int64), outputs=2, labels=("no", "yes"))
    test = of_two_classes(50, 0, 0.1)
    found = fit_baselines(Classification(), Training(train, fits=False), test)
    assert [b.name for b in found] == ["the most frequent class of the evaluated part"]
    assert "shares of the evaluated part" in found[0].about


def test_probabilities_worse_than_the_shares_of_the_classes_are_said_even_where_the_ranking_is_good() -> None:
    """A private model may rank well and be too sure: its area is above chance, its log loss worse than prevalence."""
    train, test = of_two_classes(600, 0, 0.3), of_two_classes(400, 1, 0.3)
    sure = torch.nn.Linear(4, 2)
    with torch.no_grad():
        sure.weight.copy_(torch.tensor([[0.0] * 4, [50.0, -50.0, 25.0, 0.0]]))
        sure.bias.copy_(torch.tensor([0.0, -5.0]))
    result, found = compared(Classification(), train, test, sure, fits=False)
    summary = verdict(result, found)
    assert summary is not None and summary["verdict"] == "better"
    assert summary["probabilities"]["ours"] > summary["probabilities"]["theirs"]
    tone, sentence = verdict_line(replace(result, verdict=summary).to_json()) or ("", "")
    assert tone == "warn"
    assert "Its probabilities are worse than the classes' shares of the evaluated part: log loss" in sentence
    weak = torch.nn.Linear(4, 2)
    with torch.no_grad():
        weak.weight.copy_(sure.weight / 200)
        weak.bias.copy_(sure.bias / 200)
    result, found = compared(Classification(), train, test, weak, fits=False)
    assert "probabilities" not in (verdict(result, found) or {})


def test_pairs_have_chance_and_the_longer_answer() -> None:
    weights = torch.zeros(3, 2, 8)
    for pair, lengths in enumerate([(5, 3), (2, 4), (3, 3)]):  # chosen, rejected: right, wrong, a tie
        for side, length in enumerate(lengths):
            weights[pair, side, :length] = 1
    batch = Batch(torch.zeros(3, 2, 8, dtype=torch.long), torch.zeros(3, 2, 8, dtype=torch.long), weights)
    chance, longer = (b.predict(batch) for b in fit_baselines(DPO(), Training(of_two_classes(5, 0, 0.1)), of_two_classes(5, 0, 0.1)))
    how = {"confidence": 0.95, "resamples": 100, "seed": 0}
    assert preference(chance["rewards"].numpy(), chance["loss"].numpy(), **how)["metrics"]["reward_accuracy"].value == 0.5
    assert chance["loss"].tolist() == pytest.approx([np.log(2)] * 3)
    scores = preference(longer["rewards"].numpy(), longer["loss"].numpy(), **how)
    assert scores["metrics"]["reward_accuracy"].value == pytest.approx((1 + 0 + 0.5) / 3)
    assert (longer["rewards"][:, 0] - longer["rewards"][:, 1]).tolist() == [1, -1, 0]


def test_thresholds_equal_scikit_learn_and_choose_the_cheapest() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    g = np.random.default_rng(1)
    y = g.random(700) < 0.2
    score = np.round(1 / (1 + np.exp(-(2.0 * y - 1 + g.normal(size=700)))), 2)  # with ties
    found = thresholds(score, y, "default", {"false_positive": 1.0, "false_negative": 7.0})
    assert found is not None
    fpr, tpr, _ = metrics.roc_curve(y, score, drop_intermediate=False)
    assert found["ks"] == pytest.approx((tpr - fpr).max())
    assert found["gini"] == pytest.approx(2 * metrics.roc_auc_score(y, score) - 1)
    for row in found["rows"]:
        flagged = score >= row["threshold"]
        assert row["precision"] == pytest.approx(metrics.precision_score(y, flagged))
        assert row["recall"] == pytest.approx(metrics.recall_score(y, flagged))
        assert row["specificity"] == pytest.approx(metrics.recall_score(~y, ~flagged))
    best = next(r for r in found["rows"] if r["why"] == "lowest cost")
    each = [((score >= t) & ~y).sum() + 7 * ((score < t) & y).sum() for t in np.unique(score)]
    assert best["cost"] == pytest.approx(min(each) / 700)
    assert thresholds(score, np.zeros(700, bool), "default") is None


def test_the_headline_follows_the_balance() -> None:
    for share, primary in ((0.2, "roc_auc"), (0.5, "accuracy")):
        g = np.random.default_rng(3)
        y = (g.random(300) < share).astype(np.int64)
        p = np.clip(0.5 * y + 0.5 * g.random(300), 0.01, 0.99)
        found = Classification().metrics({"scores": np.stack([1 - p, p], 1), "targets": y}, SCORING)
        assert found["primary"] == primary


def test_a_private_model_worse_than_prevalence_is_said_to_be_in_terminal_and_report(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("dp_accounting")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TAUON_LEDGER", str(tmp_path / "ledger"))
    recipe = table_recipe(
        tmp_path, name="noisy", optim={"kind": "sgd", "lr": 50.0}, train={"steps": 6, "validate_every": None},
        privacy={"target_epsilon": 0.05, "delta": 1e-3},
    )  # fmt: skip
    ended = Tauon(capsys)("run", recipe)
    assert ended.code == 0, ended
    report = (tmp_path / "runs/noisy/report.html").read_text()
    for said in (ended.out, report.replace("&#x27;", "'").replace("&#39;", "'")):
        assert "than the most frequent class of the evaluated part" in said
        assert "Its probabilities are worse than the classes' shares of the evaluated part: log loss" in said
