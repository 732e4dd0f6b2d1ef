"""A bundle predicts what its run predicts: in Tauon, and by its script in an environment with neither Tauon nor torch. Changed files are refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tauon
from explained import KINDS, Worlds
from tauon.artifacts import files as artifact_files
from tauon.data import Tokenizer
from tauon.errors import DataError, RunError
from tauon.export import open_bundle, write_bundle
from tauon.generate import Sampling, generate
from tauon.predict import Predictor, predict_file, predict_rows
from tauon.runtimes import FORMATS
from tauon.stages.export import export_run
from tones import tone, write_wav
from toy import merged

pytestmark = pytest.mark.long

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

MINE = {
    "table": merged(KINDS["table-onehot"], {"data": {"source": {"drop": ["since"]}, "table": {"dates": []}}}),
    "table-embedded": merged(KINDS["table-tabular"], {"data": {"source": {"drop": ["since"]}, "table": {"dates": []}}}),
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with numpy, ONNX Runtime, Pillow and tokenizers alone: the environment of whoever gets a bundle."""
    folder = tmp_path_factory.mktemp("bare")
    for name in ("numpy", "onnxruntime", "PIL", "tokenizers", "flatbuffers", "google"):
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            continue
        place = Path(next(iter(spec.submodule_search_locations)))
        (folder / name).symlink_to(place)
        for libraries in place.parent.glob(f"{({'PIL': 'pillow'}).get(name, name)}.libs"):
            (folder / libraries.name).symlink_to(libraries)
    return folder


