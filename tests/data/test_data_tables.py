"""Columns of tables become numbers as scikit-learn makes them, fitted on the training rows alone, and the same again from a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.config import parse
from tauon.data import ColumnsConfig, DataConfig, DataSplits, Encoder, Normalizer, inputs_from_records, prepare
from tauon.data.spelling import spelling
from tauon.data.split import PARTS
from tauon.errors import DataError, RecipeError

RNG = np.random.default_rng(0)
N = 120
TOWNS = ["Bonn", "Kiel", "Ulm", "Jena"]


def rows(n: int = N, seed: int = 0) -> list[dict[str, Any]]:
    """Loans: numbers, words, gaps, dates."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        town = TOWNS[int(rng.integers(4))]
        age = None if i % 10 == 3 else int(rng.integers(20, 70))
        out.append(
            {
                "age": age,
                "income": round(float(rng.lognormal(8, 1)), 2),
                "town": None if i % 15 == 4 else town,
                "since": f"20{rng.integers(10, 24):02d}-{rng.integers(1, 13):02d}-{rng.integers(1, 28):02d}",
                "paid": "yes" if (town in ("Bonn", "Kiel")) ^ (rng.random() < 0.2) else "no",
            }
        )
    return out


def table(tmp_path: Path, records: list[dict[str, Any]] | None = None, **data: Any) -> DataSplits:
    records = rows() if records is None else records
    names = list(records[0])
    lines = [",".join(names), *(",".join("" if r[n] is None else str(r[n]) for n in names) for r in records)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    source = {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "paid", "drop": ["since"]} | data.pop("source", {})
    if "features" in source:
        source.pop("drop")
    config = {"source": source, "split": {"test": 0.2, "validation": 0.1}} | data
    return prepare(parse(DataConfig, config), seed=0, input_kind="arrays")


def whole(splits: DataSplits, part: str = "train") -> np.ndarray:
    data = getattr(splits, part)
    return data.batch(np.arange(len(data))).inputs.numpy()


def kept(splits: DataSplits, records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The records of each part, found by the row's income, which is different in each."""
    from tauon.data.split import SplitConfig, split_rows

    targets = np.array([int(r["paid"] == "yes") for r in records])
    parts, _ = split_rows(targets, SplitConfig(test=0.2, validation=0.1), PARTS)
    return {p: [records[i] for i in index] for p, index in parts.items()}


# ------------------------------------------------------------------------------------------------ scaling and filling


@pytest.mark.parametrize("kind", ["standard", "robust", "minmax", "quantile"])
def test_numbers_are_scaled_as_scikit_learn_scales_the_training_rows(kind: str, tmp_path: Path) -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    impute = pytest.importorskip("sklearn.impute")
    made = table(tmp_path, normalize=kind, table={"impute": "median"}, source={"features": ["age", "income"]})
    parts = kept(made, rows())
    theirs = {
        "standard": preprocessing.StandardScaler(),
        "robust": preprocessing.RobustScaler(),
        "minmax": preprocessing.MinMaxScaler(),
        "quantile": preprocessing.QuantileTransformer(n_quantiles=1000, output_distribution="normal", subsample=None),
    }[kind]
    fill = impute.SimpleImputer(strategy="median")
    raw = {
        p: np.array([[np.nan if r["age"] is None else r["age"], r["income"]] for r in rs], np.float32).astype(np.float64)
        for p, rs in parts.items()
    }
    if kind == "quantile":
        theirs.set_params(n_quantiles=len(raw["train"]))
    fitted = theirs.fit(fill.fit_transform(raw["train"]))
    for part in ("train", "validation", "test"):
        np.testing.assert_allclose(whole(made, part), fitted.transform(fill.transform(raw[part])), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("how", "theirs"), [("mean", "mean"), ("median", "median"), ("most_frequent", "most_frequent"), ("constant", "constant")]
)
def test_missing_numbers_become_what_simple_imputer_makes_of_them(how: str, theirs: str, tmp_path: Path) -> None:
    impute = pytest.importorskip("sklearn.impute")
    setting = {"impute": how, "indicators": True} | ({"fill": -1.0} if how == "constant" else {})
    made = table(tmp_path, normalize="none", table=setting, source={"features": ["age"]})
    parts = kept(made, rows())
    raw = {p: np.array([[np.nan if r["age"] is None else r["age"]] for r in rs]) for p, rs in parts.items()}
    imputer = impute.SimpleImputer(strategy=theirs, add_indicator=True, **({"fill_value": -1.0} if how == "constant" else {})).fit(
        raw["train"]
    )
    for part in parts:
        np.testing.assert_allclose(whole(made, part), imputer.transform(raw[part]), rtol=1e-6)
    assert made.preprocess["features"] == ["age", "age missing"]


def test_categories_one_hot_are_scikit_learns_and_an_unseen_one_is_all_zeros(tmp_path: Path) -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    records = [r | {"town": r["town"] or "Bonn"} for r in rows()]
    last = next(i for i in range(N) if records[i] is kept(None, records)["test"][0])  # type: ignore[arg-type]
    records[last] = records[last] | {"town": "Atlantis"}
    made = table(tmp_path, records, table={"categories": "onehot"}, source={"features": ["town"]})
    parts = kept(made, records)
    theirs = preprocessing.OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit([[r["town"]] for r in parts["train"]])
    for part in parts:
        np.testing.assert_array_equal(whole(made, part), theirs.transform([[r["town"]] for r in parts[part]]))
    assert made.facts["unseen_categories"] == {"test": {"town": 1}}
    assert made.preprocess["features"] == [f"town={t}" for t in sorted(TOWNS)]
    assert made.spec.categories == ()


def test_codes_count_from_one_and_missing_unseen_and_rare_ones_are_zero(tmp_path: Path) -> None:
    made = table(tmp_path, table={"impute": "mean"})
    parts = kept(made, rows())
    known = sorted(TOWNS)
    at = made.preprocess["features"].index("town")
    assert made.spec.categories == (0, 0, 5)
    for part in parts:
        expected = [0 if r["town"] is None else known.index(r["town"]) + 1 for r in parts[part]]
        assert whole(made, part)[:, at].tolist() == expected

    records = rows()
    common = [r | {"town": "Trier" if i < 3 else r["town"]} for i, r in enumerate(records)]
    rare = table(tmp_path, common, table={"impute": "mean", "min_count": 5})
    assert rare.spec.categories == (0, 0, 5)
    filled = table(tmp_path, table={"impute": "mean", "fill_categories": True})
    assert (whole(filled)[:, at] > 0).all()


@pytest.mark.parametrize("smooth", [None, 10.0])
@pytest.mark.parametrize("classes", [2, 3, 0])
def test_target_encoding_is_scikit_learns_and_out_of_fold_for_the_training_rows(smooth: float | None, classes: int) -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    rng = np.random.default_rng(1)
    words = [TOWNS[i] for i in rng.integers(0, 4, 90)]
    targets = rng.integers(0, classes, 90) if classes else rng.normal(size=90).astype(np.float32)
    settings = ColumnsConfig(categories="target", smooth=smooth)
    encoder, training = Encoder.fit({"town": words}, targets, settings, classes=classes, where=lambda i, c: c, seed=3)
    kind = {2: "binary", 3: "multiclass", 0: "continuous"}[classes]
    theirs = preprocessing.TargetEncoder(smooth="auto" if smooth is None else smooth, target_type=kind)
    column = np.array(words, object)[:, None]
    later = [[w] for w in (*TOWNS, "Atlantis")]
    got = encoder({"town": [w for (w,) in later]}, lambda i, c: c)
    np.testing.assert_allclose(got, theirs.fit(column, targets.astype(np.float64)).transform(np.array(later, object)), rtol=1e-9)
    # no row's own target is in its features: with all other rows' targets the same, another own target changes nothing
    for i in (0, 41):
        other = targets.copy()
        other[i] = (other[i] + 1) % classes if classes else other[i] + 5
        _, again = Encoder.fit({"town": words}, other, settings, classes=classes, where=lambda i, c: c, seed=3)
        np.testing.assert_array_equal(training[i], again[i])
        assert not np.array_equal(training, again)


def test_ordinal_codes_follow_the_order_given(tmp_path: Path) -> None:
    records = [{"size": ("small", "large", "medium")[i % 3], "paid": "yn"[i % 2]} for i in range(30)]
    made = table(
        tmp_path, records, normalize="none", source={"features": ["size"]},
        table={"categories": "ordinal", "order": {"size": ["small", "medium", "large"]}},
    )  # fmt: skip
    place = {"small": 1, "medium": 2, "large": 3}
    assert [place[r["size"]] for r in kept_simple(made, records)] == whole(made)[:, 0].tolist()


def kept_simple(made: DataSplits, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from tauon.data.split import SplitConfig, split_rows

    targets = np.array([int(r["paid"] == "y") for r in records])
    parts, _ = split_rows(targets, SplitConfig(test=0.2, validation=0.1), PARTS)
    return [records[i] for i in parts["train"]]


def test_dates_become_parts_of_the_calendar(tmp_path: Path) -> None:
    from datetime import date

    made = table(tmp_path, normalize="none", source={"features": ["since"]}, table={"dates": ["days", "year", "month", "day", "weekday"]})
    parts = kept(made, rows())
    for part in parts:
        days = [date.fromisoformat(r["since"]) for r in parts[part]]
        expected = [[(d - date(1970, 1, 1)).days, d.year, d.month, d.day, d.weekday()] for d in days]
        np.testing.assert_array_equal(whole(made, part), np.array(expected, np.float32))


# ------------------------------------------------------------------------------------------------ nothing leaks, everything comes along


def test_held_out_rows_change_nothing_that_was_fitted(tmp_path: Path) -> None:
    records = rows()
    made = table(tmp_path, records, table={"impute": "mean"})
    for i, r in enumerate(records):
        if any(r is h for p in ("validation", "test") for h in kept(made, records)[p]):
            records[i] = r | {"age": 99, "income": 1e6, "town": "Atlantis"}
    again = table(tmp_path, records, table={"impute": "mean"})
    assert again.preprocess == made.preprocess
    np.testing.assert_array_equal(whole(again), whole(made))
    assert sum(n for part in again.facts["unseen_categories"].values() for n in part.values()) == 36


@pytest.mark.parametrize("categories", ["codes", "onehot", "target", "ordinal"])
@pytest.mark.parametrize("normalize", ["standard", "robust", "quantile"])
def test_a_record_gives_the_very_inputs_that_its_row_had(categories: str, normalize: str, tmp_path: Path) -> None:
    made = table(
        tmp_path, normalize=normalize, source={"drop": ["income"]},
        table={"categories": categories, "impute": "median", "indicators": True, "dates": ["days", "month"]},
    )  # fmt: skip
    preprocess = json.loads(json.dumps(made.preprocess, allow_nan=False))
    records = json.loads(json.dumps(kept(made, rows())["test"]))
    np.testing.assert_array_equal(inputs_from_records(preprocess, records), whole(made, "test"))
    one = inputs_from_records(preprocess, records[5:6])
    np.testing.assert_array_equal(one[0], whole(made, "test")[5])


def test_spellings_of_one_category_are_one(tmp_path: Path) -> None:
    records = [{"zone": i % 3 + 1, "x": i, "paid": "yn"[i % 2]} for i in range(30)]
    made = table(tmp_path, records, source={"features": ["zone", "x"], "categorical": ["zone"]})
    assert made.spec.categories == (4, 0)
    inputs = [inputs_from_records(made.preprocess, [{"zone": z, "x": 1}])[0, 0] for z in ("2", 2, 2.0, " 2")]
    assert inputs == [2.0] * 4
    assert [spelling(v) for v in (True, "True", "TRUE", 1, 1.0, "1.0", "01", "1.50", -2.0, "a.0")] == [
        "true", "true", "true", "1", "1", "1", "01", "1.50", "-2", "a.0",
    ]  # fmt: skip


def test_parquet_and_json_lines_give_what_the_csv_gives(tmp_path: Path) -> None:
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    records = rows()
    settings: dict[str, Any] = {"table": {"impute": "median", "dates": ["days", "month"]}, "source": {"drop": []}}
    expected = whole(table(tmp_path, records, **settings))
    typed = [r | {"since": datetime.date.fromisoformat(r["since"])} for r in records]
    pq.write_table(pa.Table.from_pylist(typed), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(r) for r in records))
    for kind in ("parquet", "jsonl"):
        source = {"kind": kind, "path": str(tmp_path / f"t.{kind}"), "label": "paid"}
        config = {"source": source, "split": {"test": 0.2, "validation": 0.1}, "table": settings["table"]}
        np.testing.assert_array_equal(whole(prepare(parse(DataConfig, config), seed=0, input_kind="arrays")), expected)


def test_records_that_do_not_fit_are_named(tmp_path: Path) -> None:
    preprocess = table(tmp_path, source={"features": ["income", "town"]}).preprocess
    good = {"income": 1.0, "town": "Bonn"}
    assert inputs_from_records(preprocess, [good | {"other": 1}]).shape == (1, 2)
    assert inputs_from_records(preprocess, [good | {"town": None}])[0, 1] == 0
    with pytest.raises(DataError, match="record 1 has no 'town'; did you mean 'towm'"):
        inputs_from_records(preprocess, [good, {"income": 1.0, "towm": "Bonn"}])
    with pytest.raises(DataError, match="record 0: column 'income' is 'much', expected a number"):
        inputs_from_records(preprocess, [good | {"income": "much"}])
    with pytest.raises(DataError, match="record 0: column 'income' is missing"):
        inputs_from_records(preprocess, [good | {"income": None}])
    with pytest.raises(DataError, match="got no records"):
        inputs_from_records(preprocess, [])


def test_plain_arrays_take_records_by_the_names_of_their_features(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    made = prepare(parse(DataConfig, {"source": {"kind": "sklearn", "name": "iris"}}), seed=0, input_kind="arrays")
    raw = dict(zip(made.preprocess["features"], (5.1, 3.5, 1.4, 0.2), strict=True))
    expected = Normalizer.from_json(made.preprocess["normalize"])(np.array([[5.1, 3.5, 1.4, 0.2]]))
    np.testing.assert_array_equal(inputs_from_records(made.preprocess, [raw]), expected)


def test_the_report_says_what_became_of_each_column(tmp_path: Path) -> None:
    records = [r | {"same": 7} for r in rows()]
    made = table(tmp_path, records, table={"impute": "median"})
    facts = {row["column"]: row for row in made.facts["columns"]}
    assert (facts["age"]["kind"], facts["town"]["kind"], facts["same"]["kind"]) == ("number", "category", "dropped")
    assert facts["same"]["why"] == "is 7 in every training row"
    assert facts["age"]["missing"] > 0
    assert made.preprocess["features"] == ["age", "income", "town"]
    json.dumps(made.facts, allow_nan=False)


def test_files_without_header_and_columns_apart_by_blanks(tmp_path: Path) -> None:
    (tmp_path / "g.data").write_text("".join(f"A{i % 3}   {i}  {i % 2 + 1}\n" for i in range(40)))
    source = {
        "kind": "csv",
        "path": str(tmp_path / "g.data"),
        "delimiter": "blanks",
        "header": False,
        "names": ["a", "b", "y"],
        "label": "y",
    }
    made = prepare(parse(DataConfig, {"source": source}), seed=0, input_kind="arrays")
    assert made.spec.categories == (4, 0)
    assert made.spec.labels == ("1", "2")


def test_german_credit_is_read_whole(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_DATA", str(mirror))
    config = parse(DataConfig, {"source": {"kind": "public", "name": "german-credit"}, "split": {"validation": 0}})
    made = prepare(config, seed=0, input_kind="arrays")
    assert made.spec.labels == ("good", "bad")
    assert made.train.facts["classes"] == {"good": 700, "bad": 300}
    assert sum(c > 0 for c in made.spec.categories) == 13
    assert made.spec.input_shape == (20,)


# ------------------------------------------------------------------------------------------------ what cannot be learned from


@pytest.mark.parametrize(
    ("change", "data", "says"),
    [
        ({"age": None}, {}, r"column 'age': all 84 training rows have no value.*drop: \[age\]"),
        ({}, {}, r"t\.csv, line \d+: column 'age' is missing \(\d+ of 84 rows\)\. .*data\.table\.impute \(median"),
        ({}, {"source": {"features": ["since"]}}, r"column 'since' has dates\. Set their encoding"),
        ({"paid": None}, {"table": {"impute": "mean"}}, r"line 2: column 'paid' is '', expected a label"),
        ({"paid": "yes"}, {"table": {"impute": "mean"}}, r"every row has the label 'yes', expected at least two classes"),
        ({"town": 1, "age": 2, "income": 3}, {}, r"no column is left to predict from: age is 2 in every training row"),
    ],
)
def test_tables_that_teach_nothing_are_refused(change: dict[str, Any], data: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        table(tmp_path, [r | change for r in rows()], **data)


def test_a_column_of_names_is_no_category(tmp_path: Path) -> None:
    records = [r | {"name": f"person {i}"} for i, r in enumerate(rows())]
    with pytest.raises(DataError, match=r"column 'name' looks like an identifier or free text: 84 different values in 84 rows"):
        table(tmp_path, records, table={"impute": "mean"})
    assert table(tmp_path, records, table={"impute": "mean"}, source={"categorical": ["name"]}).spec.categories[-1] == 85


def test_a_class_that_training_never_sees_is_refused(tmp_path: Path) -> None:
    records = [{"x": i, "paid": "maybe" if i == 39 else "yn"[i % 2]} for i in range(40)]
    with pytest.raises(DataError, match="the validation part has the class 'maybe', which no training row has"):
        table(tmp_path, records, source={"features": ["x"]}, split={"validation": 0.2, "by": "position"})


def test_so_is_one_of_plain_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(40.0).reshape(20, 2), y=np.array([0, 1] * 9 + [2, 2]))
    config = {"source": {"kind": "npz", "path": str(tmp_path / "a.npz")}, "split": {"by": "position", "validation": 0.1}}
    with pytest.raises(DataError, match="the validation part has the class '2', which no training row has"):
        prepare(parse(DataConfig, config), seed=0, input_kind="arrays")


def test_sources_of_their_own_take_the_training_columns_and_classes(tmp_path: Path) -> None:
    records = rows()
    for name, some in (("a", records[:90]), ("b", records[90:])):
        keys = ["town", "income", "paid"] if name == "b" else ["income", "town", "paid"]
        (tmp_path / f"{name}.csv").write_text("\n".join([",".join(keys), *(",".join(str(r[k] or "") for k in keys) for r in some)]))
    base = {"kind": "csv", "label": "paid"}
    config = {"source": base | {"path": str(tmp_path / "a.csv")}, "test": base | {"path": str(tmp_path / "b.csv")}}
    made = prepare(parse(DataConfig, config), seed=0, input_kind="arrays")
    raw = [{k: r[k] for k in ("income", "town")} for r in records[90:]]
    np.testing.assert_array_equal(whole(made, "test"), inputs_from_records(made.preprocess, raw))
    (tmp_path / "b.csv").write_text("income,paid\n1,yes\n2,no\n")
    with pytest.raises(DataError, match="the test source has no column 'town'"):
        prepare(parse(DataConfig, config), seed=0, input_kind="arrays")
    (tmp_path / "b.csv").write_text("income,town,paid\n1,Ulm,yes\n2,Ulm,perhaps\n")
    with pytest.raises(DataError, match="the test source has the label 'perhaps', which the training data does not have"):
        prepare(parse(DataConfig, config), seed=0, input_kind="arrays")


def test_numbers_are_not_augmented_where_codes_are_among_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="some columns are category codes"):
        table(tmp_path, table={"impute": "mean"}, augment=["noise"])
    assert table(tmp_path, table={"impute": "mean", "categories": "onehot"}, augment=["noise"]).spec.categories == ()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"table": {"order": {"a": ["x"]}}}, "order: has no effect with categories: .*set categories: ordinal"),
        ({"table": {"smooth": 2}}, "smooth: has no effect with categories: .*set categories: target"),
        ({"table": {"fill": 2}}, "fill: has no effect with impute: .*set impute: constant"),
        ({"source": {"categorical": ["y"]}}, "includes the label 'y'"),
        ({"source": {"features": ["a"], "drop": ["b"]}}, "has no effect with features, which lists the columns to use"),
        ({"source": {"features": ["a"], "categorical": ["b"]}}, "'b', which is not among the columns"),
        ({"source": {"names": ["a"]}}, "names: conflicts with the header line"),
        ({"source": {"delimiter": "tabs"}}, "is neither one character nor 'blanks'"),
    ],
)
def test_settings_that_cannot_work_are_named(section: dict[str, Any], says: str) -> None:
    source = {"kind": "csv", "path": "t.csv", "label": "y"} | section.pop("source", {})
    with pytest.raises(RecipeError, match=says):
        parse(DataConfig, {"source": source} | section)


