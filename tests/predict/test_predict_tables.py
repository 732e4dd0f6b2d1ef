"""From a table to predictions: the figures that evaluation reported, whatever the file's format, size and batch; errors by row and column."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest

from tauon.artifacts import read_json
from tauon.config import parse
from tauon.data import DataConfig, inputs_from_records, prepare
from tauon.data.targets import TargetScale
from tauon.errors import DataError, RecipeError
from tauon.evaluate.tiles import predict_all
from tauon.pipeline import run
from tauon.predict import Predictor, files, open_trained, predict_file, predict_rows, predict_stream
from tauon.recipe import Recipe
from toy import Tauon

TOWNS = ("Bonn", "Kiel", "Ulm, Donau", 'the "old" town')


def write_people(path: Path, n: int, seed: int, *, decimal: str = ".", delimiter: str = ",") -> Path:
    """Rows with numbers, missing values, dates, categories with commas and quotes, and two labels."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as f:
        out = csv.writer(f, delimiter=delimiter)
        out.writerow(["id", "age", "town", "since", "amount", "paid", "price"])
        for i in range(n):
            town = TOWNS[int(rng.integers(len(TOWNS)))]
            age, amount = int(rng.integers(20, 70)), rng.normal()
            paid = ("no", "often", "seldom")[int(rng.integers(3)) if rng.random() < 0.3 else TOWNS.index(town) % 3]
            price = 50 + age + 10 * amount + rng.normal()
            cells = [
                i,
                "" if i % 9 == 0 else age,
                "" if i % 11 == 0 else town,
                f"2020-{i % 12 + 1:02d}-03",
                f"{amount:.4f}",
                paid,
                f"{price:.3f}",
            ]
            out.writerow([str(c).replace(".", decimal) if k in (4, 6) else c for k, c in enumerate(cells)])
    return path


def trained(folder: Path, task: Any, label: str, **source: Any) -> tuple[Path, Path]:
    """(run, its raw test rows)."""
    delimiter, decimal = source.get("delimiter", ","), source.pop("decimal", ".")
    train = write_people(folder / "train.csv", 300, 0, decimal=decimal, delimiter=delimiter)
    test = write_people(folder / "test.csv", 137, 1, decimal=decimal, delimiter=delimiter)
    drop = ["id", "price" if label == "paid" else "paid"]
    both = {"kind": "csv", "label": label, "drop": drop, **source}
    recipe = parse(Recipe, {
        "name": "people", "data": {"source": {**both, "path": str(train)}, "test": {**both, "path": str(test)},
                                   "table": {"impute": "median", "dates": ["month", "days"]},
                                   "label_order": ["no", "seldom", "often"] if task == "ordinal" else []},
        "task": task, "model": {"kind": "mlp", "hidden": [16]}, "optim": {"kind": "adam", "lr": 0.02},
        "train": {"steps": 40, "batch": 32, "validate_every": None}, "evaluate": {"resamples": 100},
    })  # fmt: skip
    return run(recipe, root=folder / "runs").folder, test


