"""The recipe's section `launch`: the settings that all launchers share, and the function `launch`.

A launcher (`local.py`, `ray.py`, `k8s.py`, `slurm.py`) shows what it would start (`show`) and starts it (`start`). A worker is the same
`tauon` command, with torchrun's environment variables.
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

__all__ = ["Cluster", "EventCallback", "Here", "LaunchConfig", "Workers", "choose", "in_a_worker", "launch"]

EventCallback = Callable[..., None]
"""`on_event(kind, **facts)`: progress of the launch, for a person or a script."""


class LaunchConfig(Registered, family="launch", default="here"):
    """Where the processes of a run start, and how often they are restarted. Results do not depend on it."""

    def show(self, job: Job) -> str:
        """Return what `start` would start or submit, as text. Writes nothing."""
        raise NotImplementedError(type(self).__name__)

    def start(self, job: Job, on_event: EventCallback) -> None:
        """Start the workers and wait for them, or submit the job to a scheduler. Raises `TauonError`."""
        raise NotImplementedError(type(self).__name__)


@register("here")
class Here(LaunchConfig):
    """Run in this process only."""

    def show(self, job: Job) -> str:
        return f"nothing to submit: the command runs in this process\n{job.shell()}\n"

    def start(self, job: Job, on_event: EventCallback) -> None:
        raise AssertionError("the command line runs the pipeline itself")


class Workers(LaunchConfig):
    """Settings of all launchers with several processes."""

    workers: Count | None = Field(None, ge=1)
    """Total number of processes. Default: what is available, printed with the reason."""
    min_workers: Count | None = Field(None, ge=1)
    """Minimum number of workers to continue with when others are lost. Default: `workers`."""
    max_workers: Count | None = Field(None, ge=1)
    """Maximum number of workers to use if more become available. Default: `workers`."""
    max_restarts: Count = Field(3, ge=0, le=10_000)
    """Maximum number of restarts of all workers from the last checkpoint after one died. Failures that a restart cannot fix (e.g. an
    invalid recipe) are not retried."""
    timeout: Duration = Field(600.0, gt=0, le=1e7)
    """Time after which a collective without progress counts as stuck; workers get it as TAUON_TIMEOUT_S."""
    grace: Duration = Field(60.0, gt=0, le=86400)
    """Time for workers to save a checkpoint after a stop signal; then they are killed."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the workers. Not for secrets: --dry-run prints them, and the run's recipe has them."""

    def problems(self) -> Iterator[tuple[str, str]]:
        low, n, high = self.raw_value("min_workers"), self.raw_value("workers"), self.raw_value("max_workers")
        if low is not None and high is not None and low > high:
            yield "min_workers", f"is {low}, more than max_workers={high}. Set at most {high}."
        if n is not None and low is not None and low > n:
            yield "min_workers", f"is {low}, more than workers={n}. Set at most {n}, or remove it."
        if n is not None and high is not None and high < n:
            yield "max_workers", f"is {high}, less than workers={n}. Set at least {n}, or remove it."
        for name, value in self.raw_value("env").items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                yield "env", f"{name!r} is not a valid environment variable name: use letters, digits and _, not starting with a digit."
            elif name in _OURS:
                yield "env", f"{name} is set by the launcher for each worker. Remove it."
            if "\n" in value or "\0" in value:
                yield "env", f"the value of {name} has a line break. Remove it."

    def environment(self) -> dict[str, str]:
        """Environment of every worker in addition to torchrun's variables."""
        return {"TAUON_TIMEOUT_S": f"{self.timeout:g}", **self.env}


TORCHRUN = {
    # With one store for all restarts (torch 2.13), restarted workers read the addresses of those that died, and hang.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank ${rank}] ",
}
"""Environment of torchrun on clusters, where it starts the workers."""
_OURS = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("TAUON_TIMEOUT_S", "TAUON_LOG_DIR", "TAUON_CPUS", "TAUON_PARENT"),
}


