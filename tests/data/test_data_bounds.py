"""Bounds that a person states: values are clipped into them and scaled by them alone, and a record at inference becomes the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauon.config import parse
from tauon.data import DataConfig, DataSplits, Normalizer, inputs_from_records, prepare
from tauon.errors import RecipeError

AGE, INCOME = (20.0, 60.0), (0.0, 5000.0)


def rows(n: int = 120, seed: int = 0) -> list[dict[str, Any]]:
    """Loans: some ages and incomes lie beyond what was stated."""
    rng = np.random.default_rng(seed)
    towns = ["Bonn", "Kiel", "Ulm"]
    return [
        {
            "age": int(rng.integers(15, 80)),
            "income": round(float(rng.lognormal(8, 1)), 2),
            "town": towns[int(rng.integers(3))],
            "flat": 3,
            "paid": "yes" if rng.random() < 0.5 else "no",
        }
        for _ in range(n)
    ]


def table(folder: Path, records: list[dict[str, Any]], **data: Any) -> DataSplits:
    names = list(records[0])
    (folder / "t.csv").write_text("\n".join([",".join(names), *(",".join(str(r[n]) for n in names) for r in records)]))
    config = {"source": {"kind": "csv", "path": str(folder / "t.csv"), "label": "paid"}, "split": {"test": 0.2, "validation": 0.1}} | data
    return prepare(parse(DataConfig, config), seed=0, input_kind="arrays")


def whole(splits: DataSplits, part: str) -> np.ndarray:
    data = getattr(splits, part)
    return data.batch(np.arange(len(data))).inputs.numpy()


def kept(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    from tauon.data.split import PARTS, SplitConfig, split_rows

    targets = np.array([int(r["paid"] == "yes") for r in records])
    parts, _ = split_rows(targets, SplitConfig(test=0.2, validation=0.1), PARTS)
    return {p: [records[i] for i in index] for p, index in parts.items()}


@pytest.mark.parametrize("categories", ["codes", "onehot"])
def test_bounds_send_values_to_minus_one_to_one_and_clip_those_beyond(categories: str, tmp_path: Path) -> None:
    made = table(tmp_path, rows(), normalize="bounds", bounds={"age": AGE, "*": INCOME}, table={"categories": categories})
    for part, records in kept(rows()).items():
        found = whole(made, part)
        for j, (name, (low, high)) in enumerate({"age": AGE, "income": INCOME}.items()):
            x = np.clip(np.array([r[name] for r in records]), low, high)
            np.testing.assert_allclose(found[:, j], (2 * x - low - high) / (high - low), rtol=1e-6, atol=1e-6)
            assert found[:, j].min() >= -1 and found[:, j].max() <= 1
        assert found.shape[1] == (3 if categories == "codes" else 5)
        assert set(np.unique(found[:, 2:])) <= ({1.0, 2.0, 3.0} if categories == "codes" else {0.0, 1.0})  # codes are no numbers
    assert any(r["age"] > 60 for r in rows()) and any(r["income"] > 5000 for r in rows())


def test_nothing_about_scaling_is_learned_from_the_rows(tmp_path: Path) -> None:
    """Other training rows, the same scale."""
    made = [table(tmp_path, rows(seed=s), normalize="bounds", bounds={"*": (0, 100)}) for s in (0, 1)]
    assert made[0].preprocess["normalize"] == made[1].preprocess["normalize"]
    assert whole(made[0], "train")[:, 0].mean() != whole(made[1], "train")[:, 0].mean()


@pytest.mark.parametrize("kind", ["bounds", "standard"])
def test_a_record_becomes_the_same_numbers_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    made = table(tmp_path, rows(), normalize=kind, bounds={"age": AGE, "income": INCOME})
    preprocess = json.loads(json.dumps(made.preprocess))
    for part, records in kept(rows()).items():
        assert np.array_equal(inputs_from_records(preprocess, records), whole(made, part))
    beyond = {"age": 300, "income": -1e9, "town": "Ulm"}
    edge = {"age": AGE[1], "income": INCOME[0], "town": "Ulm"}
    assert np.array_equal(inputs_from_records(preprocess, [beyond]), inputs_from_records(preprocess, [edge]))


def test_standard_with_bounds_standardises_what_was_clipped(tmp_path: Path) -> None:
    """What private statistics do with noise: scikit-learn's StandardScaler of clipped values."""
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    made = table(tmp_path, rows(), normalize="standard", bounds={"age": AGE, "income": INCOME})
    parts = {p: np.array([[np.clip(r["age"], *AGE), np.clip(r["income"], *INCOME)] for r in rs]) for p, rs in kept(rows()).items()}
    theirs = preprocessing.StandardScaler().fit(parts["train"])
    for part, x in parts.items():
        np.testing.assert_allclose(whole(made, part)[:, :2], theirs.transform(x), rtol=1e-4, atol=1e-5)


