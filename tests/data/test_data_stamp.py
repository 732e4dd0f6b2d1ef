"""Data that changed under a run is noticed by the same command, whatever kind it is of; a copy of the same bytes is not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauon.pipeline import run
from tauon.recipe import load_recipe
from tones import tone, write_wav
from toy import Tauon, contents, merged, text_recipe, words, write


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


TINY: dict[str, Any] = {"train": {"steps": 2, "batch": 4}, "evaluate": {"resamples": 100}, "optim": {"kind": "adam", "lr": 1e-3}}
TEXT: dict[str, Any] = {"task": "language-modelling", "model": {"kind": "gpt", "layers": 1, "width": 16, "heads": 2}}


def rows(n: int = 40) -> list[tuple[int, float, str]]:
    return [(i, (i * 7 % 11) / 3, "ab"[i * 7 % 11 > 5]) for i in range(n)]


def table(folder: Path) -> dict[str, Any]:
    folder.joinpath("d.csv").write_text("a,b,y\n" + "".join(f"{a},{b:.3f},{y}\n" for a, b, y in rows()))
    return {
        "data": {"source": {"kind": "csv", "path": "d.csv", "label": "y"}},
        "task": "classification",
        "model": {"kind": "mlp", "hidden": [4]},
    }


def held_out(folder: Path) -> dict[str, Any]:
    whole = table(folder)
    shutil.copy(folder / "d.csv", folder / "e.csv")
    whole["data"] = {"source": {"kind": "csv", "path": "e.csv", "label": "y"}, "test": whole["data"]["source"]}
    return whole


def archive(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    np.savez(folder / "d.npz", x=rng.normal(size=(40, 3)).astype(np.float32), y=np.arange(40) % 2)
    return {"data": {"source": {"kind": "npz", "path": "d.npz"}}, "task": "classification", "model": {"kind": "mlp", "hidden": [4]}}


def pictures(folder: Path) -> dict[str, Any]:
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for i in range(16):
            path = folder / "p" / part / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(path)
    return {"data": {"source": {"kind": "folder", "path": "p"}}, "task": "classification", "model": {"kind": "mlp", "hidden": [4]}}


def series(folder: Path) -> dict[str, Any]:
    lines = [f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00:00,{np.sin(i / 4):.4f}\n" for i in range(200)]
    (folder / "s.csv").write_text("date,load\n" + "".join(lines))
    window = {"context": 8, "horizon": 2}
    return {"data": {"source": {"kind": "series", "path": "s.csv"}, "window": window}, "task": "forecasting", "model": {"kind": "dlinear"}}


def recordings(folder: Path) -> dict[str, Any]:
    for i in range(24):
        write_wav(folder / "w" / "ab"[i % 2] / f"{i}.wav", tone(300 + 300 * (i % 2), 0.2, 8000, seed=i), 8000)
    return {
        "data": {"source": {"kind": "wav", "path": "w"}},
        "task": "audio-classification",
        "model": {"kind": "speech-cnn", "channels": [4]},
    }


def labelled(folder: Path) -> dict[str, Any]:
    lines = [json.dumps({"text": words(6, i), "y": "ab"[i % 2]}) + "\n" for i in range(40)]
    (folder / "t.jsonl").write_text("".join(lines))
    source = {"kind": "jsonl", "path": "t.jsonl", "text": "text", "label": "y"}
    return {
        "data": {"source": source, "tokenizer": "bytes", "seq_len": 32},
        "task": "text-classification",
        "model": {"kind": "text-bag", "buckets": 97},
    }


def chat(folder: Path) -> dict[str, Any]:
    lines = [json.dumps({"instruction": words(3, i), "output": words(3, i + 50)}) + "\n" for i in range(30)]
    (folder / "c.jsonl").write_text("".join(lines))
    return TEXT | {
        "data": {"source": {"kind": "chat", "path": "c.jsonl"}, "tokenizer": "bytes", "seq_len": 64},
        "task": "instruction-tuning",
    }


KINDS: list[tuple[Callable[[Path], dict[str, Any]], str]] = [
    (table, "d.csv"),
    (held_out, "d.csv"),
    (archive, "d.npz"),
    (pictures, "p/train/a/0.png"),
    (pictures, "p/test/a/0.png"),
    (series, "s.csv"),
    (recordings, "w"),
    (labelled, "t.jsonl"),
    (chat, "c.jsonl"),
]


def change(path: Path) -> None:
    """Other content, as near to the old as may be: the same size, or one file fewer."""
    if path.is_dir():
        next(p for p in sorted(path.rglob("*.wav"))).unlink()
        return
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1  # the last value, or the end of the archive
    path.write_bytes(raw)


@pytest.mark.parametrize(("make", "changed"), KINDS, ids=[f"{m.__name__}-{c}" for m, c in KINDS])
def test_a_changed_file_is_noticed_and_nothing_is_overwritten(tauon: Tauon, tmp_path: Path, make: Any, changed: str) -> None:
    recipe = write(tmp_path / "r.yaml", merged(TINY | {"name": "r"}, make(tmp_path)))
    ended = tauon("run", recipe)
    assert ended.code == 0, ended
    before = contents(Path("runs/r"))
    again = tauon("run", recipe)
    assert again.code == 0 and again.out.count("done before") == 4 and contents(Path("runs/r")) == before
    change(tmp_path / changed)
    for verb in ("run", "train", "evaluate"):
        ended = tauon(verb, recipe)
        assert ended.code == 5 and "the data changed since this run began" in ended.err and "--fresh" in ended.err, ended
    assert tauon("report", recipe).code == 0  # of records alone
    assert contents(Path("runs/r")) == before


def test_the_same_bytes_with_another_time_are_the_same_data(tauon: Tauon, tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", merged(TINY | {"name": "r"}, table(tmp_path)))
    assert tauon("run", recipe).code == 0
    os.utime(tmp_path / "d.csv", ns=(1, 1))
    for _ in range(2):
        assert tauon("run", recipe).out.count("done before") == 4
    stamp = json.loads(Path("runs/r/manifest.json").read_text())["data"]["files"]
    (tmp_path / "d.csv").chmod(0)  # by now, size and time are enough
    assert tauon("run", recipe).out.count("done before") == 4
    assert stamp["files"] == 1 and stamp["bytes"] == (tmp_path / "d.csv").stat().st_size


def test_a_project_that_moved_as_a_whole_has_the_same_data(tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    write(Path("r.yaml"), merged(TINY | {"name": "r"}, pictures(Path())))
    assert tauon("run", "r.yaml").code == 0
    os.chdir("..")
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    assert tauon("run", "r.yaml").out.count("done before") == 4
    (tmp_path / "new/p/train/a").rename(tmp_path / "new/p/train/c")  # the same pictures, of another class
    assert tauon("run", "r.yaml").code == 5


def test_a_version_that_reads_the_same_files_otherwise_says_so(tauon: Tauon, tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", merged(TINY | {"name": "r"}, table(tmp_path)))
    assert tauon("train", recipe).code == 0
    manifest = json.loads(Path("runs/r/manifest.json").read_text())
    manifest["training"] |= {"data": "what an earlier version made of it", "code": "of an earlier version"}
    Path("runs/r/manifest.json").write_text(json.dumps(manifest))
    ended = tauon("evaluate", recipe)
    assert ended.code == 5 and "makes other examples from the same files" in ended.err.replace("\n", " ")


def test_data_that_is_gone_is_said_and_what_is_done_stays_done(tauon: Tauon, tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", merged(TINY | {"name": "r"}, table(tmp_path)))
    assert tauon("run", recipe).code == 0
    (tmp_path / "d.csv").unlink()
    ended = tauon("run", recipe)
    assert ended.code == 0 and ended.out.count("done before") == 4 and "cannot be checked for changes" in ended.err and "d.csv" in ended.err


def test_before_training_changed_data_is_prepared_again_and_said(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    run(load_recipe(recipe), root="runs", stages=("prepare",))
    first = json.loads(Path("runs/toy/data.json").read_text())
    (tmp_path / "text.txt").write_text(words(1700, seed=1))
    ended = tauon("run", recipe)
    assert ended.code == 0 and "the data changed since it was prepared" in ended.out.replace("\n", " ")
    assert json.loads(Path("runs/toy/data.json").read_text()) != first
    assert tauon("run", recipe).out.count("done before") == 4


def test_a_run_that_was_prepared_without_a_stamp_still_opens(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    assert tauon("run", recipe).code == 0
    manifest = json.loads(Path("runs/toy/manifest.json").read_text())
    del manifest["data"]["files"]
    Path("runs/toy/manifest.json").write_text(json.dumps(manifest))
    assert tauon("run", recipe).out.count("done before") == 4


def test_a_base_that_was_trained_anew_is_noticed(tauon: Tauon, tmp_path: Path) -> None:
    base = text_recipe(tmp_path)
    assert tauon("train", base, "name=base").code == 0
    tuned = text_recipe(tmp_path / "tuned", model={"kind": "checkpoint", "from": str(tmp_path / "runs" / "base")}, train={"steps": 2})
    assert tauon("run", tuned).code == 0
    assert tauon("run", tuned).out.count("done before") == 4
    assert tauon("train", base, "name=base", "seed=1", "--fresh").code == 0
    ended = tauon("run", tuned)
    assert ended.code == 5 and "runs/base changed since this run began" in ended.err
    shutil.rmtree("runs/base")
    assert tauon("run", tuned).out.count("done before") == 4


def test_a_list_of_words_for_cleaning_belongs_to_the_data(tmp_path: Path) -> None:
    from tauon.config import parse
    from tauon.data import DataConfig
    from tauon.data.stamp import DataStamp

    listed = tmp_path / "bad.txt"
    listed.write_text("swindle\n")
    config = parse(DataConfig, {"source": "python-stdlib", "clean": [{"kind": "words", "path": str(listed)}]})
    before = DataStamp.of(config)
    listed.write_text("swindle\nfraud\n")
    assert DataStamp.of(config).content != before.content