class Cluster(Workers):
    """Settings of launchers with several machines: the processes are divided evenly among equal nodes (machines or pods)."""

    nodes: Count | None = Field(None, ge=1)
    """Number of nodes. Default: as many as `workers` need, or 1."""
    workers_per_node: Count | None = Field(None, ge=1)
    """Processes per node. Default: one per GPU of a node, or 1."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        each = self.each(self.raw_value)
        workers, nodes = self.raw_value("workers"), self.raw_value("nodes")
        if workers is not None and nodes is not None and workers != nodes * each:
            yield "workers", f"is {workers}, but nodes x workers_per_node = {nodes} x {each} = {nodes * each}. Remove one of the three."
        for name in ("workers", "min_workers", "max_workers"):
            value = self.raw_value(name)
            if value is not None and value % each and (name != "workers" or nodes is None):
                yield name, f"is {value}, not a multiple of {each}, the processes per node. Set a multiple, or set workers_per_node."

    def each(self, get: Callable[[str], Any]) -> int:
        """Processes per node; `get` reads a field (`self.raw_value` does not count as use)."""
        gpus = get("gpus_per_node") if "gpus_per_node" in type(self).model_fields else None
        return int(get("workers_per_node") or gpus or 1)

    def layout(self) -> tuple[int, int, int, int]:
        """(minimum nodes, nodes, maximum nodes, processes on each)."""
        each = self.each(lambda name: getattr(self, name))
        workers, asked, low, high = self.workers, self.nodes, self.min_workers, self.max_workers
        nodes = asked or (workers // each if workers else max(1, (low or each) // each))
        return (low // each if low else nodes), nodes, (high // each if high else nodes), each


def in_a_worker(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a worker started by a launcher (torchrun's variables are set)."""
    return "WORLD_SIZE" in environ and "RANK" in environ


def launch(config: LaunchConfig, job: Job, *, dry_run: bool = False, on_event: EventCallback = lambda _kind, **_: None) -> str:
    """Start `job` with the launcher of `config`, or with `dry_run` only return the text of what would be started.

    Raises:
        LaunchError: the workers cannot be started (no scheduler, no cluster, a port in use, another version).
        WorkerFailed: a worker failed finally; `exit_code` is the worker's.
        Interrupted: Ctrl-C or SIGTERM; the workers were asked to save first.
        RecipeError: a key of `config` was set and has no effect here.
    """
    shown = config.show(job)
    ignored = unread_keys(config)
    if ignored:
        raise RecipeError([Problem(f"launch.{k}", f"is set, but launch {config.kind_} does not use it here. Remove it.") for k in ignored])
    if not dry_run:
        config.start(job, on_event)
    return shown


def choose(words: str, section: Any = "here") -> list[str]:
    """Return the recipe assignments for `--on WORDS` (`local`, `local:2`, `ray`, `k8s`, `slurm:16`).

    `section` is the recipe's own `launch` as plain data: kept if it has the same kind; otherwise only the keys that all kinds share are
    kept (`max_restarts`, `env`, ...). Raises `RecipeError`.

    >>> choose("local:2", {"kind": "slurm", "partition": "gpu", "max_restarts": 9})
    ['launch={"kind": "local", "max_restarts": 9, "workers": 2}']
    """
    kind, sign, count = words.partition(":")
    kinds = registered("launch")
    if kind not in kinds or (sign and (kind == "here" or not re.fullmatch("[1-9][0-9]{0,5}", count))):
        places = ", ".join(f"{k}, {k}:N" if k != "here" else k for k in kinds)
        raise RecipeError(f"--on {words}: unknown launcher. Use one of: {places} (N processes)")
    import json

    kept = section if isinstance(section, Mapping) else {"kind": section}
    if kept.get("kind", "here") != kind:
        shared = set(Workers.model_fields) if issubclass(kinds[kind], Workers) else set()
        kept = {"kind": kind} | {k: v for k, v in kept.items() if k in shared - {"workers", "min_workers", "max_workers"}}
    return ["launch=" + json.dumps({**kept, **({"workers": int(count)} if count else {})})]
