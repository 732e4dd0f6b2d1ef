"""Where a recipe may come from (a pipe, standard input), what its run may be called, where runs may lie."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from tauon.launch.outcome import still_at_work
from tauon.recipe import load_recipe
from toy import Tauon, text_recipe


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


def pipe_of(text: str) -> str:
    """What `<(...)` of a shell becomes."""
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    return f"/dev/fd/{read}"


@pytest.mark.parametrize("command", ["train", "recipe show", "recipe show --source", "recipe check", "train --on slurm:2 --dry-run"])
@pytest.mark.parametrize("way", ["pipe", "stdin"])
def test_a_recipe_may_come_from_a_pipe(tauon: Tauon, tmp_path: Path, command: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_recipe(tmp_path, train={"steps": 2}).read_text()
    if way == "stdin":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        ref = "-"
    else:
        ref = pipe_of(text)
    ended = tauon(*command.split(), ref)
    assert ended.code == 0, ended
    assert "toy" in ended.out or "fine" in ended.out or Path("runs/toy/checkpoints/step-000002").is_dir()


def test_what_is_wrong_with_a_piped_recipe_is_said(tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_recipe(tmp_path).read_text().replace("steps", "stepps")
    ended = tauon("run", pipe_of(text))
    assert ended.code == 2 and "did you mean 'steps'" in ended.err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    ended = tauon("run", "-")
    assert ended.code == 2 and "standard input: expected keys and values" in ended.err


@pytest.mark.parametrize("name", ["我的模型", "größe", "a b", "-x", "a/b", "x" * 101, ""])
def test_a_name_that_no_run_can_have_is_refused_as_a_mistake(tauon: Tauon, tmp_path: Path, name: str) -> None:
    Path("d.csv").write_text("a,b,y\n" + "".join(f"{i % 7},{i % 5},{'ab'[i % 2]}\n" for i in range(60)))
    ended = tauon("recipe", "new", "--from", "d.csv", "--label-from", "y", f"--name={name}")
    assert ended.code == 2 and "is not a valid run name" in ended.err and "letters, digits" in ended.err
    assert {p.name for p in tmp_path.iterdir()} == {"d.csv"}


@pytest.mark.parametrize("stem", ["2024", "no", "1e3", "null", "我的", "~"])
def test_a_recipe_for_data_of_any_name_can_be_read_back(tauon: Tauon, stem: str) -> None:
    Path(f"{stem}.csv").write_text("a,b,y\n" + "".join(f"{i % 7},{i % 5},{'ab'[i % 2]}\n" for i in range(60)))
    ended = tauon("recipe", "new", "--from", f"{stem}.csv", "--label-from", "y", "--to", "r.yaml")
    assert ended.code == 0, ended
    assert load_recipe("r.yaml").name == (stem if stem.isascii() and stem != "~" else "mine")
    assert isinstance(yaml.safe_load(Path("r.yaml").read_text())["name"], str)


def test_a_root_that_cannot_be_made_is_said_with_its_reason(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere/at/all")
    for root, reason in (
        ("/proc/nothing/here", "No such file"),
        ("file/runs", "Not a directory"),
        ("link", "File exists"),
        ("file", "Not a directory"),
    ):
        ended = tauon("train", recipe, "--root", root)
        assert ended.code == 5 and reason in ended.err and "cannot be written" in ended.err, ended
        assert "renamed again" not in ended.err


def test_workers_that_nobody_waited_for_are_told_with_the_step_they_reached(tmp_path: Path) -> None:
    assert still_at_work(tmp_path, 2, 2) == []
    assert still_at_work(tmp_path, 0, 2) == ["2 of 2 were still running (no checkpoint yet)"]
    events = [{"kind": "step", "step": s} for s in range(1, 7)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(e | {"time": 1.0}) + "\n" for e in events) + '{"half')
    (tmp_path / "checkpoints" / "step-000004").mkdir(parents=True)
    said = still_at_work(tmp_path, 1, 2)
    assert said == ["1 of 2 were still running (step 6 was the last in their logs, the last checkpoint is of step 4)"]