def evaluated(folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """(the figures that the run reported, what its model says of the test part)."""
    from tauon.recipe import load_recipe

    metrics = {k: m["value"] for k, m in read_json(folder / "evaluation.json")["metrics"].items()}
    recipe, it = load_recipe(folder), open_trained(folder)
    splits = prepare(recipe.data, seed=recipe.seed, input_kind=recipe.task.input_kind, scale_targets=recipe.task.scales_targets)
    assert splits.test is not None
    return metrics, predict_all(it.model, recipe.task, splits.test, batch=64, context=it.precision.context)[0]


def nearly(answer: dict[str, Any]) -> dict[str, Any]:
    """In another place of a tile, the last bit may be another."""
    return {k: pytest.approx(v, rel=1e-5) if isinstance(v, float) else v for k, v in answer.items()}


def column(path: Path, name: str) -> list[str]:
    with path.open(newline="") as f:
        return [row[name] for row in csv.DictReader(f)]


@pytest.fixture(scope="module")
def payers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return trained(tmp_path_factory.mktemp("payers"), "classification", "paid")


def test_predicting_the_raw_test_rows_gives_the_figures_of_evaluation(payers: tuple[Path, Path], tmp_path: Path) -> None:
    folder, test = payers
    done = predict_file(folder, test, tmp_path / "out.csv")
    assert done.rows == 137 and done.columns == ["prediction", "probability_no", "probability_often", "probability_seldom"]
    metrics, said = evaluated(folder)
    right = [a == b for a, b in zip(column(tmp_path / "out.csv", "prediction"), column(test, "paid"), strict=True)]
    assert sum(right) / len(right) == metrics["accuracy"]
    ours = np.array([column(tmp_path / "out.csv", f"probability_{c}") for c in ("no", "often", "seldom")], np.float32).T
    np.testing.assert_array_equal(ours, said["scores"])
    with test.open(newline="") as a, (tmp_path / "out.csv").open(newline="") as b:  # the rows themselves are as they were
        assert [[*r] for r in csv.reader(a)] == [r[:7] for r in csv.reader(b)]


@pytest.mark.parametrize("task", ["regression", {"kind": "quantile-regression", "quantiles": [0.1, 0.5, 0.9]}], ids=["mean", "quantiles"])
def test_numbers_come_in_the_units_of_the_data(tmp_path: Path, task: Any) -> None:
    folder, test = trained(tmp_path, task, "price")
    predict_file(folder, test, tmp_path / "out.csv")
    metrics, said = evaluated(folder)
    ours, truth = (np.array(column(p, n), np.float64) for p, n in ((tmp_path / "out.csv", "prediction"), (test, "price")))
    scale = open_trained(folder).preprocess["target_scale"]
    theirs = said["predictions" if task == "regression" else "quantiles"].reshape(len(ours), -1)
    np.testing.assert_array_equal(ours, theirs[:, theirs.shape[1] // 2].astype(np.float64) * scale["scale"][0] + scale["center"][0])
    kept = TargetScale.from_json(scale)
    trained_on = kept.undo(kept(truth))  # targets are float32 in the model's scale
    assert math.fsum(np.abs(ours - trained_on)) / len(ours) == metrics["mae"]
    if task != "regression":
        low, high = (np.array(column(tmp_path / "out.csv", f"quantile_{q}"), np.float64) for q in (0.1, 0.9))
        assert ((truth >= low) & (truth <= high)).mean() == metrics["coverage_80"]


def test_ordered_classes_are_predicted_by_their_median(tmp_path: Path) -> None:
    folder, test = trained(tmp_path, "ordinal", "paid")
    predict_file(folder, test, tmp_path / "out.csv")
    right = [a == b for a, b in zip(column(tmp_path / "out.csv", "prediction"), column(test, "paid"), strict=True)]
    assert sum(right) / len(right) == evaluated(folder)[0]["accuracy"]


def test_decimal_commas_are_read_as_training_read_them(tmp_path: Path) -> None:
    folder, test = trained(tmp_path, "classification", "paid", delimiter=";", decimal=",")
    predict_file(folder, test, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as f:
        rows = list(csv.DictReader(f, delimiter=";"))
    _, said = evaluated(folder)
    np.testing.assert_array_equal(np.array([r["probability_no"] for r in rows], np.float32), said["scores"][:, 0])


def test_a_number_may_be_missing_where_commas_are_decimal_marks(tmp_path: Path) -> None:
    """Held-out rows and new ones alike: the second of three becomes the median."""
    (tmp_path / "a.csv").write_text("a;y\n" + "".join(f"{i},5;{'pq'[i % 2]}\n" for i in range(40)))
    (tmp_path / "b.csv").write_text("a;y\n1,5;p\n;q\n20;q\n")
    source = {"kind": "csv", "path": str(tmp_path / "a.csv"), "label": "y", "delimiter": ";"}
    config = parse(DataConfig, {"source": source, "test": source | {"path": str(tmp_path / "b.csv")}, "table": {"impute": "median"}})
    made = prepare(config, seed=0, input_kind="arrays")
    assert made.test is not None
    seen = made.test.batch(np.arange(3)).inputs.numpy()
    given = [{"a": "1,5"}, {"a": ""}, {"a": 20.0}]
    np.testing.assert_array_equal(inputs_from_records(made.preprocess, given), seen)
    assert seen[1] == seen[2] or abs(seen[1] - seen[2]) < 0.2  # the median of the training rows is near 20


def test_neither_batch_nor_format_nor_company_changes_a_prediction(payers: tuple[Path, Path], tmp_path: Path) -> None:
    folder, test = payers
    predictor = Predictor.open(folder)
    predict_file(predictor, test, tmp_path / "a.csv")
    predict_file(predictor, test, tmp_path / "b.csv", batch=1)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    with test.open(newline="") as f:
        rows = list(csv.DictReader(f))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    typed = arrow_csv.read_csv(test, parse_options=arrow_csv.ParseOptions(newlines_in_values=True))
    pq.write_table(typed.set_column(2, "town", typed["town"].dictionary_encode()), tmp_path / "t.parquet", row_group_size=50)
    expected = column(tmp_path / "a.csv", "probability_often")
    for source in ("t.jsonl", "t.parquet"):
        for to in ("c.csv", "c.jsonl", "c.parquet", "c.csv.gz"):
            assert predict_file(predictor, tmp_path / source, tmp_path / to).rows == 137
        assert column(tmp_path / "c.csv", "probability_often") == expected
        table = pq.read_table(tmp_path / "c.parquet")
        assert [str(v) for v in table["probability_often"].to_numpy()] == expected
        assert [str(json.loads(line)["probability_often"]) for line in (tmp_path / "c.jsonl").read_text().splitlines()] == expected
    together = predict_rows(predictor, rows)
    assert [str(r["probability_often"]) for r in together] == expected
    assert list(predict_stream(predictor, iter(rows), batch=64)) == together
    assert predict_rows(folder, rows[5:6]) == [nearly(together[5])]


def test_the_label_may_be_missing_or_empty(payers: tuple[Path, Path], tmp_path: Path) -> None:
    folder, test = payers
    with test.open(newline="") as f:
        rows = list(csv.reader(f))
    for name, keep in (("without", [0, 1, 2, 3, 4]), ("other order", [4, 2, 3, 1])):
        with (tmp_path / f"{name}.csv").open("w", newline="") as f:
            csv.writer(f).writerows([r[k] for k in keep] for r in rows)
        predict_file(folder, tmp_path / f"{name}.csv", tmp_path / "out.csv")
        assert (tmp_path / "out.csv").read_text().splitlines()[0].split(",")[len(keep)] == "prediction"
    predict_file(folder, test, tmp_path / "all.csv")
    assert column(tmp_path / "out.csv", "prediction") == column(tmp_path / "all.csv", "prediction")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r | {"age": "old"}, ["line 4", "'age'", "'old'"]),
        (lambda r: r | {"since": "yesterday"}, ["line 4", "'since'", "'yesterday'"]),
        (lambda r: r | {"amount": ""}, ["line 4", "'amount'", "missing"]),
        (lambda r: r | {"amount": "nan"}, ["line 4", "'amount'", "'nan'"]),
        (lambda r: {("townn" if k == "town" else k): v for k, v in r.items()}, ["'town'", "did you mean 'townn'"]),
    ],
)
def test_an_error_names_row_and_column_and_leaves_no_file(payers: tuple[Path, Path], tmp_path: Path, change: Any, said: list[str]) -> None:
    folder, test = payers
    with test.open(newline="") as f:
        rows = list(csv.DictReader(f))
    rows = [change(r) if i == 2 or "town" not in change(r) else r for i, r in enumerate(rows)]
    for suffix in ("csv", "jsonl"):
        path = tmp_path / f"bad.{suffix}"
        with path.open("w", newline="") as f:
            if suffix == "csv":
                out = csv.DictWriter(f, rows[0])
                out.writeheader()
                out.writerows(rows)
            else:
                f.write("".join(json.dumps(r) + "\n" for r in rows))
        if "missing" in said:
            continue  # a missing amount was never seen, but impute: median fills it
        with pytest.raises(DataError) as err:
            predict_file(folder, path, tmp_path / "out.csv")
        assert all(word.replace("line 4", "line 3") in str(err.value) if suffix == "jsonl" else word in str(err.value) for word in said), (
            err.value
        )
        assert {p.name for p in tmp_path.iterdir()} <= {"bad.csv", "bad.jsonl"}


def test_an_unseen_category_is_read_as_training_reads_it_and_counted(payers: tuple[Path, Path], tmp_path: Path) -> None:
    folder, test = payers
    (tmp_path / "t.csv").write_text(test.read_text().replace("Kiel", "Atlantis"))
    done = predict_file(folder, tmp_path / "t.csv", tmp_path / "out.csv")
    assert done.notes == [f"values of 'town' that were not in the training data: {test.read_text().count('Kiel')}"]
    row = {"age": 40, "since": "2020-01-03", "amount": 0.5}
    strange, missing = predict_rows(folder, [row | {"town": "Atlantis"}, row | {"town": "Lyonesse"}])
    assert strange == missing


def test_columns_that_collide_are_renamed_and_others_can_be_left_out(payers: tuple[Path, Path], tmp_path: Path) -> None:
    folder, test = payers
    (tmp_path / "t.csv").write_text(test.read_text().replace("id,", "prediction,", 1))
    done = predict_file(folder, tmp_path / "t.csv", tmp_path / "out.csv", columns=["prediction"])
    assert done.columns == ["tauon_prediction"] and column(tmp_path / "out.csv", "prediction")[:3] == ["0", "1", "2"]
    predict_file(folder, tmp_path / "t.csv", tmp_path / "out.csv", keep=["town"], columns=["prediction", "probability_no"])
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "town,prediction,probability_no"
    with pytest.raises(RecipeError, match="--keep: no column 'city'"):
        predict_file(folder, tmp_path / "t.csv", tmp_path / "out.csv", keep=["city"])
    with pytest.raises(RecipeError, match="suffix must be one of"):
        predict_file(folder, tmp_path / "t.csv", tmp_path / "out.xlsx")


def test_ctrl_c_leaves_the_old_output_and_nothing_else(payers: tuple[Path, Path], tmp_path: Path) -> None:
    folder, test = payers
    (tmp_path / "out.csv").write_text("before")

    def stop(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(folder, test, tmp_path / "out.csv", batch=64, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"] and (tmp_path / "out.csv").read_text() == "before"


def test_the_command_line_answers_files_and_rows(payers: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, test = payers
    tauon = Tauon(capsys)
    ended = tauon("predict", folder, "--data", test, "--to", tmp_path / "out.csv")
    assert ended.code == 0 and "137 rows" in ended.out, ended
    assert tauon("predict", folder, "--data", test).code == 2
    assert tauon("predict", tmp_path, "--data", test, "--to", tmp_path / "o.csv").code == 5
    assert tauon("predict", folder, "--data", tmp_path / "no.csv", "--to", tmp_path / "o.csv").code == 3
    rows = [
        {"age": "41", "town": "Bonn", "since": "2020-02-03", "amount": 1},
        {"age": None, "town": "?", "since": "2020-02-03", "amount": 2},
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "tauon", "predict", str(folder), "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    assert process.stdin is not None and process.stdout is not None
    expected = predict_rows(folder, rows)
    for row, answer in zip(rows, expected, strict=True):  # each is answered before the next is asked
        process.stdin.write(json.dumps(row) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == row | nearly(answer)
    process.stdin.close()
    assert process.wait(60) == 0
    process.stdout.close()


def test_pieces_of_a_file_keep_their_rows_in_order(payers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, test = payers
    from tauon.predict import csv_stream

    predict_file(folder, test, tmp_path / "a.csv")
    monkeypatch.setattr(csv_stream, "PIECE", 500)
    predict_file(folder, test, tmp_path / "b.csv", batch=100)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert files.BATCH % 64 == 0


def test_text_cells_that_no_encoding_holds_are_named(payers: tuple[Path, Path], tmp_path: Path) -> None:
    folder, test = payers
    (tmp_path / "t.csv").write_bytes(test.read_bytes().replace(b"Kiel", b"K\xff"))
    with pytest.raises(DataError, match="not utf-8"):
        predict_file(folder, tmp_path / "t.csv", tmp_path / "out.csv")


def test_a_model_of_named_numbers_reads_a_table_of_them(tmp_path: Path) -> None:
    recipe = parse(Recipe, {
        "name": "iris", "data": {"source": {"kind": "sklearn", "name": "iris"}}, "task": "classification", "model": {"kind": "mlp", "hidden": [8]},
        "optim": {"kind": "adam", "lr": 0.02}, "train": {"steps": 12, "batch": 16}, "evaluate": {"resamples": 100},
    })  # fmt: skip
    folder = run(recipe, root=tmp_path).folder
    it = open_trained(folder)
    names = it.preprocess["features"]
    values = np.random.default_rng(0).normal(3, 1, (70, len(names)))
    arrow_csv.write_csv(pa.table({n: values[:, i] for i, n in enumerate(names)}), tmp_path / "t.csv")
    predict_file(folder, tmp_path / "t.csv", tmp_path / "out.csv")
    assert len(column(tmp_path / "out.csv", "prediction")) == 70
    (tmp_path / "t.csv").write_text(",".join(f'"{n}"' for n in names) + "\n1,2,,4\n")
    with pytest.raises(DataError, match=r"line 2: column .* is missing"):
        predict_file(folder, tmp_path / "t.csv", tmp_path / "out.csv")
