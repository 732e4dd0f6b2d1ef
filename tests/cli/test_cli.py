"""The command line: help that teaches, exit codes, JSON and quiet modes, runs and recipes, completion; nothing is overwritten."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tauon import __version__
from tauon.cli.main import verbs
from tauon.errors import (
    CheckpointError,
    DataError,
    Interrupted,
    LaunchError,
    MissingExtra,
    RecipeError,
    RunError,
    TauonError,
    TrainingError,
)
from tauon.recipe import load_recipe, shipped_recipes
from toy import Tauon, contents, nothing_half_written, table_recipe, text_recipe

MAIN = "from tauon.cli import main; main()"


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


# ------------------------------------------------------------------------------------------------ help


def test_the_first_help_teaches(tauon: Tauon) -> None:
    ended = tauon("--help")
    assert ended.code == 0
    for part in ("tauon run quickstart", "a.b=c", "Exit codes", "completion", *verbs()):
        assert part in ended.out


@pytest.mark.parametrize("verb", [*verbs(), "runs list", "runs compare", "recipe list", "recipe show", "recipe check", "recipe schema"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_verb_explains_itself(tauon: Tauon, verb: str, flag: str) -> None:
    ended = tauon(*verb.split(), flag)
    assert ended.code == 0, ended
    assert "Usage: tauon" in ended.out and len(ended.out.split("\n")) > 4
    documented = re.findall(r"^ +(?:-\w, )?--[\w-]+(?: [A-Z.=a-z-]+)?  +\S", ended.out, re.MULTILINE)
    assert len(documented) == len(re.findall(r"^ +(?:-\w, )?--[\w-]+", ended.out, re.MULTILINE)) or "\n                " in ended.out


def test_without_a_verb_the_help_comes_and_a_script_sees_a_mistake(tauon: Tauon) -> None:
    for command in ([], ["runs"], ["recipe"]):
        ended = tauon(*command)
        assert ended.code == 2 and "Usage: tauon" in ended.out + ended.err


def test_version(tauon: Tauon) -> None:
    ended = tauon("--version")
    assert ended.code == 0 and __version__ in ended.out


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["tarin"], "did you mean 'train'"),
        (["frobnicate"], "Available: run, train"),
        (["run"], "Missing argument 'RECIPE'"),
        (["run", "quickstart", "--frsh"], "--fresh"),
        (["runs", "compare", "nowhere", "nowhere"], "'nowhere' does not exist"),
        (["generate", ".", "--temperature", "-1"], "-1"),
        (["recipe", "show", "nothing"], "no file, run or shipped recipe"),
    ],
)
def test_mistakes_on_the_command_line_end_with_2_and_a_way_out(tauon: Tauon, command: list[str], says: str) -> None:
    ended = tauon(*command)
    assert ended.code == 2 and says in ended.err and "Traceback" not in ended.err


def test_exit_codes_are_those_that_the_help_tells(tauon: Tauon) -> None:
    text = " ".join(tauon("--help").out.split())
    words = {
        0: "done",
        1: "a bug",
        2: "the recipe",
        3: "the data",
        4: "a checkpoint",
        5: "the run's folder",
        6: "training",
        7: "an optional library",
        8: "workers",
    }
    errors: dict[int, type[TauonError]] = {
        2: RecipeError,
        3: DataError,
        4: CheckpointError,
        5: RunError,
        6: TrainingError,
        7: MissingExtra,
        8: LaunchError,
        130: Interrupted,
    }
    assert all(f"{code} {word}" in text for code, word in words.items()) and "130 stopped" in text
    assert {code: error.exit_code for code, error in errors.items()} == {code: code for code in errors}


def test_a_bug_of_ours_ends_with_1_and_shows_where() -> None:
    code = "import tauon.recipe\ntauon.recipe.load_recipe = lambda *a, **k: 1 / 0\n" + MAIN
    done = subprocess.run([sys.executable, "-c", code, "run", "quickstart"], capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


# ------------------------------------------------------------------------------------------------ a whole run


def test_json_mode_prints_one_object_a_line_for_a_whole_run(tauon: Tauon, tmp_path: Path) -> None:
    ended = tauon("run", text_recipe(tmp_path), "--json")
    assert ended.code == 0
    events = [json.loads(line) for line in ended.out.splitlines()]
    kinds = [e["kind"] for e in events]
    assert {
        "stage",
        "derived",
        "training",
        "step",
        "validate",
        "checkpoint",
        "progress",
        "evaluation",
        "sample",
        "report",
        "finished",
    } <= set(kinds)
    assert [e["step"] for e in events if e["kind"] == "step"] == list(range(1, 13))
    assert kinds[-1] == "finished" and Path(events[-1]["folder"], "report.html").is_file()
    evaluation = next(e for e in events if e["kind"] == "evaluation")["result"]
    assert evaluation["metrics"]["bits_per_byte"]["value"] > 0
    again = [json.loads(line) for line in tauon("run", tmp_path / "recipe.yaml", "--json").out.splitlines()]
    assert [e.get("state") for e in again] == ["done before"] * 4 + [None]


def test_json_mode_of_a_run_that_fails_keeps_standard_output_clean(tauon: Tauon, tmp_path: Path) -> None:
    ended = tauon("run", text_recipe(tmp_path), "data.seq_len=1M", "--json")
    assert ended.code == 3 and "Lower data.seq_len" in ended.err
    assert all(json.loads(line)["kind"] for line in ended.out.splitlines())


def test_quiet_mode_prints_the_final_figures_alone(tauon: Tauon, tmp_path: Path) -> None:
    ended = tauon("run", text_recipe(tmp_path), "--quiet")
    assert ended.code == 0 and ended.err == ""
    lines = ended.out.strip().splitlines()
    assert lines[0].split()[:2] == ["on", "validation"] and 3 <= len(lines) <= 7
    assert any(line.strip().startswith("bits per byte") for line in lines)
    assert tauon("train", tmp_path / "recipe.yaml", "name=other", "--quiet").out == ""


def test_plain_mode_says_what_was_decided_and_what_to_try_next(tauon: Tauon, tmp_path: Path) -> None:
    ended = tauon("run", text_recipe(tmp_path))
    for part in (
        "train.microbatch",
        "the whole batch fits",
        "validation loss",
        "bits per byte",
        "runs/toy/report.html",
        "tauon generate runs/toy",
    ):
        assert part in ended.out, part


def test_stages_one_by_one_are_the_whole_run(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    assert tauon("run", recipe, "name=whole").code == 0
    assert not Path("runs/toy").exists()
    for verb, made in (("train", "checkpoints/step-000012"), ("evaluate", "evaluation.json"), ("report", "report.html")):
        assert not Path("runs/toy", made).exists()
        assert tauon(verb, recipe if verb == "train" else "runs/toy").code == 0
        assert Path("runs/toy", made).exists()
    assert Path("runs/toy/evaluation.json").read_text() == Path("runs/whole/evaluation.json").read_text()


def test_a_run_folder_stands_for_its_recipe_wherever_it_is(tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tauon("run", text_recipe(tmp_path), "--root", "elsewhere/deep").code == 0
    monkeypatch.chdir("elsewhere/deep/toy")
    ended = tauon("run", ".")
    assert ended.code == 0 and ended.out.count("done before") == 4
    assert not Path("runs").exists()


def test_fresh_renames_and_never_deletes(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    seen = []
    for number in range(3):
        ended = tauon("train", recipe, f"seed={number}", *(["--fresh"] if number else []))
        assert ended.code == 0
        assert (f"toy.{number}" in ended.out) == (number > 0)
        seen.append(contents(Path("runs/toy")))
    assert [contents(Path(f"runs/{n}")) for n in ("toy.1", "toy.2", "toy")] == seen
    assert tauon("train", recipe, "seed=2", "--resume").code == 0
    assert contents(Path("runs/toy"))["checkpoints/step-000012/model.safetensors"] == seen[2]["checkpoints/step-000012/model.safetensors"]


def test_a_crossvalidated_run_is_listed_with_its_mean(tauon: Tauon, tmp_path: Path) -> None:
    recipe = table_recipe(tmp_path, data={"split": {"folds": 3, "validation": 0}}, train={"validate_every": None})
    ended = tauon("run", recipe)
    assert ended.code == 0 and "over 3 folds" in ended.out
    folds = json.loads(Path("runs/table/folds.json").read_text())
    (row,) = (json.loads(line) for line in tauon("runs", "list", "--json").out.splitlines())
    assert row["state"] == "3 folds trained" and row["value"].startswith(f"{folds['mean'][row['metric'].replace(' ', '_')]:.4f}")
    ended = tauon("run", recipe)
    assert ended.code == 0 and ended.out.count("done before") == 12


# ------------------------------------------------------------------------------------------------ runs


def test_runs_are_listed_and_compared(tauon: Tauon, tmp_path: Path) -> None:
    ended = tauon("runs", "list")
    assert ended.code == 0 and "no run in runs" in ended.out
    recipe = text_recipe(tmp_path)
    tauon("run", recipe, "name=one")
    tauon("run", recipe, "name=two", "optim.lr=3e-2")
    tauon("train", recipe, "name=three")
    rows = {r["run"]: r for r in (json.loads(line) for line in tauon("runs", "list", "--json").out.splitlines())}
    assert set(rows) == {"one", "two", "three"}
    assert rows["one"]["state"] == "trained" and rows["one"]["metric"] == "bits per byte" and float(rows["one"]["value"].split()[0]) > 0
    assert rows["three"]["value"] == ""
    assert all(name in tauon("runs", "list").out for name in rows)
    ended = tauon("runs", "compare", "runs/one", "runs/two")
    assert ended.code == 0 and "optim.lr: 0.01 -> 0.03" in ended.out and "bits per byte" in ended.out
    ended = tauon("runs", "compare", "runs/one", "runs/three")
    assert ended.code == 0 and "not evaluated yet: runs/three" in ended.out


def test_one_damaged_run_does_not_hide_the_others(tauon: Tauon, tmp_path: Path) -> None:
    recipe = table_recipe(tmp_path)
    tauon("run", recipe, "name=good")
    tauon("run", recipe, "name=bad")
    Path("runs/bad/evaluation.json").write_text("{")
    ended = tauon("runs", "list", "--json")
    rows = {r["run"]: r for r in (json.loads(line) for line in ended.out.splitlines())}
    assert ended.code == 0 and rows["good"]["state"] == "trained" and rows["bad"]["state"].startswith("unreadable: ")


def test_runs_of_two_kinds_cannot_be_compared(tauon: Tauon, tmp_path: Path) -> None:
    tauon("run", table_recipe(tmp_path / "a"))
    tauon("run", text_recipe(tmp_path / "b"))
    ended = tauon("runs", "compare", "runs/table", "runs/toy")
    assert ended.code == 3 and "cannot compare classification with language-modelling" in ended.err


# ------------------------------------------------------------------------------------------------ recipes


def test_recipes_are_listed_shown_and_checked(tauon: Tauon, tmp_path: Path) -> None:
    listed = tauon("recipe", "list").out
    assert all(name in listed for name in shipped_recipes())
    shown = tauon("recipe", "show", "mnist-mlp", "optim.lr=5e-3").out
    (tmp_path / "shown.yaml").write_text(shown)
    assert load_recipe(tmp_path / "shown.yaml") == load_recipe("mnist-mlp", ["optim.lr=5e-3"])
    assert tauon("recipe", "show", "mnist-mlp", "--source").out == shipped_recipes()["mnist-mlp"].read_text()
    ended = tauon("recipe", "check", *shipped_recipes())
    assert ended.code == 0 and ended.out.count(": fine") == len(shipped_recipes())
    ended = tauon("recipe", "check", "mnist-mlp", "--set", "train.stesp=3")
    assert ended.code == 2 and "did you mean 'steps'" in ended.err


def test_the_schema_goes_to_standard_output_or_to_a_file(tauon: Tauon, tmp_path: Path) -> None:
    printed = json.loads(tauon("recipe", "schema").out)
    assert tauon("recipe", "schema", "--out", "s.json").code == 0
    assert json.loads((tmp_path / "s.json").read_text()) == printed
    ended = tauon("recipe", "schema", "--out", "no/such/folder/s.json")
    assert ended.code == 5 and "cannot be written" in ended.err


# ------------------------------------------------------------------------------------------------ generate


def test_generate_writes_the_same_text_for_the_same_seed(tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tauon("train", text_recipe(tmp_path))
    one = tauon("generate", "runs/toy", "-p", "the", "-n", "30", "--seed", "3")
    assert one.code == 0 and one.out.startswith("the")
    assert tauon("generate", "runs/toy", "-p", "the", "-n", "30", "--seed", "3").out == one.out
    assert tauon("generate", "runs/toy", "-p", "the", "-n", "30", "--seed", "4").out != one.out
    two = tauon("generate", "runs/toy", "-p", "the", "-n", "30", "--seed", "3", "-s", "2")
    assert two.out.split("----- 2\n")[0].removeprefix("----- 1\n") == one.out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("thé ".encode()), encoding="ascii", errors="strict"))
    assert tauon("generate", "runs/toy", "-p", "-", "-n", "5").out.startswith("thé ")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    for prompt in ("-", "caf\udce9"):  # what Python makes of an argument that is not UTF-8
        ended = tauon("generate", "runs/toy", "-p", prompt)
        assert ended.code == 3 and "not UTF-8" in ended.err


# ------------------------------------------------------------------------------------------------ the process


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_made(shell: str) -> None:
    code = "import sys; sys.argv[0] = 'tauon'; " + MAIN
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"_TAUON_COMPLETE": f"{shell}_source"}
    )
    if shell == "bash" and "Shell completion is not supported" in done.stderr + done.stdout:
        pytest.skip("this bash is too old for click")
    assert "tauon" in done.stdout and "COMP" in done.stdout.upper(), done


@pytest.mark.parametrize(
    ("typed", "wanted"), [("tauon ru", {"run", "runs"}), ("tauon run qui", {"quickstart"}), ("tauon recipe s", {"show", "schema"})]
)
def test_completion_knows_verbs_and_recipes(typed: str, wanted: set[str]) -> None:
    env = os.environ | {"_TAUON_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    done = subprocess.run([sys.executable, "-c", MAIN], capture_output=True, text=True, env=env)
    assert {line.split(",")[1] for line in done.stdout.split()} >= wanted, done


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -c '{MAIN}' recipe schema | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.split()[-1] in ("0", "141") and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_of_training_leaves_nothing_half_written(tmp_path: Path, number: signal.Signals) -> None:
    """While data is prepared: Python's own handling, on a real process."""
    recipe = text_recipe(tmp_path, n_words=300_000, data={"tokenizer": {"kind": "bpe", "vocab": 2000}})
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "train", str(recipe), "--root", str(tmp_path / "runs"), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell that starts the tests in the background has Ctrl-C ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if '"tokenizer"' in line:
            break
    process.send_signal(number)
    message = process.communicate(timeout=600)[1]
    assert process.returncode == 130
    assert "Traceback" not in message and "the same command resumes" in message
    nothing_half_written(tmp_path / "runs")
    assert not list((tmp_path / "cache").rglob("*.tmp-*"))