CODE = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not {"torch", "tauon"} & {*sys.modules}
"""


def alone(bare: Path, script: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    """Run a bundle's script without site packages and return its lines."""
    command = [sys.executable, "-I", "-S", "-c", CODE, str(bare), str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def trained(worlds: Worlds, name: str) -> Path:
    if name in MINE and name not in worlds.runs:
        worlds.runs[name] = worlds.train(name, **MINE[name])
    return worlds[name]


def new_data(worlds: Worlds, name: str, tmp_path: Path) -> list[Path]:
    """Files that the model has not seen, as a user has them."""
    if name in ("table", "table-embedded"):
        return [worlds.file("loans.csv")]
    if name == "series-dlinear":
        return [worlds.file("series.csv")]
    if name == "images":
        from PIL import Image

        rng = np.random.default_rng(5)
        for i in range(3):
            Image.fromarray(rng.integers(0, 255, (12, 12, 3)).astype(np.uint8)).save(tmp_path / f"{i}.png")
        return [tmp_path / f"{i}.png" for i in range(3)]
    if name in ("sounds-cnn", "speech"):
        for i in range(3):
            write_wav(tmp_path / f"{i}.wav", tone(300 + 200 * i, 0.06 + 0.06 * i, 8000, seed=i), 8000)
        return [tmp_path / f"{i}.wav" for i in range(3)]
    (tmp_path / "new.csv").write_text("text\n" + "".join(f'"a {w} film, ""très"" fun <|bos|>"\n' for w in ("lovely", "dull", "long " * 30)))
    return [tmp_path / "new.csv"]


def by_tauon(run: Path | Predictor, files: list[Path], tmp_path: Path, tag: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for i, file in enumerate(files):
        to = tmp_path / f"{tag}-{i}.jsonl"
        done = predict_file(run, file, to)
        columns = done.columns
        rows += [{c: row[c] for c in columns} for row in map(json.loads, to.read_text().splitlines())]
    return rows


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        for name, value in b.items():
            name = name.removeprefix("tauon_")
            assert a[name] == (pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    "name",
    [
        "table",
        "table-embedded",
        "images",
        "texts-bag",
        "series-dlinear",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("sounds-cnn", "speech")),
    ],
)
def test_a_bundle_and_its_script_alone_predict_what_the_run_predicts(worlds: Worlds, bare: Path, tmp_path: Path, name: str) -> None:
    folder = trained(worlds, name)
    (record,) = export_run(folder, ["onnx"])
    bundle, files = folder / "export" / "onnx", new_data(worlds, name, tmp_path)
    assert record["verification"]["argmax"] in (None, 1.0)
    assert record["verification"]["relative"] < 1e-4
    assert record["verification"]["batches"][:2] == [1, 5]
    expected = by_tauon(folder, files, tmp_path, "run")
    assert_same(by_tauon(bundle, files, tmp_path, "bundle"), expected)
    found = alone(bare, bundle / "predict.py", *files)
    if name == "series-dlinear":
        found = [{k: v for k, v in row.items() if k != "step"} for row in found]
    assert_same(found, expected)
    assert not {"torch", "tauon"} & {*(bundle / "predict.py").read_text().replace("without Tauon and without torch", "").split()}


def test_the_script_of_a_language_model_writes_the_same_text(worlds: Worlds, bare: Path) -> None:
    folder = worlds["gpt"]
    export_run(folder, ["onnx"])
    model = tauon.open_run(folder).model()
    preprocess = open_bundle(folder / "export" / "onnx").record["preprocess"]
    tokenizer = Tokenizer.from_json(preprocess["tokenizer"])
    for prompt, row in zip(("the", "Ünï co"), alone(bare, folder / "export/onnx/predict.py", "the", "Ünï co"), strict=True):
        ids = [tokenizer.bos, *tokenizer.encode(prompt).tolist()]
        text = generate(model, ids, max_tokens=16 - len(ids), sampling=Sampling(temperature=0), stop_id=tokenizer.bos)[0]
        assert row["text"].startswith(tokenizer.decode(text))


def test_kinds_without_a_short_script_say_why(worlds: Worlds) -> None:
    (record,) = export_run(worlds["table-onehot"], ["onnx"])
    assert record["script"] is None
    assert "'since' has dates" in record["script_note"]
    assert not (worlds["table-onehot"] / "export/onnx/predict.py").exists()


def test_rows_are_predicted_by_a_bundle(worlds: Worlds) -> None:
    folder = trained(worlds, "table")
    export_run(folder, ["onnx"])
    with worlds.file("loans.csv").open() as f:
        rows = list(csv.DictReader(f))[:5]
    assert_same(predict_rows(folder / "export/onnx", rows), predict_rows(folder, rows))


@pytest.fixture(scope="module")
def exported(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    export_run(trained(worlds, "table"), ["onnx"], out=out)
    return out


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "out")


def test_a_bundle_has_what_belongs_to_it_and_every_hash(worlds: Worlds, bundle: Path) -> None:
    record = open_bundle(bundle).record
    assert {"recipe.yaml", "model.onnx", "predict.py"} == {*record["files"]}
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=bundle, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.count("OK") == 4
    assert record["lineage"]["run"] == "table" and record["labels"] == ["no", "yes"]
    with pytest.raises(RunError, match="exists already"):
        export_run(worlds["table"], ["onnx"], out=bundle)


@pytest.mark.parametrize("file", ["model.onnx", "bundle.json", "predict.py"])
def test_a_changed_file_is_refused(bundle: Path, file: str) -> None:
    content = (bundle / file).read_bytes()
    (bundle / file).write_bytes(content[:-2] + b"#\n")
    with pytest.raises(RunError, match="changed|cannot be read"):
        predict_rows(bundle, [{}])
    (bundle / file).unlink()
    with pytest.raises(RunError, match="missing|not a|no recipe"):
        open_bundle(bundle) if file != "bundle.json" else predict_rows(bundle.parent / "nothing", [{}])


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", ".hidden", "", "nul\0"])
def test_a_name_that_leaves_the_bundle_is_refused(bundle: Path, name: str) -> None:
    record = json.loads((bundle / "bundle.json").read_text())
    record["files"][name] = "0" * 64
    (bundle / "bundle.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="not the name of a file|was changed"):
        open_bundle(bundle)


def test_a_link_in_a_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    os.rename(bundle / "predict.py", tmp_path / "elsewhere.py")
    (bundle / "predict.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(RunError, match="not the name of a file"):
        open_bundle(bundle)


def test_a_full_disk_leaves_nothing(worlds: Worlds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = trained(worlds, "table")
    monkeypatch.setattr(artifact_files, "_sync_file", full)
    with pytest.raises(RunError, match="No space left"):
        export_run(folder, ["onnx"], out=tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_program_that_differs_is_not_kept(worlds: Worlds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = FORMATS["onnx"].load

    def wrong(folder: Path, signature: Any) -> Any:
        module = load(folder, signature)
        run = module.run
        module.run = lambda tensors: [o + 0.1 * torch.arange(o.shape[-1]) for o in run(tensors)]
        return module

    monkeypatch.setitem(FORMATS, "onnx", FORMATS["onnx"].__class__("onnx", "", FORMATS["onnx"].write, wrong))
    with pytest.raises(DataError, match=r"does not agree with the model on \d+ held-out examples: its outputs differ by up to"):
        export_run(trained(worlds, "table"), ["onnx"], out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_one_refused_format_does_not_lose_the_others(worlds: Worlds) -> None:
    folder = trained(worlds, "table")
    with pytest.raises(DataError, match="Hugging Face|huggingface|counterpart|architecture"):
        export_run(folder, ["huggingface", "onnx"])
    entries = {e["kind"]: e for e in json.loads((folder / "export/export.json").read_text())["exports"]}
    assert "refused" in entries["huggingface"] and entries["onnx"]["verification"]["relative"] < 1e-4


def test_a_run_without_a_checkpoint_is_refused(worlds: Worlds, tmp_path: Path) -> None:
    recipe = (trained(worlds, "table") / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(RunError, match="no checkpoint yet"):
        export_run(tmp_path, ["onnx"])


def test_writing_a_bundle_needs_no_run(worlds: Worlds, tmp_path: Path) -> None:
    from tauon.artifacts import RunFolder
    from tauon.recipe import load_recipe
    from tauon.stages.context import Context, null_callback
    from tauon.stages.export import export_subject, held_out_batches

    folder = trained(worlds, "table")
    ctx = Context(load_recipe(folder), RunFolder.read(folder), null_callback)
    subject, batches = export_subject(ctx, ctx.final_checkpoint), held_out_batches(ctx, 20)
    before = {n: t.clone() for n, t in subject.model.state_dict().items()}
    record = write_bundle(subject, tmp_path / "b", "onnx", batches, reference=subject.model, latency=False)
    assert record["verification"]["against"] == "its quantised model" and record["latency"] is None
    assert all(torch.equal(t, before[n]) for n, t in subject.model.state_dict().items())
