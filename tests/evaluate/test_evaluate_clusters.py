"""Intervals over groups: they widen with what rows of a group share, and cover the truth where intervals over rows do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tauon.config import parse
from tauon.data import DataConfig, prepare
from tauon.evaluate import EvaluateConfig, evaluate
from tauon.evaluate.clusters import cluster_intervals
from tauon.metrics import Scoring
from tauon.tasks import Classification, Regression


def scores(task: Any, outputs: dict[str, np.ndarray], groups: np.ndarray | None, labels: tuple[str, ...] = (), seed: int = 0) -> Any:
    from tauon.types import DataSpec

    scoring = Scoring(resamples=200, seed=seed, spec=DataSpec(outputs=max(1, len(labels)), labels=labels))

    def scorer(resamples: int = 200) -> Any:
        from dataclasses import replace

        return task.scorer(None, replace(scoring, resamples=resamples))

    one, weights = scorer(), np.ones(len(outputs["targets"]))
    one.add(outputs, weights)
    found = one.finish()
    if groups is None:
        return found
    return cluster_intervals(found, groups, [(outputs, weights)], lambda: scorer(1), scoring)


def patients(seed: int, count: int, visits: int = 6) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Errors that all visits of a patient share: the mean absolute error over all patients is sqrt(2 / pi)."""
    rng = np.random.default_rng(seed)
    shared = np.repeat(rng.normal(size=count), visits)
    return {"predictions": shared[:, None], "targets": np.zeros((count * visits, 1))}, np.repeat(np.arange(count), visits)


def test_intervals_over_groups_cover_the_truth_and_those_over_rows_do_not() -> None:
    truth = float(np.sqrt(2 / np.pi))
    covered = {"rows": 0, "groups": 0}
    for seed in range(60):
        outputs, groups = patients(seed, 25)
        for name, found in (("rows", scores(Regression(), outputs, None)), ("groups", scores(Regression(), outputs, groups))):
            metric = found["metrics"]["mae"]
            covered[name] += metric.low <= truth <= metric.high
    assert covered["groups"] >= 53 and covered["rows"] <= 45


def test_one_row_a_group_gives_nearly_the_interval_over_rows() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(400)
    outputs = {"scores": np.stack([1 - p, p], 1), "targets": (rng.random(400) < p).astype(np.int64)}
    over_rows, over_groups = (scores(Classification(), outputs, g, ("no", "yes"))["metrics"] for g in (None, np.arange(400)))
    for name in ("accuracy", "roc_auc"):
        a, b = over_rows[name], over_groups[name]
        assert a.value == b.value and b.method == "bootstrap over 400 groups"
        assert b.low == pytest.approx(a.low, abs=0.012) and b.high == pytest.approx(a.high, abs=0.012)


def test_few_groups_have_no_interval_and_it_is_said() -> None:
    outputs, groups = patients(0, 2)
    found = scores(Regression(), outputs, groups)
    assert found["metrics"]["mae"].low is None and "2 groups are too few" in found["metrics"]["mae"].reason
    assert any("over 2 groups" in note for note in found["notes"])


def test_a_table_with_a_group_column_is_evaluated_over_groups(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{p},{rng.normal():.3f},{p % 2}" for p in range(40) for _ in range(5)]
    (tmp_path / "t.csv").write_text("patient,x,y\n" + "\n".join(rows))
    section = {
        "source": {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "y", "target": "class"}, "table": {"group": "patient"},
        "split": {"validation": "25%"}, "cache": str(tmp_path / "cache"),
    }  # fmt: skip
    splits = prepare(parse(DataConfig, section), seed=0, input_kind="arrays")
    assert splits.validation is not None
    assert len(np.unique(splits.validation.groups)) == 10 and len(splits.validation) == 50  # type: ignore[attr-defined]
    targets = np.concatenate([splits.validation.batch(np.arange(50)).targets.numpy()])
    assert 0.3 < targets.mean() < 0.7  # groups of the rarer class are held out in proportion
    found = evaluate(torch.nn.Linear(1, 2), Classification(), splits.validation, EvaluateConfig(resamples=100), seed=0)
    assert "over 10 groups" in found.metrics["accuracy"].method
