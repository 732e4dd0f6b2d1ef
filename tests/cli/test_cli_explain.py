"""`tauon explain` on the command line: new examples of every kind, two runs side by side, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

import tauon
from explained import Worlds, pictures, series
from tauon.artifacts import read_json
from tauon.predict import predict_rows
from tones import tone, write_wav
from toy import Tauon, nothing_half_written, refused

RECIPE, DATA, RUN = 2, 3, 5


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tmp_path_factory.mktemp("explained"))


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Tauon:
    return Tauon(capsys)


def record_of(out: str) -> dict[str, Any]:
    page = Path(json.loads(out.splitlines()[-1])["page"])
    assert page.is_file() and page.read_text().startswith("<!DOCTYPE html>")
    found: dict[str, Any] = read_json(page.with_suffix(".json"))
    return found


def test_help_teaches(say: Tauon) -> None:
    out = say("explain", "--help").out
    for word in ("--data", "--row", "--text", "--against", "explain.rows", "report.html", "Examples"):
        assert word in out


def test_a_row_of_a_csv(worlds: Worlds, say: Tauon) -> None:
    folder, path = worlds["table-onehot"], worlds.file("loans.csv")
    ended = say("explain", folder, "--data", path, "--row", "17", "--row", "4", "--json", "explain.checks=false")
    assert ended.code == 0, ended
    assert all(json.loads(line) for line in ended.out.splitlines())
    cases = record_of(ended.out)["cases"]
    assert [c["from"] for c in cases] == ["loans.csv, row 17", "loans.csv, row 4"]
    rows = [
        dict(zip(path.read_text().splitlines()[0].split(","), line.split(","), strict=True)) for line in path.read_text().splitlines()[1:]
    ]
    for case, row in zip(cases, (rows[17], rows[4]), strict=True):
        (said,) = predict_rows(folder, [{k: v or None for k, v in row.items()}])
        assert case["answer"] == said["prediction"]
        assert case["probability"] == pytest.approx(said[f"probability_{case['answer']}"], abs=1e-5)
        shown = {c["name"]: c["value"] for c in case["shown"]["columns"]}
        assert shown["town"] == (row["town"] or "missing or unseen") and float(shown["amount"].replace(",", "")) == pytest.approx(
            float(row["amount"]), rel=1e-3
        )
    (ours,) = tauon.open_run(folder).explain([rows[17]], "explain.checks=false")
    assert ours["answer"] == cases[0]["answer"] and ours["maps"][0]["values"] == pytest.approx(cases[0]["maps"][0]["values"])
    nothing_half_written(folder)


def test_a_picture_a_recording_a_text_and_a_window(worlds: Worlds, say: Tauon, tmp_path: Path) -> None:
    pictures(tmp_path / "new.npz")
    write_wav(tmp_path / "wav" / "new.wav", tone(600, 0.1, 8000), 8000)
    series(tmp_path / "new.csv", 60)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a lovely film number 3")
    for name, data, kind in (
        ("images", "new.npz", "image"), ("sounds-cnn", "wav", "audio"), ("texts-bag", "texts", "text"), ("series-dlinear", "new.csv", "series"),
    ):  # fmt: skip
        ended = say("explain", worlds[name], "--data", tmp_path / data, "--json", "explain.checks=false", "explain.maps=[occlusion]")
        assert ended.code == 0, ended
        record = record_of(ended.out)
        assert record["kind"] == kind and record["cases"] and all(c["maps"] for c in record["cases"])


def test_texts_in_place_of_a_file(worlds: Worlds, say: Tauon) -> None:
    ended = say("explain", worlds["texts-bag"], "--text", "a lovely film", "--text", "<script>alert(1)</script> no fun", "--json")
    assert ended.code == 0, ended
    cases = record_of(ended.out)["cases"]
    assert [c["from"] for c in cases] == ["text 1", "text 2"]
    said = predict_rows(worlds["texts-bag"], [{"text": "a lovely film"}])
    assert cases[0]["answer"] == said[0]["prediction"]
    ended = say("explain", worlds["gpt"], "--text", "the lepton", "--text", "a", "explain.language.answer=3", "--json")
    assert ended.code == 0, ended
    assert len(record_of(ended.out)["cases"][0]["written"]["probabilities"]) == 3


@pytest.mark.parametrize(
    ("name", "arguments", "code", "says"),
    [
        ("iris", ["--row", "3"], 2, "--row names a row of --data"),
        ("iris", ["--data", "a.csv", "--text", "b"], 2, "exclude each other"),
        ("iris", ["--text", "hello"], DATA, "--text is for models of texts"),
        ("iris", ["--data", "nowhere.csv"], DATA, "nowhere.csv"),
        ("table-onehot", ["--data", "@loans.csv", "--row", "999"], DATA, "row 999 does not exist, it has 240 rows"),
        ("table-onehot", ["--data", "@loans.csv", "explain.split=train"], RECIPE, "an explanation of new examples does not read it"),
        ("table-onehot", ["--data", "@loans.csv", "train.steps=5"], RECIPE, "an explanation of new examples does not read it"),
        ("table-onehot", ["--data", "@loans.csv", "explain.mapz=[x]"], RECIPE, "mapz"),
        ("table-onehot", ["--data", "@loans.csv", "explain.maps=[kernel_shapp]"], RECIPE, "did you mean 'kernel_shap'"),
        ("table-onehot", ["--data", "@loans.csv", "explain.target=yess"], RECIPE, "did you mean 'yes'"),
        ("table-onehot", ["--data", "@films.jsonl"], DATA, "age"),
        ("texts-bag", ["--text", ""], DATA, "is empty"),
        ("gpt", ["--text", ""], DATA, "text 1 is empty"),
        ("gpt", ["--data", "@text.txt"], DATA, "--text"),
        ("series-dlinear", ["--data", "@series.csv", "--row", "5000"], DATA, "row 5,000 does not exist"),
        ("iris", ["--against", "nowhere"], RUN, "is not a run"),
        ("iris", ["--against", "@@regression"], DATA, "cannot be compared"),
        ("iris", ["--against", "@@table-onehot"], DATA, "cannot be compared"),
        ("iris", ["--against", "@@ema", "explain.target=setosa"], RECIPE, "a comparison does not read it"),
        ("masked", ["--text", "the lepton"], RECIPE, "cannot be explained"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(worlds: Worlds, say: Tauon, name: str, arguments: list[str], code: int, says: str) -> None:
    given = [str(worlds[a[2:]]) if a.startswith("@@") else str(worlds.file(a[1:])) if a.startswith("@") else a for a in arguments]
    folder = worlds[name]
    before = sorted(str(p) for p in folder.rglob("*"))
    ended = say("explain", folder, *given)
    refused(ended, code, says)
    assert sorted(str(p) for p in folder.rglob("*")) == before


def test_two_runs_side_by_side(worlds: Worlds, say: Tauon) -> None:
    folder, other = worlds["table-onehot"], worlds["ema"]
    ended = say("explain", folder, "--against", other, "--json")
    assert ended.code == 0, ended
    record = record_of(ended.out)
    assert 0 <= record["agreement"] <= 1 and len(record["opening"]) == 3 and record["cases"]
    same = record_of(say("explain", folder, "--against", folder, "--json").out)
    assert same["agreement"] == 1 and same["p"] == 1 and all(m["correlation"] == pytest.approx(1) for m in same["methods"])


def test_an_untrained_recipe_says_how_to_train(say: Tauon, tmp_path: Path) -> None:
    from toy import table_recipe

    refused(say("explain", table_recipe(tmp_path), "--root", tmp_path / "runs"), RUN, "has no run yet", "tauon train")
    refused(say("explain", table_recipe(tmp_path), "--root", tmp_path / "runs", "--text", "a"), RUN, "is not a run")


def test_ctrl_c_leaves_nothing_half_written(worlds: Worlds, say: Tauon, monkeypatch: pytest.MonkeyPatch) -> None:
    from tauon.explain.parts import maps

    folder = worlds["images"]
    before = sorted(str(p) for p in folder.rglob("*"))

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(maps, "_check", stop)
    ended = say("explain", folder)
    assert ended.code == 130 and "Traceback" not in ended.err
    assert sorted(str(p) for p in folder.rglob("*")) == before
    nothing_half_written(folder)
    monkeypatch.undo()
    assert say("explain", folder).code == 0
    assert np.isfinite(read_json(folder / "explain/explanation.json")["outputs"]["accuracy"])
