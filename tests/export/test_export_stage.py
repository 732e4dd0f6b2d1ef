"""Export as a stage of a recipe, on the command line, from Python, and of a private run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tauon
from explained import Worlds
from tauon.config import parse
from tauon.errors import RecipeError
from tauon.export import ExportConfig, open_bundle
from tauon.pipeline import run
from tauon.predict import predict_rows
from tauon.recipe import load_recipe
from tauon.stages.export import export_run
from toy import Tauon, table_recipe

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Worlds(tmp_path_factory.mktemp("stage"))["iris"]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Tauon:
    return Tauon(capsys)


def states(folder: Path, *assignments: str) -> dict[str, str]:
    seen: dict[str, str] = {}

    def on_event(kind: str, /, **facts: Any) -> None:
        if kind == "stage":
            seen[facts["name"]] = facts["state"]

    run(load_recipe(folder, assignments), folder=folder, stages=("export", "report"), on_event=on_event)
    return seen


def test_the_stage_exports_once_and_again_where_the_bundle_is_gone(folder: Path) -> None:
    assert states(folder, "export=[onnx]")["export"] == "done"
    page = (folder / "report.html").read_text()
    assert "Agrees with the model" in page and "export/onnx/predict.py FILE" in page
    assert states(folder)["export"] == "done before"
    assert load_recipe(folder).export.to == ("onnx",)  # type: ignore[attr-defined]
    (folder / "export/export.json").unlink()
    assert states(folder)["export"] == "done"
    assert (
        open_bundle(folder / "export/onnx").record["lineage"]["checkpoint"]
        == json.loads((folder / "stages.json").read_text())["export"]["checkpoint"]
    )


def test_formats_are_checked_before_anything_runs() -> None:
    assert parse(ExportConfig, {"to": ["onnx", "gguf"]}).to == ("onnx", "gguf")
    for wrong, message in ((["onnx", "onnx"], "each once"), (["tflite"], "no format is called 'tflite'"), ([], "one or more")):
        with pytest.raises(RecipeError, match=message):
            parse(ExportConfig, {"to": wrong})


def test_the_command_prints_where_and_how_far_it_agrees(folder: Path, say: Tauon, tmp_path: Path) -> None:
    ended = say("export", folder, "--to", "onnx", "--out", tmp_path / "out")
    assert ended.code == 0
    assert str(tmp_path / "out") in ended.out
    assert "outputs differ by at most" in ended.out and "predict.py FILE" in ended.out
    again = say("export", folder, "--to", "onnx", "--out", tmp_path / "out")
    assert again.code != 0 and "exists already" in again.err
    wrong = say("export", folder, "--to", "tflite")
    assert wrong.code != 0 and "available: onnx, openvino" in wrong.err
    lines = say("export", folder, "--to", "onnx", "--json").out.splitlines()
    assert json.loads(lines[-1])["verification"]["argmax"] == 1
    predicted = say("predict", tmp_path / "out", "--data", _csv(tmp_path), "--to", tmp_path / "p.csv")
    assert predicted.code == 0 and "prediction" in (tmp_path / "p.csv").read_text()


def _csv(folder: Path) -> Path:
    (folder / "new.csv").write_text("sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)\n5,3,1.5,0.2\n6,3,5,2\n")
    return folder / "new.csv"


def test_several_formats_go_to_folders_of_one(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    found = tauon.open_run(folder).export("onnx", "openvino", out=tmp_path / "both")
    assert [Path(f["folder"]).name for f in found] == ["onnx", "openvino"]
    rows = [{"sepal length (cm)": 5, "sepal width (cm)": 3, "petal length (cm)": 1.5, "petal width (cm)": 0.2}]
    answers = [predict_rows(tmp_path / "both" / name, rows) for name in ("onnx", "openvino")]
    assert answers[0][0]["prediction"] == answers[1][0]["prediction"] == tauon.open_run(folder).predict(rows)[0]["prediction"]


def test_a_bundle_of_a_private_run_has_nothing_that_its_guarantee_does_not_cover(tmp_path: Path) -> None:
    private = {"target_epsilon": 4, "delta": 1e-3}
    recipe = table_recipe(tmp_path, name="mine", train={"steps": 4, "validate_every": None}, privacy=private)
    done = run(load_recipe(recipe), root=tmp_path / "runs", stages=("prepare", "train"))
    (done.folder / "card.md").write_text("accuracy 0.93")
    (record,) = export_run(done.folder, ["onnx"])
    assert record["verification"]["relative"] < 1e-3
    shown = open_bundle(done.folder / "export/onnx").record
    assert shown["verification"] == {"passed": True, "note": "figures are left out: they depend on the data of a private run"}
    assert "data" not in shown["lineage"] and not (done.folder / "export/onnx/README.md").exists()
    manifest = json.loads((done.folder / "manifest.json").read_text())
    whole = "".join(p.read_text(errors="replace") for p in (done.folder / "export/onnx").iterdir())
    assert manifest["training"]["data"] not in whole


def test_machine_code_is_loaded_only_by_those_who_say_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tauon.errors import DataError
    from tauon.export import Bundle

    bundle = Bundle(tmp_path, {"kind": "aoti", "signature": {"inputs": [], "outputs": [], "fixed": {}, "logits": False}})
    with pytest.raises(DataError, match="is machine code.*TAUON_LOAD_MACHINE_CODE=1"):
        bundle.load()
    monkeypatch.setenv("TAUON_LOAD_MACHINE_CODE", "1")
    with pytest.raises(DataError, match="cannot be loaded"):
        bundle.load()
