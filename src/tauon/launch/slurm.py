"""`slurm`: a batch script for sbatch. torchrun (c10d rendezvous on the first node) starts and restarts the workers inside the job;
Slurm requeues the job when a node fails, when it is preempted, or when its time is up: a signal comes before the end, the workers save,
and the script requeues itself.

https://slurm.schedmd.com/sbatch.html (--signal, --requeue, --array), https://github.com/NVIDIA/pyxis (--container-image).
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from tauon.artifacts import atomic_write
from tauon.config import Bytes, Count, Duration, register
from tauon.errors import LaunchError
from tauon.launch.config import TORCHRUN, Cluster, EventCallback
from tauon.launch.job import Job

__all__ = ["Slurm"]

WORD = r"^[A-Za-z0-9_.,:@%+/\[\]=-]{1,200}$"
"""Characters permitted in an #SBATCH line, which Slurm reads without shell quoting."""
_RECIPE = "THE-RECIPE-OF-THIS-JOB"
"""Placeholder for the script's variable until the command is quoted."""


@register("slurm")
class Slurm(Cluster):
    """A batch job on a Slurm cluster. Folders (this one, the runs, the data) must be shared by its nodes."""

    partition: str | None = Field(None, pattern=WORD)
    """Partition (queue). Default: the cluster's."""
    account: str | None = Field(None, pattern=WORD)
    """Account to charge."""
    qos: str | None = Field(None, pattern=WORD)
    """Quality of service."""
    time: Duration | None = Field(None, ge=60, le=1e8)
    """Wall time of the job (8h). Default: the partition's. Longer runs requeue themselves and resume."""
    gpus_per_node: Count | None = Field(None, ge=1)
    """GPUs per node. Default: none."""
    cpus_per_task: Count | None = Field(None, ge=1)
    """Cores per node, shared by its workers. Default: one per worker (Slurm's own default is one for all of them)."""
    memory: Bytes | None = Field(None, ge=2**20)
    """Memory of each node (64GiB). Default: Slurm's."""
    constraint: str | None = Field(None, pattern=WORD)
    """Required features of the nodes."""
    requeue: bool = True
    """Requeue the job when its time is up, it is preempted, or a node fails."""
    seeds: tuple[Count, ...] = ()
    """Job array with one job per seed: the run NAME-seedN with that seed. Default: one job with the recipe's seed."""
    setup: tuple[str, ...] = ()
    """Bash lines to run first on the first node: module load, source .../activate."""
    container: str | None = Field(None, pattern=WORD)
    """Container image of the workers."""
    container_engine: Literal["pyxis", "apptainer"] = "pyxis"
    """`pyxis`: srun --container-image; `apptainer`: apptainer exec."""
    mounts: tuple[str, ...] = ()
    """Folders mounted in the container, SOURCE:TARGET. The runs' folder is always mounted."""
    python: str | None = None
    """Python of the workers. Default: this one; in a container, python3."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.raw_value("container") is None:
            for name in ("mounts", "container_engine"):
                if name in self.model_fields_set:
                    yield name, "needs launch.container. Set it, or remove this key."
        for i, line in enumerate(self.raw_value("setup")):
            if line.lstrip().startswith("#SBATCH") or "\n" in line:
                yield f"setup.{i}", "must be one line of bash, and Slurm does not read #SBATCH lines there. Use the keys of launch."
        for i, mount in enumerate(self.raw_value("mounts")):
            if ":" not in mount or "," in mount:
                yield f"mounts.{i}", f"is {mount!r}: expected SOURCE:TARGET."
        seeds = self.raw_value("seeds")
        if len(set(seeds)) != len(seeds):
            yield "seeds", f"is {list(seeds)}, which has a duplicate. Set each seed once."

    def show(self, job: Job) -> str:
        return self.script(job)

    def start(self, job: Job, on_event: EventCallback) -> None:
        if shutil.which("sbatch") is None:
            raise LaunchError(
                "sbatch is not installed on this machine, so no job was submitted. Run this on a login node of the cluster, "
                "or print the script with --dry-run and copy it there."
            )
        job.write()
        path = job.folder / "launch" / "job.sbatch"
        atomic_write(path, self.script(job))
        odd = any(c in str(job.logs) for c in "%\\")  # sbatch would read a pattern
        log = [] if odd else [f"--output={job.logs}/slurm-{self.number_pattern()}.out"]
        command = ["sbatch", "--parsable", *log, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise LaunchError(f"sbatch refused {path}: {done.stderr.strip() or done.stdout.strip()}")
        number = done.stdout.strip().split(";")[0]
        log_at = shlex.quote(f"{job.logs}/slurm-{number}") + "*.out"
        on_event("note", message=f"submitted job {number}: squeue -j {number}; log: {log_at}; to stop: scancel {number}")

    def script(self, job: Job) -> str:
        """The complete batch script. It needs no other file: it has the recipe, and creates its folders."""
        fewest, nodes, most, each = self.layout()
        if self.container and any(c in str(job.root.absolute()) for c in " ,:\t\n"):
            raise LaunchError(f"{job.root.absolute()} has characters that are not permitted in a list of mounts. Choose another --root.")
        lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in self.options(job, (fewest, most) if most > fewest else (nodes, nodes)))]
        lines += [
            f"# tauon {job.verb} {job.name} on {nodes} node{'s' * (nodes > 1)}, {each} worker{'s' * (each > 1)} each",
            "set -eo pipefail",
        ]
        lines += [f"cd {shlex.quote(str(Path.cwd()))}"]
        lines += self.own_files(job)
        lines += self.setup
        env = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": f"{int(self.grace)}", **TORCHRUN, **self.environment()}
        lines += [f"export {k}={shlex.quote(v)}" for k, v in env.items()]
        lines += [f"export OMP_NUM_THREADS={max(1, self.cores() // each)}"]
        lines += self.seeding()
        lines += [
            'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "port=$((20000 + SLURM_JOB_ID % 20000))  # of this job: two jobs may share a node",
            "stopped=0",
            # bash runs a trap only between commands: hence srun in the background, and wait
            "trap 'stopped=1; kill -TERM \"$step\"' TERM",
            f"{self.srun(job, (fewest, most), each)} &",
            "step=$!",
            "code=0",
            'wait "$step" || code=$?',
            'while [ "$stopped" = 1 ] && kill -0 "$step" 2>/dev/null; do wait "$step" || true; done  # the signal ended the wait: they save',
            'if [ "$stopped" = 1 ]; then code=0; wait "$step" || code=$?; fi',
        ]
        if self.requeue:
            lines += [
                'if [ "$stopped" = 1 ] && [ "$code" != 0 ]; then',
                '  scontrol requeue "$SLURM_JOB_ID"  # resumes from the checkpoint',
                "  exit 0",
                "fi",
            ]
        return "\n".join([*lines, 'exit "$code"']) + "\n"

    def cores(self) -> int:
        """Cores per node."""
        return self.cpus_per_task or self.layout()[3]

    def number_pattern(self) -> str:
        """Pattern for sbatch of the job number in a file name."""
        return "%A_%a" if self.seeds else "%j"

    def own_files(self, job: Job) -> list[str]:
        """Script lines that create the folders, open the log (Slurm cannot before they exist), and write the recipe."""
        number = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if self.seeds else "$SLURM_JOB_ID"
        logs, launch = shlex.quote(str(job.logs)), shlex.quote(str(job.recipe_path.parent))
        marker = "END_OF_RECIPE"
        while marker in job.recipe.splitlines():
            marker += "_"
        return [
            f"mkdir -p {logs} {launch}",
            f'exec >> {logs}/"slurm-{number}.out" 2>&1',
            f'recipe={launch}/"recipe-$SLURM_JOB_ID.yaml"  # of this job: another one may be queued with other settings',
            f"cat > \"$recipe.new\" <<'{marker}'",
            job.recipe.rstrip("\n"),
            marker,
            'mv "$recipe.new" "$recipe"',
        ]

    def options(self, job: Job, nodes: tuple[int, int]) -> Iterator[str]:
        """The #SBATCH lines."""
        low, high = nodes
        yield f"--job-name={job.name}"
        yield f"--output=slurm-{self.number_pattern()}.out"  # in the folder of sbatch: only errors before the log below is open
        yield "--open-mode=append"
        yield f"--nodes={low}-{high}" if high > low else f"--nodes={low}"
        yield "--ntasks-per-node=1"
        yield f"--cpus-per-task={self.cores()}"
        if self.gpus_per_node:
            yield f"--gpus-per-node={self.gpus_per_node}"
        if self.memory:
            yield f"--mem={-(-self.memory // 2**20)}M"
        if self.time:
            yield f"--time={slurm_time(self.time)}"
        for name in ("partition", "account", "qos", "constraint"):
            value = getattr(self, name)
            if value:
                yield f"--{name}={value}"
        yield "--requeue" if self.requeue else "--no-requeue"
        if high > low:
            yield "--no-kill"  # the remaining nodes continue
        yield f"--signal=B:TERM@{int(self.grace) + 60}"  # to the script, which forwards it; the rest of the minute is for Slurm
        if self.seeds:
            yield f"--array=0-{len(self.seeds) - 1}"

    def seeding(self) -> list[str]:
        """Script lines with the seed of this job of the array."""
        if not self.seeds:
            return []
        return [f"seeds=({' '.join(map(str, self.seeds))})", "seed=${seeds[$SLURM_ARRAY_TASK_ID]}"]

    def srun(self, job: Job, nodes: tuple[int, int], each: int) -> str:
        """The srun command: one torchrun per node."""
        low, high = nodes
        count = '"$SLURM_JOB_NUM_NODES"' if low >= high else f'{low}:"$SLURM_JOB_NUM_NODES"'
        python = self.python or ("python3" if self.container else sys.executable)
        step = [
            "srun",
            *(["--no-kill", "--kill-on-bad-exit=0"] if high > low else []),
            f"--cpus-per-task={self.cores()}",  # srun does not inherit it from the job
        ]
        inside: list[str] = []
        if self.container:
            mounts = ",".join([f"{job.root.absolute()}:{job.root.absolute()}", *self.mounts])
            if self.container_engine == "pyxis":
                step += [f"--container-image={self.container}", f"--container-mounts={mounts}", f"--container-workdir={Path.cwd()}"]
            else:
                inside = ["apptainer", "exec", *(["--nv"] if self.gpus_per_node else []), "--bind", mounts, self.container]
        torchrun = [python, "-m", "torch.distributed.run"]
        worker = job.command(_RECIPE, python=python)
        after = worker[worker.index("-m") :] if "-m" in worker else ["--no-python", *worker]
        parts = [
            shlex.join([*step, *inside, *torchrun]),
            f"--nnodes={count}",
            f"--nproc-per-node={each}",
            '--rdzv-backend=c10d --rdzv-endpoint="$head:$port" --rdzv-id="$SLURM_JOB_ID"',
            f"--max-restarts={self.max_restarts}",
            f"--tee=3 --log-dir={shlex.quote(str(job.logs))}",
            shlex.join(after).replace(_RECIPE, '"$recipe"'),
        ]
        if self.seeds:
            parts.append(f'"seed=$seed" "name={job.name}-seed$seed"')
        return " ".join(parts)


def slurm_time(seconds: float) -> str:
    """Return a duration in Slurm's format, D-HH:MM:SS.

    >>> slurm_time(90061)
    '1-01:01:01'
    """
    whole = int(seconds)
    days, rest = divmod(whole, 86400)
    return f"{days}-{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
