"""What is printed to be typed next can be pasted: every command of `Try next`, and those in messages, runs as it stands."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from tauon.cli.runs import listing
from toy import Tauon, table_recipe, text_recipe


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


def text(folder: Path) -> Path:
    return text_recipe(folder, evaluate={"prompts": ['it\'s "so"; echo $HOME']})


def folds(folder: Path) -> Path:
    return table_recipe(folder, data={"split": {"folds": 2, "validation": 0}}, train={"validate_every": None, "steps": None, "epochs": 0.2})


def private(folder: Path) -> Path:
    train = {"steps": 3, "validate_every": None}
    return table_recipe(folder, train=train, privacy={"target_epsilon": 8, "delta": 1e-3, "budget": {"epsilon": 8.1, "delta": 1e-3}})


def timed(folder: Path) -> Path:
    return table_recipe(folder, train={"steps": None, "time": 0.1})


def tries(out: str) -> list[str]:
    lines = out.split("Try next:\n")[1].splitlines()
    return [line.strip().split("  ")[0] for line in lines if line.startswith("  tauon ")]


@pytest.mark.parametrize(
    ("make", "root", "verb"),
    [(text, "my runs & more", v) for v in ("train", "evaluate", "report")]
    + [(text, "runs", "run"), (folds, "it's", "run"), (private, "x", "run"), (timed, "runs", "run")],
)
def test_every_hint_can_be_pasted(tauon: Tauon, tmp_path: Path, make: Any, root: str, verb: str) -> None:
    recipe = make(tmp_path / "recipes of mine")
    ended = tauon("run" if verb in ("evaluate", "report") else verb, recipe, "--root", root)
    assert ended.code == 0, ended
    if verb in ("evaluate", "report"):
        ended = tauon(verb, recipe, "--root", root)
    commands = tries(ended.out)
    assert commands and commands[-1].startswith("tauon runs list")
    before = {p.name for p in tmp_path.iterdir()}
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "tauon"
        done = tauon(*words[1:])
        assert done.code == 0, (command, done)
        if words[1:3] == ["runs", "list"]:
            assert "no run in" not in done.out
    assert {p.name for p in tmp_path.iterdir()} == before  # nothing went to another root
    if verb == "run" and make is not private:
        assert (tmp_path / root / "longer").is_dir()
        assert "name=longer-2" in tauon("run", recipe, "--root", root).out


def test_commands_in_messages_can_be_pasted(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path / "my recipes")
    ended = tauon("evaluate", recipe, "seed=3", "--root", "my runs")
    command = shlex.split(ended.err.split("Train it first: ")[1])
    assert tauon(*command[1:]).code == 0
    ended = tauon("train", recipe, "name=b", "seed=4", "--root", "my runs")
    ended = tauon("runs", "compare", "my runs/toy", "my runs/b")
    for each in ended.out.split("Evaluate: ")[1].strip().split(" && "):
        assert tauon(*shlex.split(each)[1:]).code == 0
    assert "bits per byte" in tauon("runs", "compare", "my runs/toy", "my runs/b").out
    ended = tauon("runs", "list", "--root", "none yet")
    assert ended.out.strip().endswith("Start one: tauon run quickstart --root 'none yet'")
    Path("d.csv").write_text("a,b,y\n" + "".join(f"{i % 7},{i % 5},{'ab'[i % 2]}\n" for i in range(60)))
    ended = tauon("recipe", "new", "--from", "d.csv", "--label-from", "y", "--to", "new recipes/of mine.yaml")
    command = shlex.split(ended.err.split("Next: ")[1])
    assert tauon(*command[1:], "train.epochs=1").code == 0


ROWS = [
    {"run": "quickstart", "state": "trained", "metric": "bits per byte", "value": "1.5423 (1.5301 to 1.5544)", "time": "2026-11-29T11:06:57+00:00"},
    {"run": "shakespeare-char-long-second-try", "state": "step 1,200 of 1,600", "metric": "", "value": "", "time": ""},
    {"run": "中文模型", "state": "trained", "metric": "roc auc", "value": "0.9640 (0.9530 to 0.9720)", "time": "2026-11-28T23:59:00+00:00"},
]  # fmt: skip


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 160])
def test_a_listing_fits_and_cuts_no_name_and_no_time(width: int) -> None:
    lines = listing(ROWS, width)
    short = [line for line in lines if not any(line == row["run"] for row in ROWS)]
    assert all(cell_len(line) <= max(width, 60) for line in short) and (width < 60 or all(cell_len(line) <= width for line in lines))
    whole = "\n".join(lines)
    assert all(row["run"] in whole for row in ROWS)
    for row in ROWS[::2]:
        day = row["time"][:10]
        assert day not in whole or f"{day} {row['time'][11:16]}" in whole or row["time"] in whole


def test_in_a_pipe_nothing_is_cut(tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = "\n".join(listing(ROWS, None))
    assert all(value in whole for row in ROWS for value in row.values())
    recipe = table_recipe(tmp_path)
    name = "a-name-as-long-as-names-may-be" * 3
    assert tauon("run", recipe, f"name={name}").code == 0
    monkeypatch.setenv("COLUMNS", "60")
    for command in (["runs", "list"], ["runs", "compare", f"runs/{name}", f"runs/{name}"]):
        assert any(name in line for line in tauon(*command).out.splitlines())
    row = json.loads(tauon("runs", "list", "--json").out)
    assert row["time"] in tauon("runs", "list").out and row["value"] in tauon("runs", "list").out
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: type("Size", (), {"columns": 100})())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    lines = tauon("runs", "list").out.splitlines()
    assert name in lines[0] + lines[1] and row["time"][:10] in "".join(lines)
