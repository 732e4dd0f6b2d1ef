"""The `launch` section, `--on`, `--dry-run`: what is accepted, what is refused and how; workers never launch again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from places import RECIPE

from tauon.artifacts import RunFolder
from tauon.config import parse, registered
from tauon.errors import MissingExtra, RecipeError, RunError
from tauon.launch import Here, Job, LaunchConfig, choose, in_a_worker, launch
from tauon.recipe import load_recipe, to_yaml
from toy import Tauon, table_recipe


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("toy", "train", RECIPE, tmp_path)


def test_every_place_is_there_and_here_is_meant_where_none_is_given() -> None:
    assert set(registered("launch")) == {"here", "local", "ray", "k8s", "slurm"}
    assert isinstance(parse(LaunchConfig, {}), Here)


@pytest.mark.parametrize("words", ["local", "local:2", "ray:16", "k8s", "slurm:3", "here"])
def test_words_of_on_become_a_section(words: str) -> None:
    kind, _, count = words.partition(":")
    (assignment,) = choose(words)
    image = ["launch.image=i"] if kind == "k8s" else []
    tree = load_recipe("breast-cancer", [assignment, *image])
    assert tree.launch.kind_ == kind
    assert not count or tree.launch.raw_value("workers") == int(count)
    assert load_recipe("breast-cancer", [assignment, *image]) == tree


@pytest.mark.parametrize("words", ["locl", "local:0", "local:-1", "local:two", "here:2", "", ":2", "local:2:3"])
def test_other_words_are_refused_with_the_places_that_there_are(words: str) -> None:
    with pytest.raises(RecipeError, match="Use one of: here, k8s, k8s:N, local, local:N"):
        choose(words)


def test_on_keeps_a_section_of_the_same_kind_and_the_shared_words_of_another() -> None:
    section = {"kind": "slurm", "partition": "gpu", "max_restarts": 9, "workers": 64, "env": {"A": "b"}}
    same = load_recipe("breast-cancer", choose("slurm:8", section)).launch
    other = load_recipe("breast-cancer", choose("local", section)).launch
    assert (same.raw_value("partition"), same.raw_value("workers"), same.raw_value("max_restarts")) == ("gpu", 8, 9)
    assert (other.kind_, other.raw_value("max_restarts"), other.raw_value("env"), other.raw_value("workers")) == (
        "local",
        9,
        {"A": "b"},
        None,
    )


@pytest.mark.parametrize(
    ("section", "key", "says"),
    [
        ({"kind": "local", "min_workers": 4, "max_workers": 2}, "launch.min_workers", "Set at most 2"),
        ({"kind": "local", "workers": 2, "min_workers": 3}, "launch.min_workers", "more than workers=2"),
        ({"kind": "local", "workers": 2, "max_workers": 1}, "launch.max_workers", "Set at least 2"),
        ({"kind": "local", "env": {"RANK": "0"}}, "launch.env", "set by the launcher"),
        ({"kind": "local", "env": {"a b": "0"}}, "launch.env", "not a valid environment variable name"),
        ({"kind": "local", "env": {"A": "x\ny"}}, "launch.env", "line break"),
        ({"kind": "local", "port": 70000}, "launch.port", "65535"),
        ({"kind": "slurm", "workers": 7, "gpus_per_node": 4}, "launch.workers", "not a multiple of 4"),
        ({"kind": "slurm", "workers": 8, "nodes": 3, "gpus_per_node": 4}, "launch.workers", "12"),
        ({"kind": "slurm", "partition": "a b"}, "launch.partition", "a b"),
        ({"kind": "slurm", "account": "x\n#SBATCH --uid=0"}, "launch.account", "should match"),
        ({"kind": "slurm", "mounts": ["/a:/b"]}, "launch.mounts", "needs launch.container"),
        ({"kind": "slurm", "seeds": [1, 1]}, "launch.seeds", "has a duplicate"),
        ({"kind": "slurm", "setup": ["#SBATCH --exclusive"]}, "launch.setup.0", "does not read #SBATCH lines"),
        ({"kind": "k8s"}, "launch.image", "no default"),
        ({"kind": "k8s", "image": "i", "min_workers": 1, "workers": 2}, "launch.engine", "has a fixed size"),
        ({"kind": "k8s", "image": "i", "engine": "jobset", "workers": 2, "max_workers": 3}, "launch.max_workers", "is not supported by a jobset"),
        ({"kind": "k8s", "image": "i", "mount": "/d"}, "launch.mount", "needs launch.volume"),
        ({"kind": "k8s", "image": "i", "namespace": "Lab"}, "launch.namespace", "Lab"),
        ({"kind": "k8s", "image": "i", "secrets": ["Not A Name"]}, "launch.secrets.0", "not a valid Secret name"),
        ({"kind": "ray", "gpus_per_worker": 2}, "launch.gpus_per_worker", "less than or equal to 1"),
        ({"kind": "here", "workers": 2}, "launch.workers", "unknown key"),
    ],
)  # fmt: skip
def test_impossible_sections_are_refused_at_their_key(section: dict[str, Any], key: str, says: str) -> None:
    import json

    with pytest.raises(RecipeError) as err:
        load_recipe("breast-cancer", [f"launch={json.dumps(section)}"])
    assert any(p.path == key and says in p.message for p in err.value.problems), err.value


def test_a_key_without_effect_is_an_error(job: Job) -> None:
    class Deaf(type(parse(LaunchConfig, {"kind": "local"}))):  # type: ignore[misc]
        def show(self, job: Job) -> str:
            return f"{self.workers}"

    with pytest.raises(RecipeError, match="launch.port: is set, but launch local does not use it"):
        launch(Deaf(workers=2, port=1234), job, dry_run=True)


@pytest.mark.parametrize("kind", ["local", "ray", "k8s", "slurm"])
def test_every_place_reads_each_of_its_keys(kind: str, job: Job) -> None:
    """So that the check for keys without effect never refuses one that has some."""
    values: dict[str, Any] = {
        "workers": 4, "min_workers": 2, "max_workers": 4, "max_restarts": 1, "timeout": 60, "grace": 5, "env": {"A": "b"}, "pin": False, "port": 1024,
        "nodes": 2, "workers_per_node": 2, "gpus_per_node": 2, "partition": "p", "account": "a", "qos": "q", "time": "2h", "cpus_per_task": 4,
        "memory": "1GiB", "constraint": "c", "requeue": False, "seeds": [3], "setup": ["true"], "container": "i", "container_engine": "apptainer",
        "mounts": ["/a:/b"], "python": "py", "engine": "jobset", "image": "i", "namespace": "n", "cpu": 2, "shared_memory": "1GiB", "volume": "v", "user": 7,
        "mount": "/m", "node_selector": {"a": "b"}, "service_account": "s", "secrets": ["s"], "address": "h:1", "cpus_per_worker": 2,
        "gpus_per_worker": 0.5, "read_only": False,
    }  # fmt: skip
    fields = set(registered("launch")[kind].model_fields)
    assert fields <= set(values), fields - set(values)
    launch(parse(LaunchConfig, {"kind": kind, **{k: v for k, v in values.items() if k in fields}}), job, dry_run=True)


def test_arguments_reach_the_shell_as_they_are(tmp_path: Path) -> None:
    import shlex

    odd = tmp_path / "a folder; rm -rf $HOME 'x'"
    job = Job("toy", "train", RECIPE, odd, options=("--quiet",))
    assert shlex.split(job.shell()) == [
        sys.executable,
        "-m",
        "tauon",
        "train",
        str(odd / "toy/launch/recipe.yaml"),
        "--root",
        str(odd),
        "--quiet",
    ]


def test_the_recipe_of_the_workers_is_the_recipe(tmp_path: Path) -> None:
    tree = load_recipe(table_recipe(tmp_path), [*choose("local:2"), "train.steps=7"])
    job = Job(tree.name, "train", to_yaml(tree), tmp_path)
    assert load_recipe(job.write()) == tree


def test_a_run_that_trains_elsewhere_keeps_its_recipe(tmp_path: Path) -> None:
    first, second = (Job("toy", "train", text, tmp_path) for text in (RECIPE, RECIPE + "seed: 1"))
    first.write()
    with RunFolder.open(first.folder), pytest.raises(RunError, match="another process is writing this run"):
        second.write()  # workers of the first that start again would read it
    assert first.recipe_path.read_text() == RECIPE


def test_a_folder_that_cannot_be_made_is_told_in_words(tauon: Tauon, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = tauon("train", table_recipe(tmp_path), "--on", "local:2", "--root", tmp_path / "file")
    assert ended.code == 5
    assert "cannot be written: Not a directory" in ended.err


def test_a_process_with_a_rank_is_a_worker_and_does_not_launch(tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_a_worker({}) and not in_a_worker({"RANK": "0"})
    assert in_a_worker({"RANK": "0", "WORLD_SIZE": "1"})
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    ended = tauon("train", table_recipe(tmp_path), "--on", "k8s:2", "launch.image=i")
    assert ended.code == 0, ended.err
    assert (tmp_path / "runs/table/checkpoints").is_dir()


def test_dry_run_writes_and_starts_nothing(tauon: Tauon, tmp_path: Path) -> None:
    recipe = table_recipe(tmp_path)
    before = sorted(os.listdir(tmp_path))
    for place in (["here"], ["local:2"], ["ray"], ["slurm:2"], ["k8s:2", "launch.image=i"]):
        ended = tauon("train", recipe, "--dry-run", "--on", *place)
        assert ended.code == 0 and "tauon" in ended.out, ended
    assert sorted(os.listdir(tmp_path)) == before


def test_mistakes_name_the_way_out(tauon: Tauon, tmp_path: Path) -> None:
    recipe = table_recipe(tmp_path)
    for command, code, says in (
        (["--on", "locl"], 2, "unknown launcher"),
        (["--on", "slurm"], 8, "sbatch is not installed on this machine"),
        (["--on", "k8s"], 2, "launch.image: missing"),
        (["--on", "k8s", "launch.image=i", "--fresh"], 2, "another name"),
    ):
        ended = tauon("train", recipe, *command)
        assert ended.code == code and says in ended.err, ended
    assert not (tmp_path / "runs/table/checkpoints").exists()


def test_without_ray_the_extra_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"tauon\[ray\]"):
        launch(parse(LaunchConfig, {"kind": "ray"}), job)


def test_help_teaches_the_places(tauon: Tauon) -> None:
    text = tauon("train", "--help").out
    for part in ("--on", "--dry-run", "local:4", "slurm:16", "k8s", "ray", "launch.max_restarts"):
        assert part in text