# ------------------------------------------------------------------------------------------------ precision


def test_a_feature_far_from_zero_keeps_its_digits_in_every_way_in(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=100)
    far = 1e9 + x  # float32 has steps of 64 there
    (tmp_path / "f.csv").write_text("x,y\n" + "".join(f"{v!r},{'ab'[int(u > 0)]}\n" for v, u in zip(far.tolist(), x.tolist(), strict=True)))
    np.savez(tmp_path / "f.npz", x=far[:, None], y=(x > 0).astype(np.int64))
    for source in ({"kind": "csv", "path": str(tmp_path / "f.csv"), "label": "y"}, {"kind": "npz", "path": str(tmp_path / "f.npz")}):
        for kind in ("standard", "robust", "minmax", "quantile", "bounds"):
            bounds = {"bounds": {"*": (1e9 - 4, 1e9 + 4)}} if kind == "bounds" else {}
            config = parse(DataConfig, {"source": source, "split": {"validation": 0}, "normalize": kind} | bounds)
            made = prepare(config, seed=0, input_kind="arrays")
            seen = made.train.batch(np.arange(100)).inputs.numpy()[:, 0]
            near = prepare(
                parse(DataConfig, {"source": source, "split": {"validation": 0}, "normalize": "none"}), seed=0, input_kind="arrays"
            ).train
            assert near.batch(np.arange(3)).inputs.dtype == torch.float32
            assert np.array_equal(np.argsort(seen), np.argsort(x)), (source["kind"], kind)
            if source["kind"] == "csv":
                assert np.array_equal(inputs_from_records(made.preprocess, [{"x": float(v)} for v in far])[:, 0], seen)


def test_a_normalizer_of_an_older_checkpoint_computes_as_it_did(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 3)) * [1, 1e4, 1e-3] + [0, 1e6, 3]
    now = Normalizer.fit(x, "standard")
    old = {k: v for k, v in now.to_json().items() if k != "dtype"}
    center, scale = (np.array(old[k], np.float32) for k in ("center", "scale"))
    assert np.array_equal(Normalizer.from_json(old)(x), (x.astype(np.float32) - center) / scale)
    assert np.array_equal(Normalizer.from_json(json.loads(json.dumps(now.to_json())))(x), now(x))
