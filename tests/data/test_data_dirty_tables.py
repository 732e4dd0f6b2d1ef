"""Tables as people have them: spellings, other countries' numbers, gaps, indexes, encodings. The right value, or an error that is true."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data import DataConfig, DataSplits, SourceConfig, inputs_from_records, inspect_table, prepare
from tauon.errors import DataError, RecipeError

RNG = np.random.default_rng(0)


def made(folder: Path, text: str | bytes, *, kind: str = "csv", other: str | None = None, **settings: Any) -> DataSplits:
    """The table in this file, label y, prepared; `other`: a test file of its own."""
    path = folder / f"t.{kind}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    data = {name: settings.pop(name) for name in ("table", "normalize", "split", "bounds") if name in settings}
    source = {"kind": kind, "path": str(path), "label": "y"} | settings
    whole: dict[str, Any] = {"source": source, "split": {"validation": 0}, "normalize": "none"} | data
    if other is not None:
        (folder / f"o.{kind}").write_text(other)
        whole["test"] = source | {"path": str(folder / f"o.{kind}")}
    return prepare(parse(DataConfig, whole), seed=0, input_kind="arrays")


def seen(splits: DataSplits, part: str = "train") -> np.ndarray:
    data = getattr(splits, part)
    return data.batch(np.arange(len(data))).inputs.numpy()


def targets(splits: DataSplits, part: str = "train") -> list[Any]:
    data = getattr(splits, part)
    found: list[Any] = data.batch(np.arange(len(data))).targets.tolist()
    return found


def csv(header: str, rows: list[str]) -> str:
    return "\n".join([header, *rows]) + "\n"


def column(splits: DataSplits, name: str) -> dict[str, Any]:
    return next(row for row in splits.facts["columns"] if row["column"] == name)


# ------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["01", "1", "2"], ("01", "1", "2")),
        (["1e2", "100"], ("1e2", "100")),
        (["9007199254740993", "9007199254740992"], ("9007199254740992", "9007199254740993")),
        (["007", "7"], ("007", "7")),
        (["10", "9", "-2"], ("-2", "9", "10")),
        (["9" * 5000, "1e999999999", "1"], ("1", "1e999999999", "9" * 5000)),
        (["1.0", "0"], ("0", "1")),
        (["1_1", "11"], ("11", "1_1")),
        (["True", "false", " TRUE"], ("false", "true")),
        (["yes", " yes", "no "], ("no", "yes")),
        (["nan", "inf", "x"], ("inf", "nan", "x")),
    ],
)
def test_labels_that_are_spelt_differently_are_different_classes(labels: list[str], names: tuple[str, ...], tmp_path: Path) -> None:
    rows = [f"{i % 7},{labels[i % len(labels)]}" for i in range(30)]
    assert set(made(tmp_path, csv("x,y", rows)).spec.labels) == set(names)
    texts = "".join(f"some words {i % 7},{labels[i % len(labels)]}\n" for i in range(30))
    (tmp_path / "s.csv").write_text("text,y\n" + texts)
    source = parse(SourceConfig, {"kind": "csv", "path": str(tmp_path / "s.csv"), "text": "text", "label": "y"})
    assert set(source.labelled_texts().label_names) == set(names)


def test_parquet_and_json_numbers_beyond_2_to_the_53_stay_apart_as_labels_and_categories(tmp_path: Path) -> None:
    ids = [9007199254740992 + i % 3 for i in range(30)]
    rows = [json.dumps({"x": v, "y": v}) for v in ids]
    splits = made(tmp_path, "\n".join(rows), kind="jsonl", categorical=["x"])
    assert splits.spec.labels == tuple(str(9007199254740992 + i) for i in range(3))
    assert splits.spec.categories == (4,)
    plain = made(tmp_path, "\n".join(rows), kind="jsonl")
    assert any("above 2^53" in w and "'x'" in w for w in plain.facts["warnings"])


def test_one_part_does_not_change_how_another_is_read(tmp_path: Path) -> None:
    train = csv("x,y", [f"{i},{('01', '02', 'A1')[i % 3]}" for i in range(30)])
    test = csv("x,y", [f"{i},{('01', '02')[i % 2]}" for i in range(10)])
    splits = made(tmp_path, train, other=test)
    assert splits.spec.labels == ("01", "02", "A1")
    assert targets(splits, "test") == [0, 1] * 5
    values = made(tmp_path, csv("x,y", [f"{i},{i}.5" for i in range(30)]), other=csv("x,y", [f"{i},{i}" for i in range(10)]))
    assert targets(values, "test") == list(range(10))
    assert values.preprocess["targets"] == "values"


def test_one_rule_of_spelling_for_labels_and_features_that_is_said(tmp_path: Path) -> None:
    words = ["yes", " yes", "TRUE", "true", "Yes"]
    splits = made(tmp_path, csv("x,z,y", [f'{w},{i % 3},"{w}"' for i, w in enumerate(words * 8)]))
    assert splits.spec.labels == ("Yes", "true", "yes")
    assert column(splits, "x")["categories"] == 3
    assert "blanks" in splits.facts["label_spelling"]["rule"]
    assert splits.facts["label_spelling"]["one_class"] == {"yes": ["yes", " yes"], "true": ["TRUE", "true"]}
    assert any("'Yes' and 'yes' are different classes" in w for w in splits.facts["warnings"])


@pytest.mark.parametrize("pair", [("01", "1"), ("1e2", "100"), ("Grand Prix", "grand  prix"), ("yes", "YES")])
def test_classes_that_are_likely_to_be_one_are_a_warning(pair: tuple[str, str], tmp_path: Path) -> None:
    splits = made(tmp_path, csv("x,y", [f"{i % 7},{pair[i % 2]}" for i in range(20)]))
    assert len(splits.spec.labels) == 2
    assert [w for w in splits.facts["warnings"] if "are different classes" in w]
    clean = made(tmp_path, csv("x,y", [f"{i % 7},{'ab'[i % 2]}" for i in range(20)]))
    assert "warnings" not in clean.facts


def test_a_class_that_looks_like_no_label_is_a_warning(tmp_path: Path) -> None:
    splits = made(tmp_path, csv("x,y", [f"{i % 7},{('a', 'b', 'NA')[i % 3]}" for i in range(21)]))
    assert any("'NA' is a class" in w for w in splits.facts["warnings"])
    with pytest.raises(DataError, match=r"line 4: column 'y' is 'NA', expected a label"):
        made(tmp_path, csv("x,y", [f"{i % 7},{('a', 'b', 'NA')[i % 3]}" for i in range(21)]), missing=["", "NA"])


def test_half_a_character_is_no_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'y': the label .* lone surrogate"):
        made(tmp_path, "\n".join(f'{{"a": {i}, "y": "\\ud800{i % 2}"}}' for i in range(20)), kind="jsonl")


# ------------------------------------------------------------------------------------------------ numbers


def test_python_spellings_of_numbers_are_categories(tmp_path: Path) -> None:
    splits = made(tmp_path, csv("a,b,y", [f"{('1_1', '1_2', '11')[i % 3]},{('0x10', '0x11')[i % 2]},{i % 2}" for i in range(30)]))
    assert splits.spec.categories == (4, 3)
    numbers = made(tmp_path, csv("a,y", [f"{('1e5', '2e5', '3.')[i % 3]},{i % 2}" for i in range(30)]))
    assert sorted({*seen(numbers)[:, 0].tolist()}) == [3, 1e5, 2e5]
    with pytest.raises(DataError, match=r"column 'a' is 'inf', expected a number"):
        made(tmp_path, csv("a,y", [f"{'inf' if i == 3 else i},{i % 2}" for i in range(30)]))


@pytest.mark.parametrize("word", ["NA", "N/A", "null", "NaN", "?", "-", "None", "n/a", "#N/A"])
def test_mostly_missing_numbers_are_numbers_once_that_is_said_and_the_advice_is_true(word: str, tmp_path: Path) -> None:
    rows = [f"{word if i % 20 < 11 else i * 1.5},{i % 2}" for i in range(100)]
    with pytest.raises(DataError, match=r"line 2: column 'a' is .*expected a number: 55 of 100 values seem to be missing") as err:
        made(tmp_path, csv("a,y", rows))
    assert f"data.source.missing: ['', {word!r}]" in str(err.value)
    splits = made(tmp_path, csv("a,y", rows), missing=["", word], table={"impute": "median"})
    assert (column(splits, "a")["kind"], column(splits, "a")["missing"]) == ("number", 55)
    there = [i * 1.5 for i in range(100) if i % 20 >= 11]
    assert seen(splits)[0, 0] == np.median(there)
    assert inspect_table(tmp_path / "t.csv").columns[0].kind == "number"


def test_an_empty_cell_under_other_spellings_of_missing(tmp_path: Path) -> None:
    rows = [f"{'' if i == 3 else i},{i % 2}" for i in range(30)]
    with pytest.raises(DataError, match=r"line 5: column 'a' is ''") as err:
        made(tmp_path, csv("a,y", rows), missing=["NA"])
    assert "missing: ['NA', '']" in str(err.value)
    assert column(made(tmp_path, csv("a,y", rows), missing=["NA", ""], table={"impute": "mean"}), "a")["missing"] == 1
    padded = made(tmp_path, csv("a,y", [f"{' NA ' if i == 3 else i},{i % 2}" for i in range(30)]), missing=["NA"], table={"impute": "mean"})
    assert column(padded, "a")["missing"] == 1


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda v: f"{v:,.2f}", "decimal '.', thousands ','"),
        (lambda v: f"{v:,.2f}".replace(",", "_").replace(".", ",").replace("_", "."), "decimal ',', thousands '.'"),
        (lambda v: f"{v:.2f}".replace(".", ","), "decimal ','"),
        (lambda v: f"{v:,.2f}".replace(",", "\u202f").replace(".", ","), "decimal ',', thousands ' '"),
        (lambda v: f"${v:.2f}", "currency '$'"),
        (lambda v: f"{v:,.2f} €".replace(",", "_").replace(".", ",").replace("_", "."), "decimal ',', thousands '.', currency '€'"),
    ],
)
def test_numbers_of_other_countries_are_numbers_and_that_is_said(form: Any, said: str, tmp_path: Path) -> None:
    values = [round(float(v), 2) for v in RNG.lognormal(8, 2, 60)]
    splits = made(tmp_path, csv("a,y", [f'"{form(v)}",{i % 2}' for i, v in enumerate(values)]))
    np.testing.assert_array_equal(seen(splits)[:, 0], np.array(values, np.float32))
    assert said in splits.facts["notes"][0]
    assert said in column(splits, "a")["why"]
    assert inspect_table(tmp_path / "t.csv").columns[0].numbers == said
    again = inputs_from_records(splits.preprocess, [{"a": form(v)} for v in values] + [{"a": v} for v in values])
    np.testing.assert_array_equal(again[:60], seen(splits))
    np.testing.assert_array_equal(again[60:], seen(splits))


def test_percent_and_targets_in_a_form(tmp_path: Path) -> None:
    splits = made(tmp_path, csv("a,y", [f'{i}%,"{i},25"' for i in range(40)]))
    np.testing.assert_allclose(seen(splits)[:, 0], np.arange(40) / 100, rtol=1e-6)
    assert targets(splits) == [i + 0.25 for i in range(40)]
    with pytest.raises(DataError, match=r"column 'a' is '0\.5', expected a number \(percent"):
        made(tmp_path, csv("a,y", [f"{'0.5' if i == 9 else f'{i}%'},{i % 2}" for i in range(40)]))


def test_a_column_with_two_readings_is_refused_or_decided_by_the_other_columns_or_by_the_recipe(tmp_path: Path) -> None:
    rows = [f'"{i + 1},{i % 10}00",{i % 2}' for i in range(40)]
    with pytest.raises(DataError, match=r"column 'a': '1,000' is 1 or 1,000\. Set data\.source\.numbers: ") as err:
        made(tmp_path, csv("a,y", rows))
    assert 'numbers: {decimal: ".", thousands: ","}' in str(err.value)
    assert 'numbers: {decimal: ","}' in str(err.value)
    large = made(tmp_path, csv("a,y", rows), numbers={"decimal": ".", "thousands": ","})
    assert seen(large)[:2, 0].tolist() == [1000, 2100]
    small = made(tmp_path, csv("a,y", rows), numbers={"decimal": ","})
    assert seen(small)[:2, 0].tolist() == [1, np.float32(2.1)]
    points = made(tmp_path, csv("b,a,y", [f"{i}.5,{row}" for i, row in enumerate(rows)]))
    assert seen(points)[:2, 1].tolist() == [1000, 2100]
    commas = made(tmp_path, csv("b,a,y", [f'"{i},5",{row}' for i, row in enumerate(rows)]))
    assert seen(commas)[:2, 1].tolist() == [1, np.float32(2.1)]
    with pytest.raises(DataError, match=r"column 'y': '1,000' is 1 or 1,000"):
        made(tmp_path, csv("x,y", [f'{i},"{i + 1},{i % 10}00"' for i in range(40)]), target="value")
    labels = [f'"{i + 1},{i % 10}00"' for i in range(40)]
    pointed = made(tmp_path, csv("x,y", [f"{i}.5,{y}" for i, y in enumerate(labels)]), target="value")
    assert pointed.train.batch(np.arange(2)).targets.tolist() == [1000, 2100]
    money = made(tmp_path, csv("x,y", [f"{i},{y.replace(chr(34), chr(34) + '$', 1)}" for i, y in enumerate(labels)]), target="value")
    assert money.train.batch(np.arange(2)).targets.tolist() == [1000, 2100]  # an amount of money has no three decimals
    with pytest.raises(RecipeError, match="is also the decimal mark"):
        made(tmp_path, csv("a,y", rows), numbers={"decimal": ",", "thousands": ","})


def test_groups_of_three_behind_a_point_are_a_warning(tmp_path: Path) -> None:
    rows = [f"{i * 7 % 900 + 1}{'.125' if i % 2 else ''},{i % 2}" for i in range(40)]
    warned = made(tmp_path, csv("a,y", rows)).facts["warnings"]
    assert any("If it is" in w and 'numbers: {decimal: ",", thousands: "."}' in w for w in warned)
    german = made(tmp_path, csv("b,a,y", [f'"{i},5",{row}' for i, row in enumerate(rows)]))
    assert seen(german)[1, 1] == (7 % 900 + 1) * 1000 + 125
    likely = [f"{i * 70 % 900 + 1}{'.200' if i % 2 else ''},{i % 2}" for i in range(40)]  # 1 beside 71.200: decimals would be 71.2
    with pytest.raises(DataError, match=r"'71\.200' is 71\.2 or 71,200"):
        made(tmp_path, csv("a,y", likely))
    with pytest.raises(DataError, match=r"column 'y': '71\.200' is 71\.2 or 71,200"):
        made(tmp_path, csv("x,y", [f"{i},{row.split(',')[0]}" for i, row in enumerate(likely)]))
    assert seen(made(tmp_path, csv("a,y", likely), numbers={"decimal": "."}))[1, 0] == np.float32(71.2)
    commas = made(tmp_path, csv("a,y", [f'"{i * 70 % 900 + 1}{",200" if i % 2 else ""}",{i % 2}' for i in range(40)]))
    assert seen(commas)[1, 0] == 71_200
    assert "thousands ','" in commas.facts["notes"][0]


def test_words_for_missing_values_among_dates_and_categories(tmp_path: Path) -> None:
    rows = [f"{i % 7},{f'2024-01-{i % 28 + 1:02d}' if i % 3 else 'NA'},{i % 2}" for i in range(40)]
    with pytest.raises(DataError, match=r"line 2: column 't' is 'NA', expected a date .*missing: \['', 'NA'\]"):
        made(tmp_path, csv("a,t,y", rows), table={"dates": ["day"]})
    with pytest.raises(DataError, match=r"column 't' is missing \(14 of 40 rows\)\. Fill these values in, .*or leave"):
        made(tmp_path, csv("a,t,y", rows), table={"dates": ["day"]}, missing=["NA"])
    words = made(tmp_path, csv("a,w,y", [f"{i % 7},{('p', 'q', 'NA')[i % 3]},{i % 2}" for i in range(40)]))
    assert "'NA' in w: read as categories" in words.facts["notes"][0]


def test_numbers_of_json_may_stand_for_missing_values(tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"a": -999 if i % 5 == 0 else i, "y": i % 2}) for i in range(40))
    splits = made(tmp_path, rows, kind="jsonl", missing=["-999"], table={"impute": "median"})
    assert column(splits, "a")["missing"] == 8
    same = inputs_from_records(splits.preprocess, [{"a": -999.0}, {"a": None}, {"a": "-999"}])
    assert len({*same[:, 0].tolist()}) == 1


# ------------------------------------------------------------------------------------------------ keys, names, indexes


def test_a_key_that_some_rows_lack_is_a_column_with_missing_values(tmp_path: Path) -> None:
    rows = [{"a": i, "y": i % 2} | ({"b": i / 2} if i % 3 else {}) for i in range(30)]
    splits = made(tmp_path, "\n".join(map(json.dumps, rows)), kind="jsonl", table={"impute": "mean"})
    assert splits.preprocess["features"] == ["a", "b"]
    assert column(splits, "b")["missing"] == 10
    assert "'b' (10 of 30 rows)" in splits.facts["notes"][0]
    same = made(tmp_path, "\n".join(map(json.dumps, rows)), kind="jsonl", table={"impute": "mean"}, features=["a", "b"])
    np.testing.assert_array_equal(seen(same), seen(splits))
    with pytest.raises(DataError, match="no column 'bb'; did you mean 'b'"):
        made(tmp_path, "\n".join(map(json.dumps, rows)), kind="jsonl", features=["a", "bb"])
    with pytest.raises(DataError, match=r"line 2: no key 'y'"):
        made(tmp_path, '{"a": 1, "y": 0}\n{"a": 2}\n', kind="jsonl")
    with pytest.raises(DataError, match=r"line 1: the key 'a' occurs twice"):
        made(tmp_path, '{"a": 1, "a": 2, "y": 0}\n', kind="jsonl")


def test_files_with_other_columns_are_refused_unless_rows_name_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(csv("a,y", [f"{i},{i % 2}" for i in range(10)]))
    (tmp_path / "b.csv").write_text(csv("a,extra,y", [f"{i},{i},{i % 2}" for i in range(10)]))
    base = {"kind": "csv", "path": [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")], "label": "y"}
    with pytest.raises(DataError, match=r"b\.csv has a column 'extra', but .*a\.csv does not.*drop: \[extra\]"):
        parse(SourceConfig, base).table()
    assert list(parse(SourceConfig, base | {"features": ["a"]}).table().columns) == ["a"]
    for name, rows in (("a", [{"a": 1, "y": 0}]), ("b", [{"b": 2, "y": 1}])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    both = parse(SourceConfig, base | {"kind": "jsonl", "path": [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]}).table()
    assert both.columns == {"a": [1, None], "b": [None, 2]}


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("kind", ["csv", "again", "parquet"])
def test_the_index_that_pandas_writes_is_left_out_and_named(kind: str, shuffled: bool, tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    n = 60
    frame = pd.DataFrame({"a": RNG.normal(size=n).round(3), "y": np.repeat(["no", "yes"], n // 2)})
    if shuffled:
        frame = frame.sample(frac=0.8, random_state=0)
    if kind == "parquet":
        frame.to_parquet(tmp_path / "t.parquet", index=True)
        if not shuffled:
            return  # pandas writes a range as metadata, no column
    else:
        frame.to_csv(tmp_path / "t.csv")
        if kind == "again":
            pd.read_csv(tmp_path / "t.csv").to_csv(tmp_path / "t.csv")
    path = tmp_path / f"t.{'parquet' if kind == 'parquet' else 'csv'}"
    splits = made(tmp_path, path.read_bytes(), kind=path.suffix[1:])
    assert splits.preprocess["features"] == ["a"]
    assert "numbers the rows" in splits.facts["left_out"]["train"][0]
    kept = made(tmp_path, path.read_bytes(), kind=path.suffix[1:], keep_index=True)
    assert len(kept.preprocess["features"]) == (3 if kind == "again" else 2)
    if kind != "parquet":
        assert [c.kind for c in inspect_table(path).columns][-2:] == ["number", "category"]
        assert {c.kind for c in inspect_table(path).columns[:-2]} == {"identifier"}


def test_a_nameless_column_of_measurements_stays_and_one_without_values_goes(tmp_path: Path) -> None:
    assert made(tmp_path, csv(",b,y", [f"{i % 5},{i},{i % 2}" for i in range(30)])).preprocess["features"] == ["", "b"]
    trailing = made(tmp_path, csv("b,y,", [f"{i},{i % 2}," for i in range(30)]))
    assert trailing.preprocess["features"] == ["b"]
    assert "no value" in trailing.facts["left_out"]["train"][0]


def test_a_feature_that_equals_or_orders_the_label_is_a_warning(tmp_path: Path) -> None:
    noise = RNG.normal(size=60)
    rows = [f"{noise[i]:.3f},{i},{('low', 'mid', 'high')[i // 20]},{'xyz'[i // 20]}" for i in range(60)]
    warned = made(tmp_path, csv("noise,number,word,y", rows)).facts["warnings"]
    assert ["'number'" in w or "'word'" in w for w in warned] == [True, True]
    value = made(tmp_path, csv("noise,cubed,y", [f"{noise[i]:.3f},{i**3},{i}.5" for i in range(60)])).facts["warnings"]
    assert len(value) == 1
    assert "'cubed'" in value[0]


@pytest.mark.parametrize("classes", [2, 3, 0])
def test_chance_is_no_reason_for_a_warning(classes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(classes)
    for n in (12, 40):
        label = rng.integers(0, classes, n) if classes else rng.normal(size=n)
        rows = [",".join([*(f"{v:.3f}" for v in rng.normal(size=40)), "abc"[rng.integers(3)], str(label[i])]) for i in range(n)]
        splits = made(tmp_path, csv(",".join([*(f"f{j}" for j in range(40)), "w", "y"]), rows))
        assert "warnings" not in splits.facts


def test_names_are_the_same_however_their_accents_are_stored(tmp_path: Path) -> None:
    nfd = unicodedata.normalize("NFD", "Größe")
    text = csv(f"{nfd},Ort,y", [f"{i},{unicodedata.normalize('NFD' if i % 2 else 'NFC', 'Köln')},{i % 3}" for i in range(30)])
    for name in ("Größe", nfd):
        splits = made(tmp_path, text, features=[name, "Ort"], normalize="bounds", bounds={name: (0, 30)})
        assert splits.preprocess["features"] == ["Größe"]  # one town, so that column says nothing
        assert inputs_from_records(splits.preprocess, [{name: 30}])[0, 0] == 1
    rows = json.dumps({"Größe": 1, nfd: 2, "y": 0})
    with pytest.raises(DataError, match="the key 'Größe' occurs twice"):
        made(tmp_path, rows, kind="jsonl")


@pytest.mark.parametrize("names", ["a,b,a,y", f"Größe,b,{unicodedata.normalize('NFD', 'Größe')},y"])
def test_two_columns_of_one_name_are_named_in_every_reader(names: str, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    text = csv(names, [f"{i},{i % 3},{i},{i % 2}" for i in range(30)])
    with pytest.raises(DataError, match=r"two columns have the same name '(a|Größe)' \(columns 1 and 3\)"):
        made(tmp_path, text)
    with pytest.raises(DataError, match="two columns have the same name"):
        inspect_table(tmp_path / "t.csv")
    pq.write_table(pa.Table.from_arrays([pa.array([1, 2])] * 4, names=names.split(",")), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="two columns have the same name"):
        made(tmp_path, (tmp_path / "t.parquet").read_bytes(), kind="parquet")


# ------------------------------------------------------------------------------------------------ bytes


def test_a_cell_may_be_as_long_as_it_is(tmp_path: Path) -> None:
    long = "word " * 60_000
    (tmp_path / "t.csv").write_text(f'text,y\n"{long}",a\nshort,b\n')
    source = {"kind": "csv", "path": str(tmp_path / "t.csv")}
    assert [len(d.text) for d in parse(SourceConfig, source).documents()] == [len(long), 5]
    assert len(parse(SourceConfig, source | {"text": "text", "label": "y"}).labelled_texts().texts[0]) == len(long)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "without"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_byte_order_marks_and_utf_16_are_read(kind: str, encoding: str, tmp_path: Path) -> None:
    words = ["grün", "gr\u2028au", "blau"]
    rows = [{"a": i / 2, "w": words[i % 3], "y": "ja" if i % 2 else "nö"} for i in range(30)]
    text = "\n".join(map(json.dumps, rows)) if kind == "jsonl" else csv("a,w,y", [f"{r['a']},{r['w']},{r['y']}" for r in rows])
    if kind == "jsonl":
        text = "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    plain = made(tmp_path, text, kind=kind)
    if encoding == "without":
        np.testing.assert_array_equal(seen(made(tmp_path, text.encode("utf-16-be"), kind=kind)), seen(plain))
        encoding = "utf-8"
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    again = made(tmp_path, (mark + text).encode(encoding), kind=kind)
    assert again.spec.labels == plain.spec.labels == ("ja", "nö")
    np.testing.assert_array_equal(seen(again), seen(plain))
    assert column(again, "w")["categories"] == 3
    named = made(tmp_path, text.encode("utf-16-le"), kind=kind, encoding="utf-16-le")
    np.testing.assert_array_equal(seen(named), seen(plain))
    if kind == "csv":
        (tmp_path / "t.csv").write_bytes((mark + text).encode(encoding))
        assert [c.name for c in inspect_table(tmp_path / "t.csv").columns] == ["a", "w", "y"]


def test_a_series_with_a_byte_order_mark(tmp_path: Path) -> None:
    text = "date,a\n" + "".join(f"2024-01-{d:02d},{d}\n" for d in range(1, 20))
    for encoding in ("utf-8-sig", "utf-16", "utf-8"):
        (tmp_path / "s.csv").write_bytes(text.encode(encoding))
        assert parse(SourceConfig, {"kind": "series", "path": str(tmp_path / "s.csv")}).series().values[:, 0].tolist() == list(range(1, 20))


def test_moments_of_parquet_in_every_unit_and_zone(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    ticks = np.arange(40) * 3600 * 10**9 + 1_700_000_000 * 10**9
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)):
        for zone in (None, "UTC", "+02:00"):
            extra = 0 if unit == "s" else 1
            moment = pa.array(ticks // size + extra, pa.timestamp(unit, tz=zone))
            pq.write_table(pa.table({"t": moment, "y": [f"c{i % 3}" for i in range(40)]}), tmp_path / "t.parquet")
            splits = made(tmp_path, (tmp_path / "t.parquet").read_bytes(), kind="parquet", table={"dates": ["hour", "weekday", "days"]})
            hours = (ticks // 10**9 // 3600) % 24
            np.testing.assert_array_equal(seen(splits)[:, 0], hours)
            np.testing.assert_allclose(seen(splits)[:, 2], ticks / 86400e9, rtol=1e-6)


def test_archives_follow_the_same_rules(tmp_path: Path) -> None:
    x = RNG.normal(size=(40, 2))

    def archive(y: Any, x: Any = x) -> DataSplits:
        np.savez(tmp_path / "a.npz", x=x, y=y)
        return prepare(parse(DataConfig, {"source": {"kind": "npz", "path": str(tmp_path / "a.npz")}}), seed=0, input_kind="arrays")

    assert archive(np.array([("yes", " yes", "no", "TRUE")[i % 4] for i in range(40)])).spec.labels == ("no", "true", "yes")
    assert archive(np.arange(40) % 2 == 0).spec.labels == ("false", "true")
    assert archive(np.array([b"a", b"b"] * 20)).spec.labels == ("a", "b")
    assert archive(np.array([("01", "1")[i % 2] for i in range(40)])).facts["warnings"] == [
        "the labels: '01' and '1' are different classes. If they mean the same, use one spelling in the file"
    ]
    order = np.concatenate([x, np.arange(40.0)[:, None]], axis=1)
    assert "'x2'" in archive(np.repeat([0, 1], 20), order).facts["warnings"][0]
    many = np.arange(5000.0)[:, None]
    assert "'x0'" in archive(np.repeat([0, 1], 2500), many).facts["warnings"][0]
    many[1234] = 4999.5  # one row out of place, between those that are looked at first
    assert "warnings" not in archive(np.repeat([0, 1], 2500), many).facts


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_pandas_writes_is_read_as_it_was(data: st.DataObject, tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    n = data.draw(st.integers(12, 40))
    floats = st.floats(-1e12, 1e12, allow_nan=False, width=64).map(lambda v: round(v, 2))  # three decimals could be thousands
    frame = pd.DataFrame(
        {
            "real": data.draw(st.lists(st.one_of(floats, st.none()), min_size=n, max_size=n).filter(lambda v: len({*v} - {None}) > 1)),
            "whole": data.draw(st.lists(st.integers(-(2**53), 2**53), min_size=n, max_size=n, unique=True)),
            "word": data.draw(st.lists(st.sampled_from(["Köln", "Bad Ems", "a;b", 'say "x"', "p\nq", "x,y"]), min_size=n, max_size=n)),
        }
    )
    frame["word"] = [*frame["word"][:-2], "first", "second"]
    frame["y"] = [("01", "1", "ja")[i % 3] for i in range(n)]
    comma, missing = data.draw(st.booleans()), data.draw(st.sampled_from(["", "NA", "?"]))
    how = {"sep": ";", "decimal": ","} if comma else {}
    frame.to_csv(
        tmp_path / "t.csv",
        index=data.draw(st.booleans()),
        na_rep=missing,
        encoding=data.draw(st.sampled_from(["utf-8-sig", "utf-16"])),
        **how,
    )
    text = (tmp_path / "t.csv").read_bytes()
    declared = {"missing": ["", missing], "table": {"impute": "constant", "fill": -1}} | ({"delimiter": ";"} if comma else {})
    splits = made(tmp_path, text, **declared)
    got = seen(splits)
    assert splits.preprocess["features"] == ["real", "whole", "word"]
    np.testing.assert_array_equal(got[:, 0], frame["real"].fillna(-1).to_numpy(np.float64).astype(np.float32))
    np.testing.assert_array_equal(got[:, 1], frame["whole"].to_numpy(np.float64).astype(np.float32))
    codes = {w: i + 1 for i, w in enumerate(sorted({*frame["word"]}))}
    assert got[:, 2].tolist() == [codes[w] for w in frame["word"]]
    assert [splits.spec.labels[t] for t in targets(splits)] == frame["y"].tolist()
