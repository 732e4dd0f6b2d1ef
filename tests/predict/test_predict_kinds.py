"""Every kind of data: predicting the raw test examples gives the figures that evaluation reported; what does not fit is an error by name."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauon.artifacts import read_json
from tauon.config import parse
from tauon.data import prepare
from tauon.data.targets import TargetScale
from tauon.errors import DataError
from tauon.evaluate import predict_all
from tauon.pipeline import run
from tauon.predict import Predictor, open_trained, predict_file, predict_rows
from tauon.recipe import Recipe, load_recipe
from tones import tone, write_wav

TRAIN = {"steps": 30, "batch": 16, "validate_every": None}


def trained(folder: Path, data: dict[str, Any], task: Any, model: dict[str, Any], **more: Any) -> Path:
    recipe = {
        "name": "toy",
        "data": data,
        "task": task,
        "model": model,
        "optim": {"kind": "adam", "lr": 0.01},
        "train": TRAIN,
        "evaluate": {"resamples": 100},
    }
    return run(parse(Recipe, recipe | more), root=folder / "runs").folder


def figures(folder: Path) -> dict[str, float]:
    return {k: m["value"] for k, m in read_json(folder / "evaluation.json")["metrics"].items()}


def on_test(folder: Path) -> dict[str, Any]:
    """What the run's model says of its test part."""
    recipe, it = load_recipe(folder), open_trained(folder)
    splits = prepare(recipe.data, seed=recipe.seed, input_kind=recipe.task.input_kind, scale_targets=recipe.task.scales_targets)
    assert splits.test is not None
    return predict_all(it.model, recipe.task, splits.test, batch=64, context=it.precision.context)[0]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def probabilities(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[v for k, v in r.items() if k.startswith("probability_")] for r in rows], np.float32)


# ---------------------------------------------------------------------------------------------- pictures


