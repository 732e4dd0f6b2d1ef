"""Where and with how many processes a recipe runs: the `launch` section, the words that every place shares, and the verb.

A place (`local.py`, `ray.py`, `k8s.py`, `slurm.py`) says what it would start (`show`) and starts it (`start`). What a process then
computes is no concern of this room: a worker is the same `tauon` command again, with torchrun's environment variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import Field

from tauon.config import Count, Duration, Registered, register, registered, unread_keys
from tauon.errors import Problem, RecipeError
from tauon.launch.job import Job

__all__ = ["Cluster", "Here", "LaunchConfig", "Tell", "Workers", "choose", "in_a_worker", "launch"]

Tell = Callable[..., None]
"""`tell(kind, **facts)`: what a person or a script wants to know meanwhile."""


class LaunchConfig(Registered, family="launch", default="here"):
    """Where the processes of a run are started, and how often they are started again. What is computed does not depend on it."""

    def show(self, job: Job) -> str:
        """What `start` would start or submit, as text. Nothing is written."""
        raise NotImplementedError(type(self).__name__)

    def start(self, job: Job, on_event: Tell) -> None:
        """Start the workers and see them to their end, or hand the job to a scheduler. Raises `TauonError`."""
        raise NotImplementedError(type(self).__name__)


@register("here")
class Here(LaunchConfig):
    """No other process than this one."""

    def show(self, job: Job) -> str:
        return f"nothing to submit: this process does it\n{job.shell()}\n"

    def start(self, job: Job, on_event: Tell) -> None:
        raise AssertionError("the command line runs the pipeline itself")


class Workers(LaunchConfig):
    """What every place with several processes shares."""

    workers: Count | None = Field(None, ge=1)
    """Processes in all. Left out: what the place has, printed with its reason."""
    min_workers: Count | None = Field(None, ge=1)
    """Go on with as few as these when others are lost for good. Left out: as many as `workers`."""
    max_workers: Count | None = Field(None, ge=1)
    """Take at most these where there are, or come, more. Left out: as many as `workers`."""
    max_restarts: Count = Field(3, ge=0, le=10_000)
    """How often all workers are started again from the last checkpoint after one of them died. What cannot get better (a wrong recipe,
    say) is not tried again."""
    timeout: Duration = Field(600.0, gt=0, le=1e7)
    """Time that a collective may wait without progress before it counts as stuck: told to workers as TAUON_TIMEOUT_S."""
    grace: Duration = Field(60.0, gt=0, le=86400)
    """Time that workers get to save after they were asked to stop; then they are killed."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the workers. Not for secrets: they are printed by --dry-run and kept in the run's recipe."""

    def problems(self) -> Iterator[tuple[str, str]]:
        low, n, high = self.raw_value("min_workers"), self.raw_value("workers"), self.raw_value("max_workers")
        if low is not None and high is not None and low > high:
            yield "min_workers", f"{low} is more than max_workers {high}. Take at most {high}."
        if n is not None and low is not None and low > n:
            yield "min_workers", f"{low} is more than workers {n}. Take at most {n}, or drop it."
        if n is not None and high is not None and high < n:
            yield "max_workers", f"{high} is less than workers {n}. Take at least {n}, or drop it."
        for name, value in self.raw_value("env").items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                yield "env", f"{name!r} is no name of an environment variable: letters, digits and _, no digit first."
            elif name in _OURS:
                yield "env", f"{name} is set by the launcher for each worker. Drop it."
            if "\n" in value or "\0" in value:
                yield "env", f"the value of {name} has a line break. Take it out."

    def environment(self) -> dict[str, str]:
        """What every worker's environment has besides torchrun's variables."""
        return {"TAUON_TIMEOUT_S": f"{self.timeout:g}", **self.env}


TORCHRUN = {
    # With one store for all restarts (torch 2.13), workers that start again read the addresses of those that died, and hang.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank ${rank}] ",
}
"""Environment of torchrun where it starts workers: on clusters."""
_OURS = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("TAUON_TIMEOUT_S", "TAUON_LOG_DIR", "TAUON_CPUS", "TAUON_PARENT"),
}


