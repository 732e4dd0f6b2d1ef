"""Batch scripts: golden files, bash's own check, sbatch's published options, and a run of the script with srun played by a shell."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import PLACES, RECIPE, golden, shown

from tauon.config import parse
from tauon.errors import LaunchError
from tauon.launch import Job, LaunchConfig, launch
from toy import Tauon, text_recipe

SCRIPTS = [name for name in PLACES if name.endswith(".sbatch")]
OPTIONS = {
    "account", "acctg-freq", "array", "batch", "bb", "bbf", "begin", "chdir", "cluster-constraint", "clusters", "comment",
    "constraint", "container", "container-id", "contiguous", "core-spec", "cores-per-socket", "cpu-freq", "cpus-per-gpu",
    "cpus-per-task", "deadline", "delay-boot", "dependency", "distribution", "error", "exclude", "exclusive", "export", "export-file",
    "extra", "extra-node-info", "get-user-env", "gid", "gpu-bind", "gpu-freq", "gpus", "gpus-per-node", "gpus-per-socket",
    "gpus-per-task", "gres", "gres-flags", "help", "hint", "hold", "ignore-pbs", "input", "job-name", "kill-on-invalid-dep",
    "licenses", "mail-type", "mail-user", "mcs-label", "mem", "mem-bind", "mem-per-cpu", "mem-per-gpu", "mincpus", "network", "nice",
    "no-kill", "no-requeue", "nodefile", "nodelist", "nodes", "ntasks", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node",
    "ntasks-per-socket", "oom-kill-step", "open-mode", "output", "overcommit", "oversubscribe", "parsable", "partition", "prefer",
    "priority", "profile", "propagate", "qos", "quiet", "reboot", "requeue", "reservation", "resv-ports", "segment", "signal",
    "sockets-per-node", "spread-job", "stepmgr", "switches", "test-only", "thread-spec", "threads-per-core", "time", "time-min",
    "tmp", "tres-bind", "tres-per-task", "uid", "usage", "use-min-nodes", "verbose", "version", "wait", "wait-all-nodes", "wckey",
    "wrap",
}  # fmt: skip
"""Long options of sbatch, from https://slurm.schedmd.com/sbatch.html (24.11)."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_the_golden_ones(name: str) -> None:
    """After a change that is meant: python tests/launch/places.py, and read the difference."""
    assert shown(PLACES[name]) == golden(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_takes_the_script(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=golden(name), text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_directive_is_an_option_of_sbatch_and_comes_before_the_first_command(name: str) -> None:
    lines = golden(name).splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[1 : 1 + len(directives)] == directives
    for line in directives:
        found = re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line)
        assert found and found[1] in OPTIONS, line


@pytest.mark.parametrize("name", SCRIPTS)
def test_torchrun_takes_the_arguments_and_the_command_behind_them(name: str) -> None:
    from torch.distributed.run import get_args_parser

    (line,) = [text for text in golden(name).splitlines() if text.startswith("srun ")]
    words = shlex.split(line.replace("$SLURM_JOB_NUM_NODES", "4").removesuffix("&"))
    args = get_args_parser().parse_args(words[words.index("torch.distributed.run") + 1 :])
    each = PLACES[name].get("workers_per_node") or PLACES[name].get("gpus_per_node", 1)
    assert (args.nproc_per_node, args.rdzv_backend, args.module) == (str(each), "c10d", True)
    assert (args.training_script, args.training_script_args[0]) == ("tauon", "train")
    assert args.max_restarts == PLACES[name].get("max_restarts", 3)


def test_values_of_the_environment_are_not_run_by_the_shell() -> None:
    script = "".join(line + "\n" for line in golden("slurm-pyxis.sbatch").splitlines() if line.startswith("export SAY"))
    done = subprocess.run(["bash", "-c", script + 'printf %s "$SAY"'], text=True, capture_output=True)
    assert done.stdout == "it's $HOME"


def test_a_folder_that_a_list_of_mounts_cannot_have_is_refused(tmp_path: Path) -> None:
    job = Job("toy", "train", RECIPE, tmp_path / "with space")
    launch(parse(LaunchConfig, {"kind": "slurm"}), job, dry_run=True)
    with pytest.raises(LaunchError, match="another --root"):
        launch(parse(LaunchConfig, {"kind": "slurm", "container": "x"}), job, dry_run=True)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster of this machine: sbatch notes its arguments, srun runs what follows its options, scontrol names localhost."""
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = {
        "sbatch": f'printf "%s\\n" "$@" > {tmp_path}/sbatch.txt; echo "4242;cluster"',
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "scontrol": f'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> {tmp_path}/scontrol.txt; fi',
    }
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_submitting_writes_script_and_recipe_and_tells_the_number(cluster: Path) -> None:
    told: list[str] = []
    job = Job("toy", "train", RECIPE, cluster / "runs")
    launch(parse(LaunchConfig, {"kind": "slurm", "workers": 2}), job, on_event=lambda _kind, message: told.append(message))
    script = cluster / "runs/toy/launch/job.sbatch"
    assert (cluster / "sbatch.txt").read_text().split() == ["--parsable", f"--output={job.logs}/slurm-%j.out", str(script)]
    assert "job 4242" in told[0] and "scancel 4242" in told[0]
    assert RECIPE in script.read_text() and job.recipe_path.read_text() == RECIPE


SBATCH = r"""
file=; for word in "$@"; do case "$word" in --*) ;; *) file="$word";; esac; done
output=$(sed -n 's/^#SBATCH --output=//p' "$file" | sed 's/%j/4242/')
[ -d "$(dirname "$output")" ] || exit 1  # as Slurm: it makes no folder
export SLURM_JOB_ID=4242 SLURM_JOB_NODELIST=n1 SLURM_JOB_NUM_NODES=1
bash "$file" > "$output" 2>&1
"""


@pytest.mark.parametrize(
    ("workers", "root"), [(1, "runs of mine"), pytest.param(2, "runs", marks=[pytest.mark.slow, pytest.mark.distributed])]
)
def test_a_printed_script_runs_where_nothing_else_was_written(
    cluster: Path, workers: int, root: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `--dry-run` to trained weights, with sbatch, srun and scontrol that do on this machine what Slurm's do."""
    (cluster / "bin/sbatch").write_text(f"#!/bin/bash\n{SBATCH}")
    monkeypatch.chdir(cluster)
    recipe = text_recipe(cluster)
    words = [f"launch.workers_per_node={workers}", 'launch.env={GLOO_SOCKET_IFNAME: lo, SAY: "it\'s $HOME"}']
    ended = Tauon(capsys)("train", recipe, "--on", f"slurm:{workers}", "--root", root, "--dry-run", "--quiet", *words)
    assert ended.code == 0 and not (cluster / root).exists(), ended
    (cluster / "job.sbatch").write_text(ended.out)
    recipe.unlink()  # nothing is read but the script
    done = subprocess.run(
        ["sbatch", "job.sbatch"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    log = cluster / root / "toy/logs/slurm-4242.out"
    assert done.returncode == 0, (done, (cluster / "slurm-4242.out").read_text(), log.read_text() if log.exists() else "")
    assert (cluster / root / "toy/checkpoints/step-000012").is_dir() and log.is_file()
    assert (cluster / "slurm-4242.out").read_text() == ""


def test_a_recipe_may_hold_the_mark_that_ends_it(tmp_path: Path) -> None:
    recipe = RECIPE + "END_OF_RECIPE\n$HOME `echo` 'x'\n"
    text = parse(LaunchConfig, {"kind": "slurm"}).show(Job("toy", "train", recipe, tmp_path))
    made = text[text.index("cat > ") : text.index('mv "$recipe')]
    done = subprocess.run(["bash", "-c", f"recipe={tmp_path}/r\n{made}"], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "r.new").read_text() == recipe


def test_what_sbatch_says_is_passed_on(cluster: Path) -> None:
    (cluster / "bin/sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition specified: gpux' >&2\nexit 1\n")
    with pytest.raises(LaunchError, match="invalid partition specified: gpux"):
        launch(parse(LaunchConfig, {"kind": "slurm", "partition": "gpux"}), Job("toy", "train", RECIPE, cluster))


@contextlib.contextmanager
def script(cluster: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The batch script, running; whatever it started is gone at the end."""
    words = (sys.executable, str(Path(__file__).parent / "standin.py"), str(cluster))
    job = Job("toy", "train", RECIPE, cluster / "runs", options=options, words=words)
    text = parse(LaunchConfig, {"kind": "slurm", "workers": 2, "workers_per_node": 2, "env": {"GLOO_SOCKET_IFNAME": "lo"}}).show(job)
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        ["bash", "-c", text], env={**os.environ, **slurm, "PYTHONPATH": os.pathsep.join(sys.path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        assert process.stdout is not None
        process.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in cluster.glob("started-*.json"):  # torchrun gives its workers sessions of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)


def log_of(cluster: Path) -> str:
    return (cluster / "runs/toy/logs" / f"slurm-{os.getpid()}.out").read_text()


@pytest.mark.slow
@pytest.mark.distributed
def test_the_script_runs_workers_and_survives_the_death_of_one(cluster: Path) -> None:
    with script(cluster, "20", "0.01", "crash=1@5") as process:
        process.communicate(timeout=120)
    out = log_of(cluster)
    assert process.returncode == 0, out
    assert (cluster / "step.txt").read_text() == "20"
    assert "[rank 1] going on at step 4" in out or "[rank 1] going on at step 5" in out
    assert not (cluster / "scontrol.txt").exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_when_time_is_up_workers_save_and_the_job_queues_itself_again(cluster: Path) -> None:
    with script(cluster, "100000", "0.01") as process:
        deadline = time.monotonic() + 60
        while not (cluster / "step.txt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)  # what --signal=B:TERM does: to the script alone
        process.communicate(timeout=60)
    out = log_of(cluster)
    assert process.returncode == 0, out
    assert f"saved at step {(cluster / 'step.txt').read_text()}" in out
    assert (cluster / "scontrol.txt").read_text().split() == ["requeue", str(os.getpid())]
