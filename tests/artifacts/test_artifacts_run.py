"""One run, one folder, one process that writes it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from datetime import datetime

import pytest

import tauon
from tauon.artifacts import RunFolder, environment, list_runs
from tauon.errors import RunError

HOLD = "import sys; from tauon.artifacts import RunFolder; run = RunFolder.open(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


FORK = """
import os, sys
from tauon.artifacts import RunFolder
run = RunFolder.open(sys.argv[1])
pid = os.fork()
if pid == 0:
    sys.stdin.read()
    os._exit(0)
print(pid, flush=True)
os.kill(os.getpid(), 9)
"""


def hold(folder):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    return child


def finish(child):
    child.communicate("")


def test_a_second_process_is_refused_and_told_who_holds_the_run(tmp_path):
    child = hold(tmp_path / "r")
    try:
        with pytest.raises(RunError, match=rf"process {child.pid} on .*since 20.*Wait.*name=") as caught:
            RunFolder.open(tmp_path / "r")
        assert caught.value.exit_code == 5
    finally:
        finish(child)
    with RunFolder.open(tmp_path / "r") as run:
        run.update_manifest(a=1)
    assert child.returncode == 0


def test_kill_9_frees_the_run(tmp_path):
    child = hold(tmp_path / "r")
    child.send_signal(signal.SIGKILL)
    finish(child)
    RunFolder.open(tmp_path / "r").close()


def test_a_forked_child_does_not_keep_the_run(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", FORK, str(tmp_path / "r")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    orphan = int(child.stdout.readline())
    child.wait()
    os.kill(orphan, 0)  # lives, like a data worker of a killed run
    RunFolder.open(tmp_path / "r").close()
    finish(child)


def test_within_one_process_too(tmp_path):
    with RunFolder.open(tmp_path / "r"), pytest.raises(RunError, match=f"process {os.getpid()} on"):
        RunFolder.open(tmp_path / "r")


def test_manifest_merges_whole_entries(tmp_path):
    with RunFolder.open(tmp_path / "r") as run:
        assert run.manifest() == {}
        run.update_manifest(seed=7, data={"hash": "a", "rows": 1})
        run.update_manifest(data={"hash": "b"}, loss=float("inf"))
        assert run.manifest() == {"seed": 7, "data": {"hash": "b"}, "loss": float("inf")}
    assert RunFolder.read(tmp_path / "r").manifest()["seed"] == 7


def test_threads_lose_no_entry(tmp_path):
    with RunFolder.open(tmp_path / "r") as run:
        threads = [threading.Thread(target=run.update_manifest, kwargs={f"k{i}": i}) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert run.manifest() == {f"k{i}": i for i in range(16)}


def test_stages_are_remembered_with_time_and_fingerprint(tmp_path):
    with RunFolder.open(tmp_path / "r") as run:
        assert run.stage("train") is None
        run.mark_stage("train", "f00", steps=10)
        run.mark_stage("train", "f01", steps=20)
        run.mark_stage("evaluate", "e00")
    stage = RunFolder.read(tmp_path / "r").stage("train")
    assert (stage["fingerprint"], stage["steps"]) == ("f01", 20)
    assert datetime.fromisoformat(stage["time"]).tzinfo is not None


def test_set_aside_renames_and_goes_on_empty(tmp_path):
    with RunFolder.open(tmp_path / "r") as run:
        for number in (1, 2):
            run.update_manifest(number=number)
            assert run.set_aside() == tmp_path / f"r.{number}"
            assert run.manifest() == {}
            with pytest.raises(RunError, match=str(os.getpid())):
                RunFolder.open(tmp_path / "r")
        run.update_manifest(number=3)
    assert [(r.name, r.manifest()["number"]) for r in list_runs(tmp_path)] == [("r", 3), ("r.1", 1), ("r.2", 2)]


def test_a_run_that_is_only_read_is_not_written(tmp_path):
    with RunFolder.open(tmp_path / "r") as run:
        run.update_manifest(a=1)
    for reader in (run, RunFolder.read(tmp_path / "r")):
        with pytest.raises(RunError, match=r"RunFolder\.open"):
            reader.update_manifest(b=2)
        with pytest.raises(RunError, match=r"RunFolder\.open"):
            reader.set_aside()
    assert run.manifest() == {"a": 1}


def test_where_things_lie(tmp_path):
    run = RunFolder(tmp_path / "r")
    paths = [run.recipe_path, run.manifest_path, run.events_path, run.checkpoints, run.report_path]
    assert [p.name for p in paths] == ["recipe.yaml", "manifest.json", "events.jsonl", "checkpoints", "report.html"]
    assert {p.parent for p in paths} == {tmp_path / "r"}


def test_what_is_no_run_is_said_to_be_none(tmp_path):
    with pytest.raises(RunError, match="not a run"):
        RunFolder.read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        RunFolder.open(tmp_path / "file")
    (tmp_path / "other").mkdir()
    assert list_runs(tmp_path) == []
    assert list_runs(tmp_path / "nowhere") == []


def test_a_damaged_manifest_is_named(tmp_path):
    with RunFolder.open(tmp_path / "r") as run:
        run.manifest_path.write_text("[1]")
        with pytest.raises(RunError, match=r"manifest\.json: contains list"):
            run.manifest()


def test_environment_says_what_matters_and_keeps_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "s3cr3t-value")
    monkeypatch.chdir(tmp_path)
    here = environment()
    assert here["git"] is None
    assert here["tauon"] == tauon.__version__
    assert here["python"] == ".".join(map(str, sys.version_info[:3]))
    assert here["cores"] == len(os.sched_getaffinity(0))
    assert "torch" in here["libraries"]
    assert "s3cr3t" not in json.dumps(here)
    assert os.uname().nodename not in json.dumps(here) or len(os.uname().nodename) < 4


def test_environment_names_the_commit_of_the_users_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "code.py").write_text("1")
    for words in (["init", "-q"], ["add", "code.py"], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *words], check=True)
    assert re.fullmatch(r"[0-9a-f]{40}", environment()["git"]["commit"])
    assert environment()["git"]["dirty"] is False
    (tmp_path / "code.py").write_text("2")
    assert environment()["git"]["dirty"] is True


def test_importing_the_room_does_not_import_torch():
    code = "import sys, tauon.artifacts; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