class Cluster(Workers):
    """What places with several machines share: the processes are divided evenly among equal nodes (machines, or pods)."""

    nodes: Count | None = Field(None, ge=1)
    """Nodes. Left out: as many as `workers` need, or 1."""
    workers_per_node: Count | None = Field(None, ge=1)
    """Processes on a node. Left out: one for each GPU of a node, or 1."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        each = self.each(self.raw_value)
        workers, nodes = self.raw_value("workers"), self.raw_value("nodes")
        if workers is not None and nodes is not None and workers != nodes * each:
            yield "workers", f"{workers} is not nodes x workers_per_node = {nodes} x {each} = {nodes * each}. Leave one of them out."
        for name in ("workers", "min_workers", "max_workers"):
            value = self.raw_value(name)
            if value is not None and value % each and (name != "workers" or nodes is None):
                yield name, f"{value} does not divide by {each}, the processes of a node. Take a multiple, or set workers_per_node."

    def each(self, get: Callable[[str], Any]) -> int:
        """Processes on a node; `get` reads a field (`self.raw_value` does not count as use)."""
        gpus = get("gpus_per_node") if "gpus_per_node" in type(self).model_fields else None
        return int(get("workers_per_node") or gpus or 1)

    def layout(self) -> tuple[int, int, int, int]:
        """(fewest nodes, nodes, most nodes, processes on each)."""
        each = self.each(lambda name: getattr(self, name))
        workers, asked, low, high = self.workers, self.nodes, self.min_workers, self.max_workers
        nodes = asked or (workers // each if workers else max(1, (low or each) // each))
        return (low // each if low else nodes), nodes, (high // each if high else nodes), each


def in_a_worker(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a worker already, started by a launcher (torchrun's variables are set)."""
    return "WORLD_SIZE" in environ and "RANK" in environ


def launch(config: LaunchConfig, job: Job, *, dry_run: bool = False, on_event: Tell = lambda _kind, **_: None) -> str:
    """Start `job` where `config` says, or with `dry_run` only say what would be started; returns that text.

    Raises:
        LaunchError: the workers cannot be started (no scheduler, no cluster, a port that is taken, another version).
        WorkerFailed: a worker failed for good; `exit_code` is the worker's.
        Interrupted: Ctrl-C or SIGTERM; the workers were asked to save first.
        RecipeError: a key of `config` was set and has no effect here.
    """
    shown = config.show(job)
    ignored = unread_keys(config)
    if ignored:
        raise RecipeError([Problem(f"launch.{k}", f"was set, and launch {config.kind_} does not use it here. Drop it.") for k in ignored])
    if not dry_run:
        config.start(job, on_event)
    return shown


def choose(words: str, section: Any = "here") -> list[str]:
    """Assignments for a recipe that stand for `--on WORDS` (`local`, `local:2`, `ray`, `k8s`, `slurm:16`).

    `section` is the recipe's own `launch`, as plain data: kept where it is of the same kind; of another kind only the words that all
    kinds share are kept (`max_restarts`, `env`, ...). Raises `RecipeError`.

    >>> choose("local:2", {"kind": "slurm", "partition": "gpu", "max_restarts": 9})
    ['launch={"kind": "local", "max_restarts": 9, "workers": 2}']
    """
    kind, sign, count = words.partition(":")
    kinds = registered("launch")
    if kind not in kinds or (sign and (kind == "here" or not re.fullmatch("[1-9][0-9]{0,5}", count))):
        places = ", ".join(f"{k}, {k}:N" if k != "here" else k for k in kinds)
        raise RecipeError(f"--on {words}: not a place to run. There are: {places} (N processes)")
    import json

    kept = section if isinstance(section, Mapping) else {"kind": section}
    if kept.get("kind", "here") != kind:
        shared = set(Workers.model_fields) if issubclass(kinds[kind], Workers) else set()
        kept = {"kind": kind} | {k: v for k, v in kept.items() if k in shared - {"workers", "min_workers", "max_workers"}}
    return ["launch=" + json.dumps({**kept, **({"workers": int(count)} if count else {})})]
