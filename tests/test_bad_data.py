"""Bad data, and bytes that changed on disk, end in one clear error: what was got, what was expected, what to do; no traceback."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauon.artifacts import steps_in
from toy import Tauon, contents, nothing_half_written, refused, stop_after, table_recipe, text_recipe, words

RECIPE, DATA, CHECKPOINT, RUN, TRAINING = 2, 3, 4, 5, 6


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


# ------------------------------------------------------------------------------------------------ data


def bad_text(folder: Path, what: str) -> tuple[dict[str, Any], list[str]]:
    path = folder / "bad.txt"
    source: dict[str, Any] = {"kind": "text", "path": str(path)}
    if what == "missing":
        (folder / "bda.txt").write_text("x")
        return {"source": source}, [str(path), "no such file", "did you mean"]
    if what == "empty":
        path.write_text("")
        return {"source": source}, ["no text", "Check its path"]
    if what == "truncated":
        path = folder / "bad.txt.gz"
        path.write_bytes(gzip.compress(words(5000).encode())[:-20])
        return {"source": source | {"path": str(path)}}, [str(path), "truncated gzip", "again"]
    if what == "encoding":
        path.write_bytes(words(500).encode() + "caf\xe9".encode("latin-1") + b" more text")
        return {"source": source}, [str(path), "not utf-8 at byte", "encoding: latin-1"]
    if what == "short":
        path.write_text("only a few words here")
        return {"source": source, "split": {"validation": 0}, "seq_len": 64}, [
            "fewer than one sequence of seq_len=64",
            "Lower data.seq_len",
        ]
    if what == "no match":
        return {"source": source | {"path": str(folder / "*.nothing")}}, ["*.nothing", "no file matches"]
    if what == "bos":
        from tokenizers import Tokenizer, models

        Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(folder / "tokenizer.json"))
        path.write_text("abab" * 100)
        return {"source": source, "tokenizer": {"kind": "file", "path": str(folder / "tokenizer.json")}}, [
            "tokenizer.json",
            "Set data.tokenizer.bos",
        ]
    if what == "tokenizer":
        (folder / "tokenizer.json").write_text("{")
        path.write_text(words(100))
        return {"source": source, "tokenizer": {"kind": "file", "path": str(folder / "tokenizer.json")}}, [
            "tokenizer.json",
            "not valid JSON",
        ]
    assert what == "folder"
    path.mkdir()
    return {"source": source}, [str(path), "no file that matches"]


@pytest.mark.parametrize("what", ["missing", "empty", "truncated", "encoding", "short", "no match", "bos", "tokenizer", "folder"])
def test_text_that_cannot_be_read(tauon: Tauon, tmp_path: Path, what: str) -> None:
    data, says = bad_text(tmp_path, what)
    recipe = text_recipe(tmp_path / "r", data=data, train={"validate_every": None, "validate_examples": None})
    refused(tauon("run", recipe), DATA, *says)
    nothing_half_written(tmp_path / "r/cache")
    assert not steps_in(Path("runs/toy/checkpoints"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    (tmp_path / "text.txt").chmod(0)
    refused(tauon("run", recipe), DATA, "text.txt", "permission denied", "mode and owner")


def bad_table(folder: Path, what: str) -> tuple[dict[str, Any], str, list[str]]:
    x, y = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32), (np.arange(40) % 2).astype(np.int64)
    source: dict[str, Any] = {"kind": "npz", "path": str(folder / "a.npz"), "features": "x", "targets": "y"}
    says: list[str] = []
    task = "classification"
    if what == "labels out of range":
        y[7] = 9
        source["label_names"] = ["no", "yes"]
        says = ["label 9 of row 7", "0 to 1"]
    elif what == "NaN":
        x[3, 1] = np.nan
        says = ["row 3", "nan"]
    elif what == "fractions as classes":
        source["target"] = "class"
        y = y + 0.5
        says = ["not a whole number", "target: value"]
    elif what == "one class":
        y[:] = 0
        says = ["every row has the label '0'"]
    elif what == "values for classes":
        y = y + 0.25
        says = ["task", "classification needs classes", "Use task=regression"]
    elif what == "classes for values":
        task = "regression"
        says = ["task", "regression needs numbers", "2 classes", "data.source.target=value"]
    elif what == "pickle":
        np.savez(folder / "a.npz", x=np.array([{}] * 40, dtype=object), y=y)
        return source, task, ["Python objects", "could run code"]
    np.savez(folder / "a.npz", x=x, y=y)
    return source, task, says


@pytest.mark.parametrize(
    "what", ["labels out of range", "NaN", "fractions as classes", "values for classes", "classes for values", "one class", "pickle"]
)
def test_tables_that_make_no_sense(tauon: Tauon, tmp_path: Path, what: str) -> None:
    source, task, says = bad_table(tmp_path, what)
    ended = tauon("run", table_recipe(tmp_path / "r", data={"source": source}, task=task))
    refused(ended, ended.code, *says)
    assert ended.code in (RECIPE, DATA)
    assert not steps_in(Path("runs/table/checkpoints"))


TABLE = {
    "a constant column": ("a,b,y\n" + "".join(f"7,w,{i % 2}\n" for i in range(30)), {}, ["no column is left", "a is 7", "b is 'w'"]),
    "all values missing": ("a,b,y\n" + "".join(f"{i},,{i % 2}\n" for i in range(30)), {}, ["column 'b'", "have no value", "drop: [b]"]),
    "a label missing": ("a,y\n" + "".join(f"{i},{'' if i == 9 else i % 2}\n" for i in range(30)), {}, ["line 11", "column 'y'", "expected a label"]),
    "only one class": ("a,y\n" + "".join(f"{i},good\n" for i in range(30)), {}, ["every row has the label 'good'", "at least two classes"]),
    "a class that training does not have": (
        "a,y\n" + "".join(f"{i},{'new' if i > 27 else i % 2}\n" for i in range(30)), {"split": {"by": "position"}}, ["class 'new'", "no training row"],
    ),
    "a missing number": ("a,y\n" + "".join(f"{'' if i == 3 else i},{i % 2}\n" for i in range(30)), {}, ["column 'a' is missing", "data.table.impute (median"]),
    "an identifier": ("a,y\n" + "".join(f"n{i},{i % 2}\n" for i in range(90)), {}, ["'a' looks like an identifier", "drop: [a]"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_tables_that_teach_nothing(tauon: Tauon, tmp_path: Path, name: str) -> None:
    content, data, says = TABLE[name]
    (tmp_path / "t.csv").write_text(content)
    source = {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "y"}
    refused(tauon("run", table_recipe(tmp_path / "r", data={"source": source, **data})), DATA, *says)


def test_a_category_that_training_never_saw_is_counted_and_said(tauon: Tauon, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{'new' if i > 55 else 'ab'[i % 2]},{i % 3 % 2}\n" for i in range(60)))
    source = {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "y"}
    assert tauon("run", table_recipe(tmp_path / "r", data={"source": source, "split": {"by": "position"}})).code == 0
    assert json.loads(Path("runs/table/data.json").read_text())["unseen_categories"] == {"validation": {"a": 4}}
    assert "unseen" in Path("runs/table/report.html").read_text()


def test_codes_are_refused_by_models_that_would_multiply_them(tauon: Tauon, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{'abc'[i % 3]},{i % 2}\n" for i in range(30)))
    source = {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "y"}
    recipe = table_recipe(tmp_path / "r", data={"source": source}, model={"kind": "logistic"})
    refused(tauon("run", recipe), RECIPE, "model.kind", "1 columns hold codes of categories", "data.table.categories: onehot")
    assert tauon("run", recipe, "data.table.categories=onehot").code == 0


DAYS = [f"2020-01-{i + 1:02d},{i},{i * i % 7}" for i in range(31)]
SERIES: dict[str, tuple[list[str], list[str]]] = {
    "dates out of order": ([*DAYS[:9], DAYS[10], DAYS[9], *DAYS[11:]], ["dates out of order", "2020-01-10", "row 10", "Sort"]),
    "a moment twice": ([*DAYS[:9], DAYS[8], *DAYS[9:]], ["2020-01-09", "occurs twice", "rows 8 and 9"]),
    "a gap": (DAYS[:9] + DAYS[11:], ["2 time steps are missing", "2020-01-09", "fill: forward"]),
    "shorter than its window": (DAYS[:12], ["the train part has 11 of the series' 12 time steps", "a window of 10 + 3 steps"]),
    "a missing value": ([*DAYS[:9], "2020-01-10,,3", *DAYS[10:]], ["1 values are missing", "column 'a'", "fill: forward"]),
    "a constant column": ([f"2020-01-{i + 1:02d},4,{i}" for i in range(30)], ["column 'a' is 4 at all", "targets: [...]"]),
    "all values missing": ([f"2020-01-{i + 1:02d},,{i}" for i in range(30)], ["column 'a' has no values"]),
    "no dates": ([f"day {i},{i},{i}" for i in range(30)], ["'day 0'", "is not a date", "date_format"]),
}


@pytest.mark.parametrize("name", SERIES)
def test_series_that_cannot_be_learned_from(tauon: Tauon, tmp_path: Path, name: str) -> None:
    lines, says = SERIES[name]
    (tmp_path / "s.csv").write_text("\n".join(["date,a,b", *lines]))
    data = {"source": {"kind": "series", "path": str(tmp_path / "s.csv")}, "window": {"context": 10, "horizon": 3}}
    recipe = table_recipe(tmp_path / "r", data=data, task="forecasting", model={"kind": "dlinear"})
    refused(tauon("run", recipe), DATA, *says)


def test_a_table_is_no_series_and_a_series_no_table(tauon: Tauon, tmp_path: Path) -> None:
    series = {"source": {"kind": "series", "path": "s.csv"}}
    refused(
        tauon("run", table_recipe(tmp_path / "r", data=series)),
        RECIPE,
        "data.source",
        "'series' provides a time series",
        "features and targets",
    )
    refused(
        tauon("run", table_recipe(tmp_path / "r", task="forecasting", model="dlinear")), RECIPE, "'sklearn' provides features and targets"
    )
    refused(
        tauon("run", table_recipe(tmp_path / "r", data=series, task="forecasting")),
        RECIPE,
        "model.kind",
        "mlp reads arrays",
        "dlinear, lstm, patchtst",
    )


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("torn", ["a/0.png: damaged or not an image", "on_corrupt=skip"]),
        ("one class", ["only one class (a)", "the images of each class in a subfolder of its own"]),
        ("empty class", ["/c: this class folder has no image"]),
        ("sizes", ["3 x 3 pixels", "data.source.size"]),
        ("a class only the test part has", ["the test source has the label 'c', which the training data does not have"]),
    ],
)
def test_folders_of_pictures_that_make_no_sense(tauon: Tauon, tmp_path: Path, what: str, says: list[str]) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    root = tmp_path / "signs"
    base = root / "train" if what.startswith("a class") else root
    for c in ("ab", "a")[what == "one class"]:
        (base / c).mkdir(parents=True)
        for i in range(6):
            image.new("L", (8, 8), 40 * i).save(base / c / f"{i}.png")
    if what == "torn":
        (base / "a" / "0.png").write_bytes((base / "a" / "0.png").read_bytes()[:40])
    elif what == "empty class":
        (base / "c").mkdir()
    elif what == "sizes":
        image.new("L", (3, 3)).save(base / "b" / "9.png")
    elif what.startswith("a class"):
        for c in "ac":
            (root / "test" / c).mkdir(parents=True)
            image.new("L", (8, 8)).save(root / "test" / c / "0.png")
    data = {"source": {"kind": "folder", "path": str(root)}}
    refused(tauon("run", table_recipe(tmp_path / "r", data=data, model={"kind": "cnn", "channels": [8]})), DATA, *says)
    assert not steps_in(Path("runs/table/checkpoints"))


def test_a_csv_cell_that_is_no_number_is_named_by_line_and_column(tauon: Tauon, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,y\n1,2,x\n3,four,y\n")
    recipe = table_recipe(tmp_path / "r", data={"source": {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "y"}})
    refused(tauon("run", recipe), DATA, "t.csv, line 3", "'b'", "'four'")


def test_a_tokenizer_of_fewer_ids_than_the_model_knows_is_fine_more_is_not(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    assert tauon("train", recipe, "model.vocab=300", "name=larger").code == 0
    refused(
        tauon("train", recipe, "model.vocab=256", "name=smaller"), RECIPE, "model.vocab", "256 is less than the tokenizer's 257", "set 257"
    )


# ------------------------------------------------------------------------------------------------ bytes that changed


def flip(path: Path, at: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x01
    path.write_bytes(data)


@pytest.mark.parametrize("assignment", ["name=again", "train.steps=12"])
def test_a_changed_byte_in_prepared_data_is_found_before_training(tauon: Tauon, tmp_path: Path, assignment: str) -> None:
    assert tauon("run", text_recipe(tmp_path, stages=["prepare"], optim=None, evaluate=None)).code == 0
    recipe = text_recipe(tmp_path)
    (shard,) = (tmp_path / "cache").rglob("train/tokens-00000.npy")
    flip(shard)
    refused(tauon("train", recipe, assignment), DATA, str(shard), "sha256", "Delete")
    shutil.rmtree(tmp_path / "cache/tokens")
    assert tauon("train", recipe, assignment).code == 0


def test_a_changed_byte_in_the_newest_checkpoint_falls_back_to_the_one_before(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    assert tauon("train", recipe, "name=whole").code == 0
    stop_after(tauon, recipe, step=8)
    flip(Path("runs/toy/checkpoints/step-000008/model.safetensors"))
    ended = tauon("train", recipe)
    assert ended.code == 0 and "warning" in ended.err and "step-000008" in ended.err
    assert "resuming at step 4" in ended.out
    for group in ("model", "optim"):
        a, b = (Path(f"runs/{n}/checkpoints/step-000012/{group}.safetensors").read_bytes() for n in ("whole", "toy"))
        assert a == b


def test_a_changed_byte_in_the_checkpoint_of_a_finished_run_is_an_error(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    assert tauon("train", recipe).code == 0
    flip(Path("runs/toy/checkpoints/step-000012/model.safetensors"))
    for command in (("evaluate", recipe), ("generate", "runs/toy")):
        ended = tauon(*command)
        assert ended.code == CHECKPOINT and "step-000012/model.safetensors" in ended.err and "SHA-256" in ended.err
        assert "earlier checkpoint" in ended.err and "Traceback" not in ended.err
    assert not Path("runs/toy/evaluation.json").exists()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"model": {"width": 32}}, ["of another architecture", "blocks.0.attention.k.weight has shape (32, 32), the model's is (16, 16)"]),
        ({"model": {"layers": 2}}, ["of another architecture", "left over blocks.1."]),
        ({"model": {"kind": "gpt2", "layers": 1, "width": 16, "heads": 2}}, ["of another architecture", "missing blocks.0", "left over"]),
        ({"optim": {"kind": "sgd"}}, ["optimizer"]),
        ({"optim": {"kind": "muon"}}, ["optimizer"]),
        ({"train": {"steps": 20}}, ["20 steps", "12"]),
        ({"train": {"ema": 0.9}}, ["ema"]),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(tauon: Tauon, tmp_path: Path, other: dict[str, Any], says: list[str]) -> None:
    stop_after(tauon, text_recipe(tmp_path), step=8)
    stop_after(tauon, text_recipe(tmp_path, name="other", **other), step=8)
    for step in ("step-000004", "step-000008"):
        shutil.rmtree(f"runs/toy/checkpoints/{step}")
        shutil.copytree(f"runs/other/checkpoints/{step}", f"runs/toy/checkpoints/{step}")
    before = contents(Path("runs/toy/checkpoints"))
    refused(tauon("train", text_recipe(tmp_path)), CHECKPOINT, "step-000008", *says)
    assert contents(Path("runs/toy/checkpoints")) == before
