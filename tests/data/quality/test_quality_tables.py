"""Faults of tables: planted ones are found, clean tables give no findings, and the tests of difference equal scipy's."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quality_views import patients, view_of_planted

from tauon.config import parse
from tauon.data import DataConfig
from tauon.data.quality import DataView, examine, view_of
from tauon.data.quality.columns import far_outside
from tauon.data.quality.two_samples import chi_square_p, kolmogorov_smirnov
from tauon.testing import plant_table
from toy import Tauon


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_planted_faults_of_a_table_are_found(seed: int) -> None:
    planted = plant_table(*patients(seed=seed), seed=seed)
    quality = examine(view_of_planted(planted, "table"))
    for fault, check in {"leak": "leaks", "duplicate": "duplicates", "outlier": "outliers", "broken": "broken values"}.items():
        finding = quality.of(check)
        assert finding is not None, check
        recall, precision = planted.score(fault, set(finding.rows))
        assert recall >= 0.9 and precision >= 0.8, (fault, recall, precision)
    giveaways = quality.of("giveaways")
    assert giveaways is not None and giveaways.columns == ("result",)


def test_a_clean_table_gives_no_warnings() -> None:
    rows, labels = patients()
    view = DataView(
        "table", np.array(["train"] * 1600 + ["test"] * 400), str, np.array([label == "yes" for label in labels]).astype(int), ("no", "yes"),
        columns={k: [str(r[k]) for r in rows] for k in rows[0]},
    )  # fmt: skip
    assert [f.check for f in examine(view).findings if f.severity != "note"] == []


def view_with(columns: dict[str, Any], parts: list[str] | None = None, labels: Any = None) -> DataView:
    n = len(next(iter(columns.values())))
    names = ("a", "b") if labels is not None else ()
    return DataView("table", np.array(parts or ["train"] * n), lambda i: f"row {i}", labels, names, columns=columns)


def test_decimal_commas_and_units_are_numbers_and_not_broken() -> None:
    view = view_with({"price": [f"{i},50 €" for i in range(100)], "share": [f"{i}%" for i in range(100)]})
    assert examine(view).of("broken values") is None


def test_a_later_part_that_differs_is_drift() -> None:
    rng = np.random.default_rng(0)
    same, moved = rng.normal(size=900), np.concatenate([rng.normal(size=600), rng.normal(size=300) + 1])
    words = ["old"] * 600 + ["new"] * 300
    finding = examine(view_with({"same": same, "moved": moved, "words": words}, ["train"] * 600 + ["test"] * 300)).of("drift")
    assert finding is not None and set(finding.columns) == {"moved", "words"}


def test_equal_inputs_with_different_labels_are_contradictions() -> None:
    finding = examine(view_with({"x": ["1", "2", "1", "3"]}, labels=np.array([0, 1, 1, 0]))).of("contradictions")
    assert finding is not None and finding.rows == ((0, 2),) and finding.examples[0].note == "a / b"


def test_rare_and_missing_classes_are_named() -> None:
    labels = np.array([0] * 500 + [1] * 5 + [0] * 100)
    view = DataView(
        "texts", np.array(["train"] * 505 + ["test"] * 100), str, labels, ("often", "seldom"), texts=[str(i) for i in range(605)]
    )
    found = examine(view)
    assert found.of("rare classes").columns == ("seldom",)  # type: ignore[union-attr]
    assert found.of("missing classes").columns == ("seldom",)  # type: ignore[union-attr]


def test_prices_that_are_skewed_are_not_far_outside() -> None:
    rng = np.random.default_rng(0)
    assert not far_outside(rng.lognormal(3, 1.2, 5000)).any()
    assert far_outside(rng.pareto(1.5, 5000) + 1).sum() < 10
    assert far_outside(rng.exponential(1, 5000)).sum() == 0
    assert not far_outside(np.repeat([0.0, 1.0], [990, 10])).any()
    values = rng.normal(20, 2, 500)
    values[7] = 9999
    assert np.flatnonzero(far_outside(values)).tolist() == [7]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=8, max_size=60), st.lists(st.floats(-5, 5), min_size=8, max_size=60))
def test_kolmogorov_smirnov_equals_scipy(a: list[float], b: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.ks_2samp(a, b, method="asymp")
    distance, p = kolmogorov_smirnov(np.array(a), np.array(b))
    assert distance == pytest.approx(theirs.statistic, abs=1e-12)
    n = len(a) * len(b) / (len(a) + len(b))
    assert p == pytest.approx(stats.kstwobign.sf(np.sqrt(n) * distance), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=2, max_size=6))
def test_chi_square_equals_scipy(table: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    counts = np.array(table).T
    assert chi_square_p(counts) == pytest.approx(stats.chi2_contingency(counts, correction=False).pvalue, abs=1e-10)


def write_csv(path: Path, rows: list[dict[str, Any]], labels: list[str]) -> None:
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, [*rows[0], "died"])
        out.writeheader()
        out.writerows(r | {"died": label} for r, label in zip(rows, labels, strict=True))


def test_a_table_with_broken_values_is_looked_at_although_training_refuses_it(tmp_path: Path) -> None:
    planted = plant_table(*patients(400))
    write_csv(tmp_path / "t.csv", planted.records, planted.labels)
    config = parse(DataConfig, {"source": {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "died"}})
    view = view_of(config, input_kind="arrays")
    finding = examine(view).of("broken values")
    assert finding is not None
    places = {f"{tmp_path / 't.csv'}, line {i + 2}" for (i,) in planted.faults["broken"]}
    assert {view.place(i) for (i,) in finding.rows} == places


def test_the_command_writes_a_page_and_json(tauon: Tauon, tmp_path: Path) -> None:
    planted = plant_table(*patients(400))
    write_csv(tmp_path / "patients.csv", planted.records, planted.labels)
    ended = tauon("data", "report", str(tmp_path / "patients.csv"), "--label", "died")
    assert ended.code == 0 and "giveaways: column 'result'" in ended.out, ended
    page = (tmp_path / "patients-data.html").read_text()
    assert "Giveaways" in page and "Outliers" in page and "default-src 'none'" in page
    found = json.loads(tauon("data", "report", str(tmp_path / "patients.csv"), "--label", "died", "--json", "--check", "equal-records").out)
    assert {f["check"] for f in found["findings"]} <= {"leaks", "duplicates", "contradictions"} and found["asked"] == ["Equal records"]


def test_a_misspelt_check_and_a_missing_file_are_refused_in_words(tauon: Tauon, tmp_path: Path) -> None:
    ended = tauon("data", "report", "breast-cancer", "--check", "equal-record")
    assert ended.code == 2 and "did you mean 'equal-records'" in ended.err, ended
    assert tauon("data", "report", "nope.csv", "--label", "x").code == 2


def test_a_recipe_with_a_quality_section_shows_it_in_its_report(tauon: Tauon, tmp_path: Path) -> None:
    rows, labels = patients(200)
    write_csv(tmp_path / "t.csv", [*rows, rows[0]], [*labels, labels[0]])
    (tmp_path / "looked.yaml").write_text(
        "name: looked\ndata: {source: {kind: csv, path: t.csv, label: died}}\ntask: classification\nmodel: mlp\ntrain: {steps: 2}\nquality: {}\n"
        "evaluate: {resamples: 100, baselines: false}\n"
    )
    ended = tauon("run", "looked.yaml")
    assert ended.code == 0 and "also in the training part" in ended.err, ended
    page = (tmp_path / "runs/looked/report.html").read_text()
    assert 'id="quality"' in page and "Leaks" in page


def test_a_private_run_does_not_show_records(tauon: Tauon) -> None:
    pytest.importorskip("sklearn")
    ended = tauon("quality", "breast-cancer", "quality={}", "privacy={target_epsilon: 8, delta: 1e-4}")
    assert ended.code == 2 and "protected" in ended.err, ended
