"""`slurm`: a batch script for sbatch. torchrun (c10d rendezvous on the first node) starts and restarts the workers inside the job;
Slurm starts the job again when a node dies, when it is preempted, or when its time is up: a signal comes before the end, the workers
save, and the script asks to be queued again.

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
from tauon.launch.config import TORCHRUN, Cluster, Tell
from tauon.launch.job import Job

__all__ = ["Slurm"]

WORD = r"^[A-Za-z0-9_.,:@%+/\[\]=-]{1,200}$"
"""What may stand in a line of #SBATCH: those lines are read by Slurm, without quotes of a shell."""
_RECIPE = "THE-RECIPE-OF-THIS-JOB"
"""Stands for the script's own variable until the command has been quoted."""


@register("slurm")
class Slurm(Cluster):
    """A batch job on a Slurm cluster. Folders (this one, the runs, the data) must be shared by its nodes."""

    partition: str | None = Field(None, pattern=WORD)
    """Partition (queue). Left out: the cluster's default."""
    account: str | None = Field(None, pattern=WORD)
    """Account that is charged."""
    qos: str | None = Field(None, pattern=WORD)
    """Quality of service."""
    time: Duration | None = Field(None, ge=60, le=1e8)
    """Wall time of the job (8h). Left out: the partition's default. Longer runs queue themselves again and go on."""
    gpus_per_node: Count | None = Field(None, ge=1)
    """GPUs on each node. Left out: none."""
    cpus_per_task: Count | None = Field(None, ge=1)
    """Cores on each node, shared by its workers. Left out: one for each worker, where Slurm's own default is one for all of them."""
    memory: Bytes | None = Field(None, ge=2**20)
    """Memory of each node (64GiB). Left out: Slurm's default."""
    constraint: str | None = Field(None, pattern=WORD)
    """Features that nodes must have."""
    requeue: bool = True
    """Queue the job again when its time is up, it is preempted, or a node dies."""
    seeds: tuple[Count, ...] = ()
    """One job of an array for each: the run NAME-seedN with that seed. Left out: one job, the recipe's seed."""
    setup: tuple[str, ...] = ()
    """Lines of bash that run on the first node before anything else: module load, source .../activate."""
    container: str | None = Field(None, pattern=WORD)
    """Image that the workers run in."""
    container_engine: Literal["pyxis", "apptainer"] = "pyxis"
    """`pyxis`: srun --container-image; `apptainer`: apptainer exec."""
    mounts: tuple[str, ...] = ()
    """Folders seen inside the container, SOURCE:TARGET. The runs' folder is always seen."""
    python: str | None = None
    """Python of the workers. Left out: this one; in a container, python3."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.raw_value("container") is None:
            for name in ("mounts", "container_engine"):
                if name in self.model_fields_set:
                    yield name, "needs container. Set it, or drop this."
        for i, line in enumerate(self.raw_value("setup")):
            if line.lstrip().startswith("#SBATCH") or "\n" in line:
                yield f"setup.{i}", "is one line of bash, and #SBATCH lines are no longer read there. Use the keys of launch."
        for i, mount in enumerate(self.raw_value("mounts")):
            if ":" not in mount or "," in mount:
                yield f"mounts.{i}", f"{mount!r} is not SOURCE:TARGET."
        seeds = self.raw_value("seeds")
        if len(set(seeds)) != len(seeds):
            yield "seeds", f"{list(seeds)} names one twice. Give each once."

    def show(self, job: Job) -> str:
        return self.script(job)

    def start(self, job: Job, on_event: Tell) -> None:
        if shutil.which("sbatch") is None:
            raise LaunchError(
                "sbatch is not on this machine, so no job was submitted. Run this on a login node of the cluster, "
                "or print the script with --dry-run and take it there."
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
        """The whole batch script. It needs no file beside it: the recipe is in it, and it makes its folders."""
        fewest, nodes, most, each = self.layout()
        if self.container and any(c in str(job.root.absolute()) for c in " ,:\t\n"):
            raise LaunchError(f"{job.root.absolute()} has characters that a list of mounts cannot have. Choose another --root.")
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
                '  scontrol requeue "$SLURM_JOB_ID"  # goes on from the checkpoint',
                "  exit 0",
                "fi",
            ]
        return "\n".join([*lines, 'exit "$code"']) + "\n"

    def cores(self) -> int:
        """Cores of each node."""
        return self.cpus_per_task or self.layout()[3]

    def number_pattern(self) -> str:
        """The job's number in a file name, as sbatch writes it."""
        return "%A_%a" if self.seeds else "%j"

    def own_files(self, job: Job) -> list[str]:
        """Log and recipe: folders that may not be there yet, a log that Slurm could not open before they are."""
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
        """The lines of #SBATCH."""
        low, high = nodes
        yield f"--job-name={job.name}"
        yield f"--output=slurm-{self.number_pattern()}.out"  # where sbatch is called: only what goes wrong before the log below is open
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
            yield "--no-kill"  # the nodes that are left go on
        yield f"--signal=B:TERM@{int(self.grace) + 60}"  # to the script, which passes it on; the rest of the minute is for Slurm
        if self.seeds:
            yield f"--array=0-{len(self.seeds) - 1}"

    def seeding(self) -> list[str]:
        """Which seed this job of the array has."""
        if not self.seeds:
            return []
        return [f"seeds=({' '.join(map(str, self.seeds))})", "seed=${seeds[$SLURM_ARRAY_TASK_ID]}"]

    def srun(self, job: Job, nodes: tuple[int, int], each: int) -> str:
        """One torchrun on each node."""
        low, high = nodes
        count = '"$SLURM_JOB_NUM_NODES"' if low >= high else f'{low}:"$SLURM_JOB_NUM_NODES"'
        python = self.python or ("python3" if self.container else sys.executable)
        step = [
            "srun",
            *(["--no-kill", "--kill-on-bad-exit=0"] if high > low else []),
            f"--cpus-per-task={self.cores()}",  # srun does not take it from the job
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
    """Slurm's form of a duration, D-HH:MM:SS.

    >>> slurm_time(90061)
    '1-01:01:01'
    """
    whole = int(seconds)
    days, rest = divmod(whole, 86400)
    return f"{days}-{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
