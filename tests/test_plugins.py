"""Parts from outside: a package that Tauon has never seen brings a model, an optimizer and a data source, one file each, by entry
points alone. The package is `examples/toy_plugin`; each test runs in a process of its own, so that nothing stays registered here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "toy_plugin"


def install(folder: Path, *, points: dict[str, dict[str, str]] | None = None) -> dict[str, str]:
    """Put the example into `folder` as an installer would: the package, and its metadata. Returns the environment that sees it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    points = points if points is not None else project["entry-points"]
    shutil.copytree(EXAMPLE / "toy_plugin", folder / "toy_plugin", ignore=shutil.ignore_patterns("__pycache__"))
    info = folder / "toy_plugin-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [line for group, names in points.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in names.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    path = os.pathsep.join([str(folder), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TAUON_CACHE": str(folder / "cache")}


def python(code: str, env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=env, timeout=900, check=False)


def tauon(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return python("from tauon.cli import main; main()", env, *args)


EACH = """
import contextlib, io, json, sys
from tauon.cli import main
found = []
for command in json.loads(sys.argv[1]):
    sys.argv, code = ["tauon", *command], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    found.append({"args": command, "returncode": code, "stdout": out.getvalue(), "stderr": err.getvalue()})
print(json.dumps(found))
"""


def tauon_each(env: dict[str, str], *commands: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Run several commands, one after the other, in one process: most of a short command's time is its imports."""
    done = python(EACH, env, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    return [subprocess.CompletedProcess(**one) for one in json.loads(done.stdout)]


def test_a_recipe_of_three_parts_from_outside_runs_to_the_end(tmp_path: Path) -> None:
    env = install(tmp_path / "site")
    done = tauon(env, "run", str(EXAMPLE / "recipe.yaml"), "--root", str(tmp_path / "runs"), "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    finished = {e["name"] for e in events if e["kind"] == "stage" and e["state"] == "done"}
    assert finished == {"prepare", "train", "evaluate", "report"}
    losses = [e["loss"] for e in events if e["kind"] == "step"]
    assert losses[-1] < 0.7 * losses[0]
    accuracy = next(e["result"]["metrics"]["accuracy"]["value"] for e in events if e["kind"] == "evaluation")
    assert accuracy > 0.75, "chance is 0.5"
    folder = tmp_path / "runs" / "toy-plugin"
    assert "factorization-machine" in (folder / "report.html").read_text()
    again = tauon(env, "run", str(folder), "--json")  # the run's own recipe, complete
    assert again.returncode == 0, again.stderr
    assert all(e["state"] == "done before" for line in again.stdout.splitlines() if (e := json.loads(line))["kind"] == "stage")


def test_a_stage_from_outside_has_a_verb_a_section_and_a_part_of_the_report(tmp_path: Path) -> None:
    env, recipe, root = install(tmp_path / "site"), str(EXAMPLE / "recipe.yaml"), str(tmp_path / "runs")
    folder = tmp_path / "runs" / "toy-plugin"
    shown, taught, schema, early, done, wrong = tauon_each(
        env, ["--help"], ["boundary", "--help"], ["recipe", "schema"], ["boundary", recipe, "--root", root],
        ["run", recipe, "boundary.points=11", "--root", root, "--json"],  # given its section, it is one of the run's stages
        ["recipe", "check", recipe, "--set", "boundary.point=3"],
    )  # fmt: skip
    assert "boundary" in shown.stdout and "changes its mind" in taught.stdout
    assert "boundary" in json.loads(schema.stdout)["properties"]
    assert early.returncode == 5 and "no run yet" in early.stderr
    assert done.returncode == 0, done.stderr
    stages = [e["name"] for line in done.stdout.splitlines() if (e := json.loads(line))["kind"] == "stage" and e["state"] == "done"]
    assert stages == ["prepare", "train", "evaluate", "boundary", "report"]
    assert json.loads((folder / "boundary.json").read_text())["points"] == 11
    assert "changes its mind at" in (folder / "report.html").read_text()
    assert wrong.returncode == 2 and "did you mean 'points'" in wrong.stderr
    again, rest = tauon_each(  # another setting: done again, by itself
        env, ["boundary", str(folder), "boundary.points=21", "--json"], ["run", str(folder), "--json"]
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / "boundary.json").read_text())["points"] == 21
    states = {e["name"]: e["state"] for line in rest.stdout.splitlines() if (e := json.loads(line))["kind"] == "stage"}
    assert states == {
        "prepare": "done before",
        "train": "done before",
        "evaluate": "done before",
        "boundary": "done before",
        "report": "done",
    }
    absent = tauon(
        os.environ | {"PYTHONPATH": str(ROOT / "src")}, "recipe", "check", "quickstart", "--set", "stages=[prepare, train, boundry]"
    )
    assert absent.returncode == 2 and "no stage is called 'boundry'" in absent.stderr and "Available: prepare" in absent.stderr


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ('inputs=("train",)', 'inputs=("train", "boundary")', ),
        pytest.param('    "boundary",\n', '    "evaluate",\n', marks=pytest.mark.slow),
        pytest.param("from tauon.stages.table import Stage", "import a_library_that_is_not_here", marks=pytest.mark.slow),
        pytest.param('inputs=("train",)', 'inputs=("trane",)', marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_stage_that_cannot_be_added_is_named_and_the_rest_works(tmp_path: Path, change: str, named: str) -> None:
    env = install(tmp_path)
    path = tmp_path / "toy_plugin" / "stage.py"
    text = path.read_text()
    assert change in text
    path.write_text(text.replace(change, named))
    words = {
        "trane": "is not a stage",
        "evaluate": "already exists",
        "library": "a_library_that_is_not_here",
        '"boundary")': "cycle: boundary -> boundary",
    }
    expected = next(message for part, message in words.items() if part in named)
    done = tauon(env, "recipe", "check", str(EXAMPLE / "recipe.yaml"))
    assert done.returncode == 0, done.stderr
    assert "'toy-plugin'" in done.stderr and expected in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_task_from_outside_is_scored_by_a_metric_of_its_own(tmp_path: Path) -> None:
    from sklearn.metrics import matthews_corrcoef

    env = install(tmp_path / "site")
    done = tauon(env, "run", str(EXAMPLE / "recipe.yaml"), "task=focal", "name=focal", "--root", str(tmp_path / "runs"), "--json")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "focal"
    found = json.loads((folder / "evaluation.json").read_text())
    counts = found["confusion"]["counts"]
    cells = [(t, g) for t, row in enumerate(counts) for g, n in enumerate(row) for _ in range(n)]
    metric = found["metrics"]["matthews"]
    assert found["primary"] == "matthews"
    assert metric["value"] == pytest.approx(matthews_corrcoef(*zip(*cells, strict=True)), abs=1e-12)
    assert metric["low"] <= metric["value"] <= metric["high"]
    assert "matthews" in (folder / "report.html").read_text().lower()
    (tmp_path / "new.csv").write_text("x,y\n0.5,0.9\n0.6,-0.4\n")
    done = tauon(env, "predict", str(folder), "--data", str(tmp_path / "new.csv"), "--to", str(tmp_path / "out.csv"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "x,y,prediction,probability_upper,probability_lower"


@pytest.mark.slow
def test_a_stage_whose_section_cannot_be_imported_is_left_out_with_those_that_read_it(tmp_path: Path) -> None:
    env = install(tmp_path / "site", points={"tauon.stages": {"one": "toy_plugin.stage:BOUNDARY", "two": "toy_plugin.stage:SECOND"}})
    package = tmp_path / "site" / "toy_plugin"
    (package / "boundary.py").write_text("import a_library_that_is_not_here\n")
    with (package / "stage.py").open("a") as f:
        f.write('SECOND = Stage("second", run="toy_plugin.boundary:second", help="Reads the first.", inputs=("boundary",))\n')
    (tmp_path / "data.csv").write_text("a,y\n" + "".join(f"{i},{'no' if i < 20 else 'yes'}\n" for i in range(40)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"{{name: toy, data: {{source: {{kind: csv, path: {tmp_path / 'data.csv'}, label: y}}}}, task: classification, model: logistic, "
        "train: {steps: 3, batch: 8}}"
    )
    done = tauon(env, "run", str(recipe), "--root", str(tmp_path / "runs"), "--quiet")
    assert done.returncode == 0, done.stderr
    assert "a_library_that_is_not_here" in done.stderr and "'second' is not available" in done.stderr
    assert (tmp_path / "runs" / "toy" / "report.html").is_file()


@pytest.mark.slow
def test_a_run_made_beside_a_stage_that_it_did_not_use_opens_without_that_package(tmp_path: Path) -> None:
    env = install(tmp_path / "site", points={"tauon.stages": {"boundary": "toy_plugin.stage:BOUNDARY"}})
    recipe = ["quickstart", "--set", "train.time=null", "--set", "train.steps=2"]
    assert tauon(env, "recipe", "check", *recipe).returncode == 0
    written = tauon(env, "recipe", "show", "quickstart", "train.time=null", "train.steps=2").stdout
    (tmp_path / "recipe.yaml").write_text(written)
    alone = tauon(os.environ | {"PYTHONPATH": str(ROOT / "src")}, "recipe", "check", str(tmp_path / "recipe.yaml"))
    assert alone.returncode == 0, alone.stderr


def test_names_of_sections_and_verbs_are_reserved(tmp_path: Path) -> None:
    from tauon.cli.main import BY_HAND
    from tauon.recipe import Recipe
    from tauon.stages.table import BUILT_IN, RESERVED

    own = {stage.name for stage in BUILT_IN if stage.config}
    assert {*Recipe.model_fields} - own <= {*RESERVED} and {*BY_HAND} <= {*RESERVED}
    env = install(tmp_path)
    path = tmp_path / "toy_plugin" / "stage.py"
    path.write_text(path.read_text().replace('    "boundary",\n', '    "launch",\n'))
    done = tauon(env, "recipe", "check", str(EXAMPLE / "recipe.yaml"))
    assert done.returncode == 0 and "'launch' is reserved" in done.stderr, done.stderr


@pytest.mark.slow
def test_parts_from_outside_keep_the_contracts(tmp_path: Path) -> None:
    code = """
from tauon.config import load_plugins, parse
from tauon.data import SourceConfig
from tauon.models import ModelConfig
from tauon.optim import OptimConfig
from tauon.models import MLPConfig
from tauon.tasks import Task
from tauon.testing import check_model, check_optimizer, check_source, check_task
from tauon.types import DataSpec
from torch.nn.functional import cross_entropy
import sys
assert "toy_plugin" not in sys.modules
load_plugins()
check_model(parse(ModelConfig, {"kind": "factorization-machine"}), DataSpec(input_shape=(7,), outputs=3))
check_optimizer(parse(OptimConfig, {"kind": "signum", "lr": 0.02}))
check_source(parse(SourceConfig, {"kind": "moons", "rows": 20}))
check_task(parse(Task, {"kind": "focal"}), MLPConfig(hidden=(8,)), DataSpec(input_shape=(7,), outputs=3))
def plain(model, batch):
    return cross_entropy(model(batch.inputs), batch.targets, reduction="none")
check_task(parse(Task, {"kind": "focal", "gamma": 0}), MLPConfig(hidden=(8,)), DataSpec(input_shape=(7,), outputs=3), reference=plain)
"""
    done = python(code, install(tmp_path))
    assert done.returncode == 0, done.stderr


def test_parts_from_outside_are_in_the_schema_and_in_the_messages(tmp_path: Path) -> None:
    env = install(tmp_path)
    schema = tauon(env, "recipe", "schema")
    assert schema.returncode == 0, schema.stderr
    defs = json.loads(schema.stdout)["$defs"]
    assert {"model.factorization-machine", "optim.signum", "source.moons", "task.focal"} <= set(defs)
    wrong = tauon(env, "recipe", "check", str(EXAMPLE / "recipe.yaml"), "--set", "optim.kind=sinum", "--set", "model.ranks=3")
    assert wrong.returncode == 2
    assert "did you mean 'signum'" in wrong.stderr
    assert "did you mean 'rank'" in wrong.stderr


def test_without_the_package_its_parts_are_unknown_and_the_message_lists_what_there_is() -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = tauon(env, "recipe", "check", str(EXAMPLE / "recipe.yaml"))
    assert done.returncode == 2
    for known in ("mlp", "adamw", "sklearn"):
        assert known in done.stderr
    assert "Traceback" not in done.stderr


def test_one_entry_point_may_bring_several_parts(tmp_path: Path) -> None:
    env = install(tmp_path / "site", points={"tauon.plugins": {"all": "toy_plugin.everything"}})
    (tmp_path / "site" / "toy_plugin" / "everything.py").write_text("from toy_plugin import model, optimizer, source\n")
    done = tauon(env, "recipe", "check", str(EXAMPLE / "recipe.yaml"))
    assert done.returncode == 0, done.stderr


def test_a_registered_name_cannot_be_taken_twice(tmp_path: Path) -> None:
    code = """
import tauon.recipe
from tauon.config import register
from toy_plugin.model import FactorizationMachineConfig
from toy_plugin.optimizer import SignumConfig
from toy_plugin.source import MoonsConfig
for cls, taken in ((FactorizationMachineConfig, "mlp"), (SignumConfig, "adamw"), (MoonsConfig, "text")):
    register(cls.kind_)(cls)  # the same class once more is no fight: a module may be imported twice
    try:
        register(taken)(cls)
    except ValueError as err:
        print(err)
"""
    done = python(code, install(tmp_path))
    assert done.returncode == 0, done.stderr
    for name in ("'mlp' is already tauon.models.", "'adamw' is already tauon.optim.", "'text' is already tauon.data."):
        assert name in done.stdout


def test_a_package_that_cannot_be_imported_is_named_where_its_part_is_asked_for(tmp_path: Path) -> None:
    env = install(tmp_path)
    (tmp_path / "toy_plugin" / "model.py").write_text("import a_library_that_is_not_here\n")
    done = tauon(env, "recipe", "check", str(EXAMPLE / "recipe.yaml"))
    assert done.returncode == 2
    assert "'toy-plugin'" in done.stderr and "tauon.model: toy_plugin.model" in done.stderr and "a_library_that_is_not_here" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_one_broken_part_of_a_package_is_named_and_the_rest_works(tmp_path: Path) -> None:
    env = install(tmp_path)
    (tmp_path / "toy_plugin" / "model.py").write_text("import a_library_that_is_not_here\n")
    done = tauon(env, "recipe", "check", str(EXAMPLE / "recipe.yaml"), "--set", "model={kind: mlp}")
    assert done.returncode == 0, done.stderr
    assert "warning" in done.stderr and "'toy-plugin'" in done.stderr and "a_library_that_is_not_here" in done.stderr


@pytest.mark.slow
def test_two_packages_that_bring_one_name_are_both_named(tmp_path: Path) -> None:
    env = install(tmp_path)
    with (tmp_path / "toy_plugin" / "optimizer.py").open("a") as f:
        f.write("\nregister('moons')  # of another family: no clash\nregister('adamw')(SignumConfig)\n")
    done = tauon(env, "recipe", "check", str(EXAMPLE / "recipe.yaml"), "--set", "optim={kind: adamw}")
    assert done.returncode == 0, done.stderr
    assert "'toy-plugin'" in done.stderr and "'adamw' is already tauon.optim." in done.stderr
