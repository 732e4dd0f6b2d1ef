"""`tauon recipe new`: somebody's files in, a recipe out that trains without edits."""

from __future__ import annotations

import csv
import datetime
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from tauon.artifacts import read_json
from tauon.errors import DataError, RecipeError
from tauon.pipeline import run
from tauon.recipe import load_recipe
from tauon.starter import draft, write_draft
from tones import tone, write_wav
from toy import Tauon, words


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


def table(path: Path, rows: int = 120) -> Path:
    draw = random.Random(0)
    with path.open("w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["patient_id", "age", "sex", "pressure", "outcome"])
        for i in range(rows):
            age, sex = draw.randint(20, 90), draw.choice(["f", "m"])
            pressure = "" if draw.random() < 0.1 else f"{100 + age / 2 + draw.gauss(0, 5):.1f}"
            out.writerow([i, age, sex, pressure, "ill" if age + draw.gauss(0, 10) > 55 else "well"])
    return path


def series(path: Path, without: int = -1) -> Path:
    days = [datetime.date(2024, 1, 1) + datetime.timedelta(i) for i in range(300)]
    rows = [f"{day},{10 + math.sin(i / 3):.3f},{20 + math.cos(i / 5):.3f}" for i, day in enumerate(days) if i != without]
    path.write_text("\n".join(["date,load,temperature", *rows]))
    return path


def recordings(folder: Path, name: str) -> Path:
    for label, frequency in (("yes", 300), ("no", 1200)):
        for take in range(15):
            write_wav(folder / name.format(label=label, take=take), tone(frequency, 0.1 + 0.005 * take, 8000, take), 8000)
    return folder


def pictures(folder: Path, *, parts: bool = False) -> Path:
    """Squares and stripes, 20 x 24 pixels; stripes are rarer."""
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    draw = random.Random(0)
    for label, number in (("square", 30), ("stripes", 14)):
        for i in range(number):
            picture = image.new("L", (24, 20), draw.randint(0, 40))
            for x in range(24):
                for y in range(20):
                    if (label == "square" and 6 < x < 18 and 5 < y < 15) or (label == "stripes" and x % 6 < 3):
                        picture.putpixel((x, y), draw.randint(180, 255))
            part = ("test" if i % 5 == 0 else "train") if parts else ""
            (folder / part / label).mkdir(parents=True, exist_ok=True)
            picture.save(folder / part / label / f"{i}.png")
    return folder


def documents(path: Path) -> Path:
    path.write_text("\n".join(json.dumps({"text": words(60, seed)}) for seed in range(40)))
    return path


def numbers(path: Path) -> Path:
    draw = random.Random(0)
    rows = [{"a": draw.random(), "b": draw.random(), "note": f"n{i}"} for i in range(80)]
    path.write_text("\n".join(json.dumps(r | {"y": "high" if r["a"] > r["b"] else "low"}) for r in rows))  # type: ignore[operator]
    return path


SHORT = ["train.epochs=null", "train.steps=4"]


def trains(path: Path, folder: Path) -> dict[str, Any]:
    """All stages, as written but for the number of steps; the figures."""
    done = run(load_recipe(path, SHORT), root=folder / "runs")
    figures: dict[str, Any] = read_json(done.folder / "evaluation.json")
    return figures


def test_a_table_becomes_a_classifier_of_its_label(tmp_path: Path, tauon: Tauon) -> None:
    table(tmp_path / "patients.csv")
    ended = tauon("recipe", "new", "--from", "patients.csv", "--label-from", "outcome")
    assert ended.code == 0, ended.err
    written = yaml.safe_load((tmp_path / "patients.yaml").read_text())
    assert written["task"] == "classification" and written["data"]["table"]["impute"] == "median"
    assert written["data"]["source"]["drop"] == ["patient_id"]
    assert "# patient_id is left out" in ended.out and "wrote patients.yaml" in ended.err
    assert trains(tmp_path / "patients.yaml", tmp_path)["primary"]


def test_amounts_of_money_are_numbers_and_what_has_two_readings_is_not_guessed(tmp_path: Path) -> None:
    rows = [f'{i % 7},"{i % 90 + 10},{i % 9}50"' for i in range(120)]
    (tmp_path / "m.csv").write_text("a,price\n" + "\n".join(r.replace(',"', ',"$') for r in rows))
    made = draft(tmp_path / "m.csv", label="price")
    assert made.sections["task"] == "regression" and made.sections["data"]["source"]["target"] == "value"
    (tmp_path / "n.csv").write_text("a,price\n" + "\n".join(rows))
    with pytest.raises(DataError, match="column 'price' cannot be predicted yet: as numbers it has two readings"):
        draft(tmp_path / "n.csv", label="price")


def test_a_number_becomes_a_regression(tmp_path: Path) -> None:
    made = draft(table(tmp_path / "t.csv"), label="age")
    assert made.sections["task"] == "regression"
    assert trains(write_draft(made, tmp_path / "t.yaml"), tmp_path)["family"] == "regression"


def test_a_spreadsheet_as_people_have_it_is_written_by_the_rules_that_data_is_read_by(tmp_path: Path, tauon: Tauon) -> None:
    draw = random.Random(0)
    rows = []
    for i in range(120):
        age = draw.randint(20, 90)
        price = f"{age * 37 + draw.randint(0, 99)}"
        grouped = (price[:-3] + "." + price[-3:] if len(price) > 3 else price) + f",{draw.randint(10, 99)}"
        rows.append(f"{i};{age if draw.random() > 0.6 else 'NA'};{grouped};{draw.randint(0, 50)}%;{'ja' if age > 55 else 'nein'}")
    (tmp_path / "kunden.csv").write_bytes("\n".join([";Alter;Preis;Anteil;Kauf", *rows]).encode("utf-16"))
    ended = tauon("recipe", "new", "--from", "kunden.csv", "--label-from", "Kauf")
    assert ended.code == 0, ended.err
    written = yaml.safe_load((tmp_path / "kunden.yaml").read_text())["data"]
    assert written["source"]["drop"] == [""] and written["source"]["missing"] == ["", "NA"] and written["table"]["impute"] == "median"
    assert "Numbers in Preis are written with decimal ',', thousands '.'" in ended.out
    ended = tauon("run", "kunden.yaml", *SHORT)
    assert ended.code == 0, ended.err
    facts = read_json(next((tmp_path / "runs").iterdir()) / "data.json")
    assert [(c["column"], c["kind"]) for c in facts["columns"]] == [("Alter", "number"), ("Preis", "number"), ("Anteil", "number")]
    assert "numbers in Preis: decimal ',', thousands '.'" in ended.out


def test_keys_that_some_rows_lack_are_filled(tmp_path: Path) -> None:
    rows = [{"a": i % 13, "y": "high" if i % 13 > 6 else "low"} | ({"b": i % 5} if i % 3 else {}) for i in range(80)]
    (tmp_path / "n.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    made = draft(tmp_path / "n.jsonl")
    assert made.sections["data"]["table"] == {"categories": "codes", "impute": "median", "indicators": True}
    assert trains(write_draft(made, tmp_path / "n.yaml"), tmp_path)["family"] == "classification"


def test_dates_and_numbers_become_a_forecast(tmp_path: Path) -> None:
    made = draft(series(tmp_path / "load.csv"))
    assert made.task == "forecasting" and made.sections["data"]["source"]["date"] == "date"
    assert trains(write_draft(made, tmp_path / "load.yaml"), tmp_path)["family"] == "forecasting"


def test_a_gap_in_a_series_is_said_and_not_filled(tmp_path: Path) -> None:
    made = draft(series(tmp_path / "load.csv", without=40))
    source = made.sections["data"]["source"]
    assert source["calendar"] == "rows" and "fill" not in source
    assert "1 time steps are missing" in made.to_yaml() and "fill: forward" in made.to_yaml()


@pytest.mark.parametrize("parts", [False, True])
def test_a_folder_of_pictures_becomes_a_classifier(tmp_path: Path, parts: bool) -> None:
    made = draft(pictures(tmp_path / "shapes", parts=parts), label="folder")
    assert made.sections["data"]["class_weights"] == "balanced" and ("split" in made.sections["data"]) != parts
    assert trains(write_draft(made, tmp_path / "shapes.yaml"), tmp_path)["family"] == "classification"


def test_pictures_without_classes_are_asked_for_them(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "shapes") / "square"
    with pytest.raises(DataError, match="expected at least two subfolders of images"):
        draft(folder)
    with pytest.raises(DataError, match="the label of images is their folder"):
        draft(folder.parent, label="name")


def test_a_folder_of_recordings_becomes_a_classifier(tmp_path: Path) -> None:
    made = draft(recordings(tmp_path / "calls", "{label}/{take}.wav"), label="folder")
    assert trains(write_draft(made, tmp_path / "calls.yaml"), tmp_path)["family"] == "classification"


def test_names_of_recordings_say_the_class_once_the_pattern_is_given(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "calls", "{label}_{take}.wav")
    with pytest.raises(DataError, match=r"--label '\{label\}_\{speaker\}'"):
        draft(folder)
    made = draft(folder, label="{label}_{take}")
    assert trains(write_draft(made, tmp_path / "calls.yaml"), tmp_path)["family"] == "classification"


@pytest.mark.parametrize("make", [documents, lambda p: p.with_suffix(".txt")])
def test_text_becomes_a_language_model(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path / "notes.jsonl")
    if path.suffix == ".txt":
        path.write_text(words(3000))
    written = write_draft(draft(path), tmp_path / "notes.yaml")
    assert trains(written, tmp_path)["family"] == "language-modelling"


def test_numbers_in_json_lines_become_a_classifier(tmp_path: Path) -> None:
    made = draft(numbers(tmp_path / "n.jsonl"))
    assert made.sections["data"]["source"]["drop"] == ["note"]
    assert trains(write_draft(made, tmp_path / "n.yaml"), tmp_path)["family"] == "classification"


def films(n: int = 120) -> list[dict[str, str]]:
    said = {"good": ["a lovely film that I liked", "great fun for all of us"], "bad": ["a dull film that I left", "no fun for any of us"]}
    return [{"text": f"{said[y][i % 2]}, seen {i} times", "label": y} for i, y in enumerate(["good", "bad"] * (n // 2))]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_texts_with_a_label_become_a_classifier(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"films.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as f:
            out = csv.DictWriter(f, ["text", "label"])
            out.writeheader()
            out.writerows(films())
    else:
        path.write_text("\n".join(map(json.dumps, films())))
    made = draft(path)
    assert made.sections["task"] == "text-classification"
    assert trains(write_draft(made, tmp_path / "films.yaml"), tmp_path)["family"] == "classification"


@pytest.mark.parametrize("kind", ["chat", "pairs"])
def test_conversations_and_preferences_tune_the_model_that_is_named(tmp_path: Path, tauon: Tauon, kind: str) -> None:
    rows: list[dict[str, str]] = [{"instruction": f"Say {i}.", "output": f"It is {i}."} for i in range(40)]
    if kind == "pairs":
        rows = [{"prompt": f"Is {i} fine?", "chosen": "yes, it is", "rejected": "no, never"} for i in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=f"these are {'preferences' if kind == 'pairs' else 'conversations'}.*--model"):
        draft(path)
    (tmp_path / "text.txt").write_text(words(1500))
    sections = {"tokenizer": {"kind": "bpe", "vocab": 280}, "source": {"kind": "text", "path": str(tmp_path / "text.txt")}, "seq_len": 256}
    base = {"name": "base", "data": sections, "task": "language-modelling", "model": {"kind": "gpt", "layers": 1, "width": 16, "heads": 2}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base | {"train": {"steps": 2, "batch": 2}}))
    run(load_recipe(tmp_path / "base.yaml"), root=tmp_path / "runs", stages=("prepare", "train"))
    ended = tauon("recipe", "new", "--from", "rows.jsonl", "--model", str(tmp_path / "runs" / "base"), "--name", "tuned")
    assert ended.code == 0, ended.err
    assert trains(tmp_path / "tuned.yaml", tmp_path)["family"] == ("preference" if kind == "pairs" else "language-modelling")


@pytest.mark.parametrize(
    ("make", "label", "said"),
    [
        (lambda f: _write(f / "x.jsonl", "\n".join(json.dumps(r | {"label": "good"}) for r in films())), None, "expected at least two"),
        (lambda f: f / "nothing", None, "no such file or folder"),
        (lambda f: _write(f / "x.bin", "?"), None, "unknown kind of data"),
        (lambda f: _write(f / "x.csv", "a,b\n1,2\n3,4\n5,1\n"), None, "cannot decide which column to predict"),
        (lambda f: _write(f / "x.csv", "a,b\n1,2\n3,4\n5,1\n"), "c", r"no column 'c'. Available: a \(number\), b \(number\)"),
        (lambda f: _write(f / "x.csv", "a,y\n1,2\n3,\n5,1\n"), None, "1 rows have no 'y'"),
        (lambda f: _write(f / "x.jsonl", "{"), None, "line 1: not valid JSON"),
        (lambda f: _write(f / "x.txt", "abc"), "y", "running text has no label"),
    ],
)
def test_what_cannot_be_told_is_asked_for(tmp_path: Path, make: Any, label: str | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        draft(make(tmp_path), label=label)


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_recipe_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    made = draft(table(tmp_path / "t.csv"), label="outcome", name="mine")
    target = write_draft(made, tmp_path / "mine.yaml")
    with pytest.raises(RecipeError, match="exists already"):
        write_draft(made, target)
    assert write_draft(made, target, force=True).read_text().startswith("# outcome from")