def test_arrays_have_bounds_by_name_too() -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    iris = sklearn.load_iris()
    made = prepare(
        parse(
            DataConfig,
            {
                "source": {"kind": "sklearn", "name": "iris"},
                "normalize": "bounds",
                "bounds": {iris.feature_names[0]: [5, 7], "*": [0, 10]},
            },
        ),
        seed=0, input_kind="arrays",
    )  # fmt: skip
    normalizer = Normalizer.from_json(json.loads(json.dumps(made.preprocess["normalize"])))
    x = iris.data
    expected = np.column_stack([np.clip(x[:, 0], 5, 7) - 6, x[:, 1:] / 5 - 1])
    np.testing.assert_allclose(normalizer(x), expected, atol=1e-6)
    records = [dict(zip(iris.feature_names, row, strict=True)) for row in x.tolist()]
    assert np.array_equal(inputs_from_records(made.preprocess, records), normalizer(x))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"normalize": "bounds"}, "bounds needs the range of each column"),
        ({"normalize": "bounds", "bounds": {"age": AGE}}, r"data\.bounds: no bounds are set for income.*\"\*\""),
        ({"normalize": "bounds", "bounds": {"age": AGE, "income": INCOME, "incom": (0, 1)}}, r"data\.bounds\.incom: .*did you mean 'income'"),
        ({"normalize": "bounds", "bounds": {"*": INCOME, "town": (0, 1)}}, r"data\.bounds\.town: has categories"),
        ({"normalize": "bounds", "bounds": {"*": (1, 1)}}, r"bounds\.\*: got 1 to 1: expected the lower bound first"),
        ({"normalize": "bounds", "bounds": {"age": (60, 20), "*": INCOME}}, r"bounds\.age: got 60 to 20"),
        ({"normalize": "bounds", "bounds": {"*": (0, 1e300)}}, r"bounds\.\*: .*finite numbers within the range of float32"),
        ({"normalize": "robust", "bounds": {"*": INCOME}}, "has no effect with normalize: robust; set normalize to bounds or standard"),
        ({"normalize": "bounds", "bounds": {"*": (0, float("inf"))}}, "finite number"),
        ({"normalize": "bounds", "bounds": {"age": 3}}, "bounds: .*got 3"),
    ],
)  # fmt: skip
def test_bounds_that_cannot_be_meant_are_refused_with_the_way_out(data: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        table(tmp_path, rows(), **data)


def test_a_column_that_says_nothing_may_have_bounds(tmp_path: Path) -> None:
    """`flat` is dropped, as it is the same in every training row: with other rows it would not be."""
    made = table(tmp_path, rows(), normalize="bounds", bounds={"age": AGE, "income": INCOME, "flat": (0, 10)})
    assert "flat" not in made.preprocess["features"]


def test_dates_have_bounds_by_their_parts(tmp_path: Path) -> None:
    records = [r | {"since": f"20{10 + i % 9}-0{1 + i % 9}-01"} for i, r in enumerate(rows())]
    table_of = {"dates": ["year", "month"]}
    with pytest.raises(RecipeError, match=r"data\.bounds\.since: is encoded as the columns since\.year, since\.month"):
        table(tmp_path, records, normalize="bounds", bounds={"*": INCOME, "since": (0, 1)}, table=table_of)
    made = table(tmp_path, records, normalize="bounds", bounds={"*": INCOME, "since.month": (1, 12)}, table=table_of)
    month = made.preprocess["features"].index("since.month")
    expected = [(2 * int(r["since"][5:7]) - 13) / 11 for r in kept(records)["test"]]
    np.testing.assert_allclose(whole(made, "test")[:, month], expected, atol=1e-6)


def test_pictures_have_no_bounds(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", x=np.zeros((40, 3, 8, 8), np.uint8), y=np.arange(40) % 2)
    source = {"kind": "npz", "path": str(tmp_path / "p.npz"), "features": "x", "targets": "y"}
    with pytest.raises(RecipeError, match=r"data\.bounds: are only for tables, but examples have shape \(3, 8, 8\)"):
        prepare(parse(DataConfig, {"source": source, "normalize": "bounds", "bounds": {"*": (0, 255)}}), seed=0, input_kind="arrays")