def draw(folder: Path, n: int, seed: int, size: tuple[int, int], mode: str = "RGB") -> None:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(seed)
    for i in range(n):
        label = ("cat", "dog")[i % 2]
        pixels = rng.integers(0, 120, (*size, 3), np.uint8) + (100 * (i % 2))
        pixels = pixels.astype(np.uint8) if mode == "RGB" else pixels[:, :, 0].astype(np.uint8)
        path = folder / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    ("sizes", "setting"), [((12, 12), {}), ((17, 14), {"size": 12, "fit": "pad"})], ids=["one size", "brought to a size"]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_folder_of_pictures(tmp_path: Path, sizes: tuple[int, int], setting: dict[str, Any], mode: str) -> None:
    draw(tmp_path / "p" / "train", 60, 0, (12, 12), mode)
    draw(tmp_path / "p" / "test", 75, 1, sizes, mode)
    folder = trained(
        tmp_path, {"source": {"kind": "folder", "path": str(tmp_path / "p"), **setting}}, "classification", {"kind": "cnn", "channels": [8]}
    )
    done = predict_file(folder, tmp_path / "p" / "test", tmp_path / "out.csv")
    rows = rows_of(tmp_path / "out.csv")
    assert done.rows == 75
    assert sum(r["prediction"] == Path(r["file"]).parent.name for r in rows) / 75 == figures(folder)["accuracy"]
    if not setting:
        draw(tmp_path / "wrong", 2, 2, (9, 12), mode)
        with pytest.raises(DataError, match=r"wrong/cat/0.png: 12 x 9 pixels, but the model was trained on 12 x 12"):
            predict_file(folder, tmp_path / "wrong", tmp_path / "no.csv")
    names = "id,file\n" + "".join(f"{i},p/test/{r['file']}\n" for i, r in enumerate(rows))
    (tmp_path / "list.csv").write_text(names)
    predict_file(folder, tmp_path / "list.csv", tmp_path / "listed.csv")
    listed = rows_of(tmp_path / "listed.csv")
    assert [r["prediction"] for r in listed] == [r["prediction"] for r in rows] and [*listed[0]][:3] == ["id", "file", "prediction"]
    (tmp_path / "wrong.csv").write_text(names.replace("id,file", "id,photograph"))
    with pytest.raises(
        DataError, match=r"wrong\.csv: .* a folder of images, or a CSV with a column 'file' .*Columns: id, photograph\. Rename"
    ):
        predict_file(folder, tmp_path / "wrong.csv", tmp_path / "no.csv")
    (tmp_path / "wrong.csv").write_text(names.replace(",", ";"))
    with pytest.raises(DataError, match=r"Columns: id;file\. The columns seem to be separated by ';': set --delimiter\."):
        predict_file(folder, tmp_path / "wrong.csv", tmp_path / "no.csv")
    (tmp_path / "p" / "test" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cat/0.png: damaged or not an image"):
        predict_file(folder, tmp_path / "p" / "test", tmp_path / "no.csv")
    assert not (tmp_path / "no.csv").exists()


def test_pictures_and_features_in_archives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 170)
    x = (rng.integers(0, 150, (170, 8, 8, 3)) + 30 * y[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "t.npz", x_train=x[:100], y_train=y[:100], x_test=x[100:], y_test=y[100:])
    folder = trained(
        tmp_path, {"source": {"kind": "npz", "path": str(tmp_path / "t.npz")}}, "classification", {"kind": "cnn", "channels": [8]}
    )
    np.savez(tmp_path / "new.npz", x=x[100:])
    for source in ("new.npz", "t.npz"):  # a file without targets; the test part of one with parts
        predict_file(folder, tmp_path / source, tmp_path / "out.csv", batch=1)
        rows = rows_of(tmp_path / "out.csv")
        np.testing.assert_array_equal(probabilities(rows), on_test(folder)["scores"])
        assert np.mean([int(r["prediction"]) == t for r, t in zip(rows, y[100:], strict=True)]) == figures(folder)["accuracy"]
    with pytest.raises(DataError, match="shape"):
        np.savez(tmp_path / "other.npz", x=x[:, :4])
        predict_file(folder, tmp_path / "other.npz", tmp_path / "out.csv")
    with pytest.raises(DataError, match="no array of features"):
        np.savez(tmp_path / "none.npz", a=x, b=y)
        predict_file(folder, tmp_path / "none.npz", tmp_path / "out.csv")


@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_several_targets_at_once(tmp_path: Path, task: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    y = x[:, :2] + 0.3 * rng.normal(size=(200, 2))
    y = (y > 0).astype(np.float64) if task == "multi-label" else 100 * y
    np.savez(tmp_path / "t.npz", x_train=x[:120], y_train=y[:120], x_test=x[120:], y_test=y[120:])
    source = {"kind": "npz", "path": str(tmp_path / "t.npz"), "target": "value", "label_names": ["red", "blue"]}
    folder = trained(tmp_path, {"source": source}, task, {"kind": "mlp", "hidden": [8]})
    np.savez(tmp_path / "new.npz", x=x[120:])
    predict_file(folder, tmp_path / "new.npz", tmp_path / "out.csv")
    rows = rows_of(tmp_path / "out.csv")
    ours = np.array([[float(r["prediction_red"]), float(r["prediction_blue"])] for r in rows])
    if task == "multi-label":
        np.testing.assert_array_equal(probabilities(rows), on_test(folder)["scores"])
        for k, row in enumerate(read_json(folder / "evaluation.json")["per_class"]):
            assert ours[y[120:, k] == 1, k].mean() == row["recall"]["value"] and ours[:, k].sum() == row["predicted"]
    else:
        per_target = {r["label"]: r for r in read_json(folder / "evaluation.json")["per_class"]}
        for k, name in enumerate(("red", "blue")):
            scale = TargetScale.from_json(open_trained(folder).preprocess["target_scale"])
            truth = scale.undo(scale(y[120:]))  # targets are float32 in the model's scale
            assert math.fsum(np.abs(ours[:, k] - truth[:, k])) / len(truth) == per_target[name]["mae"]["value"]


# ---------------------------------------------------------------------------------------------- recordings


def record(folder: Path, n: int, seed: int, rate: int = 8000) -> None:
    for i in range(n):
        write_wav(folder / ("yes", "no")[i % 2] / f"{i}.wav", tone(300 + 300 * (i % 2), 0.1 + 0.01 * (i % 5), rate, seed=seed + i), rate)


def test_recordings(tmp_path: Path) -> None:
    record(tmp_path / "train", 40, 0)
    record(tmp_path / "test", 70, 1000)
    source = {"kind": "wav", "path": str(tmp_path / "train")}
    data = {"source": source, "test": source | {"path": str(tmp_path / "test")}}
    folder = trained(tmp_path, data, "audio-classification", {"kind": "speech-cnn", "channels": [4], "mels": 8})
    predict_file(folder, tmp_path / "test", tmp_path / "out.csv")
    rows = rows_of(tmp_path / "out.csv")
    np.testing.assert_array_equal(probabilities(rows), on_test(folder)["scores"])
    assert sum(r["prediction"] == Path(r["file"]).parent.name for r in rows) / 70 == figures(folder)["accuracy"]
    (tmp_path / "wrong.csv").write_text("speaker\nanna\n")
    with pytest.raises(DataError, match=r"a folder of recordings, or a CSV with a column 'file' .*Columns: speaker\."):
        predict_file(folder, tmp_path / "wrong.csv", tmp_path / "no.csv")
    record(tmp_path / "other", 2, 0, rate=16000)
    with pytest.raises(DataError, match=r"other/no/1.wav: sampling rate 16,000 Hz, but the model was trained on 8,000"):
        predict_file(folder, tmp_path / "other", tmp_path / "out.csv")
    (answer,) = predict_rows(folder, [{"recording": (tone(600, 0.1, 8000), 8000)}])
    assert answer["prediction"] in ("yes", "no")


def test_transcripts_are_read_out(tmp_path: Path) -> None:
    record(tmp_path / "t", 24, 0)
    said = {p.relative_to(tmp_path / "t").as_posix(): p.parent.name for p in (tmp_path / "t").rglob("*.wav")}
    (tmp_path / "said.csv").write_text("file,text\n" + "".join(f"{k},{v}\n" for k, v in said.items()))
    source = {"kind": "wav", "path": str(tmp_path / "t"), "transcripts": str(tmp_path / "said.csv")}
    folder = trained(tmp_path, {"source": source, "split": {"test": 0.25}}, "speech-recognition", {"kind": "conformer", "layers": 1, "width": 16, "heads": 2, "mels": 8, "kernel": 5})  # fmt: skip
    predict_file(folder, tmp_path / "t", tmp_path / "out.csv")
    assert all(set(r["prediction"]) <= set("yesno ") for r in rows_of(tmp_path / "out.csv"))


# ---------------------------------------------------------------------------------------------- texts


def test_texts_with_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def write(name: str, n: int) -> list[tuple[str, str, str]]:
        made = []
        for i in range(n):
            good = i % 2 == 0
            words = rng.choice(["fine", "great", "film"] if good else ["bad", "dull", "film"], 6)
            made.append((f"Title {i}", " ".join(words) + (', "quite"\nso' if i % 5 == 0 else ""), "good" if good else "bad"))
        with (tmp_path / name).open("w", newline="") as f:
            csv.writer(f).writerows([("title", "review", "verdict"), *made])
        return made

    write("train.csv", 80)
    test = write("test.csv", 70)
    source = {"kind": "csv", "path": str(tmp_path / "train.csv"), "text": ["title", "review"], "label": "verdict"}
    data = {"source": source, "test": source | {"path": str(tmp_path / "test.csv")}, "tokenizer": "bytes", "cache": str(tmp_path / "cache")}
    folder = trained(tmp_path, data, "text-classification", {"kind": "text-bag", "buckets": 997, "dropout": 0})
    predict_file(folder, tmp_path / "test.csv", tmp_path / "out.csv")
    rows = rows_of(tmp_path / "out.csv")
    np.testing.assert_array_equal(probabilities(rows), on_test(folder)["scores"])
    assert sum(r["prediction"] == r["verdict"] for r in rows) / 70 == figures(folder)["accuracy"]
    assert predict_rows(folder, [{"title": t, "review": r} for t, r, _ in test])[3]["prediction"] == rows[3]["prediction"]
    (tmp_path / "texts").mkdir()
    for i in range(3):
        (tmp_path / "texts" / f"{i}.txt").write_text("\n\n".join(test[i][:2]))
    predict_file(folder, tmp_path / "texts", tmp_path / "files.csv")
    assert [r["prediction"] for r in rows_of(tmp_path / "files.csv")] == [r["prediction"] for r in rows[:3]]
    with pytest.raises(DataError, match="no column 'review'"):
        (tmp_path / "bad.csv").write_text("title,text\na,b\n")
        predict_file(folder, tmp_path / "bad.csv", tmp_path / "out.csv")


# ---------------------------------------------------------------------------------------------- series


def write_series(path: Path, n: int, columns: int = 1) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = 2e3 + 50 * np.sin(np.arange(n)[:, None] / 4 + np.arange(columns)) + rng.normal(size=(n, columns))
    names = ",".join("load" if columns == 1 else f"v{k}" for k in range(columns))
    lines = [f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00," + ",".join(f"{v:.3f}" for v in values[i]) for i in range(n)]
    path.write_text(f"date,{names}\n" + "\n".join(lines) + "\n")
    return np.round(values, 3)


@pytest.mark.parametrize("task", ["forecasting", {"kind": "forecasting", "loss_kind": "quantile"}], ids=["mean", "quantiles"])
def test_a_series(tmp_path: Path, task: Any) -> None:
    values = write_series(tmp_path / "s.csv", 300)
    data = {
        "source": {"kind": "series", "path": str(tmp_path / "s.csv")},
        "window": {"context": 24, "horizon": 6, "calendar": ["hour"]},
        "split": {"test": 0.2},
    }
    folder = trained(tmp_path, data, task, {"kind": "lstm", "width": 8})
    predict_file(folder, tmp_path / "s.csv", tmp_path / "next.csv")
    rows = rows_of(tmp_path / "next.csv")
    assert [r["date"] for r in rows] == [f"2024-01-13T{12 + h}:00:00" for h in range(6)]
    predict_file(folder, tmp_path / "s.csv", tmp_path / "all.csv", every=1)
    every = rows_of(tmp_path / "all.csv")
    assert [r["prediction"] for r in every[-6:]] == [r["prediction"] for r in rows]
    said = on_test(folder)["predictions"]
    first = 300 - 60 - 24  # the first origin of the test part, counted from the first that the file has
    ours = np.array([float(r["prediction"]) for r in every]).reshape(-1, 6)[first : first + len(said)]
    kept = open_trained(folder).preprocess["normalize"]
    np.testing.assert_allclose(ours, said[:, :, 0].astype(np.float64) * kept["scale"][0] + kept["center"][0], rtol=1e-9)
    truth = np.stack([values[240 + i : 246 + i, 0] for i in range(len(said))])
    target = ((truth - kept["center"][0]) / kept["scale"][0]).astype(np.float32)  # targets are float32 in the model's scale
    error = np.abs(said[:, :, 0].astype(np.float64) - target)
    assert error.mean() * kept["scale"][0] == pytest.approx(figures(folder)["mae_in_units"], rel=1e-12)
    if task != "forecasting":
        assert all(float(r["quantile_0.1"]) <= float(r["prediction"]) <= float(r["quantile_0.9"]) for r in rows)
    (tmp_path / "short.csv").write_text("\n".join((tmp_path / "s.csv").read_text().split("\n")[:20]) + "\n")
    with pytest.raises(DataError, match="19 time steps, but the model reads the last 24"):
        predict_file(folder, tmp_path / "short.csv", tmp_path / "no.csv")
    lines = (tmp_path / "s.csv").read_text().split("\n")
    (tmp_path / "sparse.csv").write_text("\n".join(lines[:1] + lines[1::2]) + "\n")
    with pytest.raises(DataError, match="the time step is 2 h, but the model was trained on steps of 1 h"):
        predict_file(folder, tmp_path / "sparse.csv", tmp_path / "no.csv")


def test_months_that_follow_are_months(tmp_path: Path) -> None:
    dates = [f"{2010 + i // 12}-{i % 12 + 1:02d}-01" for i in range(80)]
    (tmp_path / "s.csv").write_text("date,a,b\n" + "".join(f"{d},{np.sin(i):.3f},{i % 7}\n" for i, d in enumerate(dates)))
    data = {"source": {"kind": "series", "path": str(tmp_path / "s.csv")}, "window": {"context": 12, "horizon": 4}, "split": {"test": 0.2}}
    folder = trained(tmp_path, data, "forecasting", {"kind": "lstm", "width": 8})
    predict_file(folder, tmp_path / "s.csv", tmp_path / "next.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "next.jsonl").read_text().splitlines()]
    assert [r["date"][:10] for r in rows] == ["2016-09-01", "2016-10-01", "2016-11-01", "2016-12-01"]
    assert [*rows[0]] == ["date", "prediction_a", "prediction_b"]


# ---------------------------------------------------------------------------------------------- what gives no predictions


def test_a_language_model_names_the_verb_that_it_has(tmp_path: Path) -> None:
    from toy import text_recipe

    folder = run(load_recipe(text_recipe(tmp_path)), root=tmp_path / "runs").folder
    with pytest.raises(DataError, match="tauon generate"):
        Predictor.open(folder)
