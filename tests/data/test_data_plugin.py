"""A kind of data from outside: `examples/toy_plugin` brings sequences of events, which no file of Tauon knows. Each test runs in a process of
its own, so that nothing stays registered here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from test_plugins import EXAMPLE, ROOT, install, python, tauon

pytestmark = pytest.mark.long

RECIPE = EXAMPLE / "events.yaml"


def test_it_runs_from_raw_data_to_report(tmp_path: Path) -> None:
    env = install(tmp_path / "site")
    done = tauon(env, "run", str(RECIPE), "--root", str(tmp_path / "runs"), "--json", "train.epochs=12")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {e["name"] for e in events if e["kind"] == "stage" and e["state"] == "done"} == {"prepare", "train", "evaluate", "report"}
    accuracy = next(e["result"]["metrics"]["accuracy"]["value"] for e in events if e["kind"] == "evaluation")
    assert accuracy > 0.9, "by counts of events it is 0.5"
    folder = tmp_path / "runs" / "machine-log"
    facts = json.loads((folder / "data.json").read_text())
    assert facts["kind"] == "events" and facts["parts"]["train"]["classes"] == {"runs": 210, "fails": 210}
    again = tauon(env, "run", str(folder), "--json")
    assert again.returncode == 0, again.stderr
    assert all(e["state"] == "done before" for line in again.stdout.splitlines() if (e := json.loads(line))["kind"] == "stage")


def test_what_a_checkpoint_keeps_makes_the_inputs_of_training_again(tmp_path: Path) -> None:
    env = install(tmp_path / "site")
    done = tauon(env, "train", str(RECIPE), "--root", str(tmp_path / "runs"), "--json", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    code = """
import sys
from pathlib import Path
import numpy as np
import pytest

from tauon.artifacts import find_checkpoint
from tauon.recipe import load_recipe
from tauon.data import prepare
recipe = load_recipe(sys.argv[1])
test = prepare(recipe.data, seed=recipe.seed, input_kind=recipe.task.input_kind).test
from toy_plugin.events.kind import inputs_from_logs
preprocess = find_checkpoint(Path(sys.argv[1])).state["preprocess"]
logs = recipe.data.source.logs().logs
again = {row.tobytes() for row in inputs_from_logs(preprocess, logs)}
print(all(row.numpy().tobytes() in again for row in test.batch(np.arange(len(test))).inputs), len(test))
"""
    shown = python(code, env, str(tmp_path / "runs" / "machine-log"))
    assert shown.stdout.split() == ["True", "120"], shown.stderr


@pytest.mark.slow
def test_what_is_made_for_every_kind_works_for_it(tmp_path: Path) -> None:
    """Training that starts from a trained model, cross-validation, privacy."""
    env = install(tmp_path / "site")
    root, short = ("--root", str(tmp_path / "runs")), ("train.epochs=null", "train.steps=6")
    first = tauon(env, "train", str(RECIPE), *root, "name=first", *short)
    assert first.returncode == 0, first.stderr
    more = tauon(env, "run", str(RECIPE), *root, "name=more", f"model={{from: {tmp_path / 'runs' / 'first'}}}", *short)
    assert more.returncode == 0, more.stderr
    folds = tauon(env, "run", str(RECIPE), *root, "name=folds", "data.split={folds: 2}", *short)
    assert folds.returncode == 0, folds.stderr
    tests = [
        json.loads((p / "data.json").read_text())["parts"]["test"]["sequences"] for p in sorted((tmp_path / "runs").glob("folds/fold-*"))
    ]
    assert tests == [300, 300]
    private = tauon(env, "run", str(RECIPE), *root, "name=private", "privacy={target_epsilon: 8, delta: 1e-4}", "train.epochs=1")
    assert private.returncode == 0, private.stderr
    assert json.loads((tmp_path / "runs" / "private" / "privacy.json").read_text())["guarantee"]["epsilon"] <= 8


def test_it_keeps_the_contracts_by_the_test_that_it_brings(tmp_path: Path) -> None:
    env = install(tmp_path / "site")
    code = "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-c', '/dev/null', sys.argv[1]]))"
    done = python(code, env, str(EXAMPLE / "tests"))
    assert done.returncode == 0, done.stdout


def test_another_task_and_a_key_of_other_kinds_are_refused(tmp_path: Path) -> None:
    env = install(tmp_path / "site")
    wrong = tauon(env, "recipe", "check", str(RECIPE), "--set", "task=classification", "--set", "model=mlp")
    assert wrong.returncode == 2
    assert "'machine-log' provides sequences of events, but the task needs features and targets" in wrong.stderr
    wrong = tauon(env, "recipe", "check", str(RECIPE), "--set", "data.normalize=standard", "--set", "data.seq_len=8")
    assert wrong.returncode == 2
    assert "data.normalize: is only for arrays and series, but the task needs events; remove it" in wrong.stderr
    assert "seq_len" not in wrong.stderr, "the kind says that it reads it"


def test_half_of_it_is_an_error_that_names_what_there_is(tmp_path: Path) -> None:
    """The task and the source are installed, the kind of data is not."""
    points = {
        "tauon.source": {"machine-log": "toy_plugin.events.source"},
        "tauon.model": {"event-gru": "toy_plugin.events.model"},
        "tauon.task": {"event-classification": "toy_plugin.events.task"},
    }
    wrong = tauon(install(tmp_path / "site", points=points), "recipe", "check", str(RECIPE))
    assert wrong.returncode == 2
    assert "the task needs 'events', and no installed kind of data is that" in wrong.stderr
    assert "Available: tokens, arrays, series" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_without_the_package_the_message_lists_what_there_is() -> None:
    wrong = tauon(os.environ | {"PYTHONPATH": str(ROOT / "src")}, "recipe", "check", str(RECIPE))
    assert wrong.returncode == 2
    assert "no source is called 'machine-log'" in wrong.stderr and "no task is called 'event-classification'" in wrong.stderr
