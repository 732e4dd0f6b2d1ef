"""`local`: all workers on this machine, under torch's elastic agent (torch.distributed.elastic), the one that torchrun runs.

Added here: the number of workers and threads, and their cores; a store that listens only on the loopback interface; the logs of all
ranks in one place; no restart for failures that it cannot fix; one error message instead of one traceback per rank. When the restarts
are used up and `min_workers` permits it, the run continues with one worker less, because a broken GPU stays broken.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from tauon.config import Count, register
from tauon.errors import Interrupted, TauonError
from tauon.launch.config import EventCallback, Workers
from tauon.launch.cores import Shares, numa_nodes, share_out
from tauon.launch.job import Job
from tauon.launch.logs import Console, Follower, print_line
from tauon.launch.loopback import listen
from tauon.launch.outcome import STOPPED, cause, ended, failed, is_final

__all__ = ["Local"]


@register("local")
class Local(Workers):
    """Processes on this machine: one per GPU, otherwise one per NUMA node, each with its share of the cores."""

    pin: Literal["auto"] | bool = "auto"
    """Pin each worker to its own cores. `auto`: if the machine has several NUMA nodes."""
    port: Count | None = Field(None, ge=1, le=65535)
    """Port on 127.0.0.1 for the rendezvous of the workers. Default: a free one."""

    def shares(self, job: Job) -> Shares:
        """Division of the machine for this job."""
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        return share_out(
            self.workers, self.min_workers, self.max_workers, pin=self.pin, nodes=numa_nodes(set(allowed)), gpus=_gpus(job.device)
        )

    def show(self, job: Job) -> str:
        shares = self.shares(job)
        _ = self.port, self.grace, self.max_restarts  # used by `start`
        env = {"OMP_NUM_THREADS": str(shares.threads), **self.environment()}
        lines = [f"# {reason}" for reason in shares.reasons] + [f"# logs: {job.logs}/rank-<k>.log"]
        lines += [f"export {job.shell([f'{k}={v}'])}" for k, v in env.items()]
        return "\n".join([*lines, f"{job.shell()}   # {shares.workers} times, with torchrun's RANK, WORLD_SIZE, ..."]) + "\n"

    def start(self, job: Job, on_event: EventCallback) -> None:
        shares = self.shares(job)
        for reason in shares.reasons:
            message = reason.removeprefix("warning: ")
            on_event("warning" if message != reason else "note", message=message)
        job.write()
        follower = Follower(job.logs, Console(functools.partial(print_line, json="--json" in job.options)))
        workers = shares.workers
        with follower.following():
            while True:
                try:
                    return self._run(job, shares, workers, on_event)
                except _UsedUp as err:
                    if workers <= (self.min_workers or shares.workers):
                        raise err.error from None
                    workers -= 1
                    on_event("warning", message=f"{err.words}, and restarts are used up: continuing with {workers} workers (min_workers)")

    def _run(self, job: Job, shares: Shares, workers: int, on_event: EventCallback) -> None:
        """Run one agent. Raises `Interrupted`, `_UsedUp`, or the error of a worker."""
        from torch.distributed.elastic.multiprocessing.api import SignalException

        env = {
            "OMP_NUM_THREADS": str(shares.threads),
            "TAUON_LOG_DIR": str(job.logs),
            "TAUON_PARENT": f"{os.getpid()}:{int(signal.SIGTERM)}",
        }
        if shares.cpus:
            env["TAUON_CPUS"] = "|".join(",".join(map(str, c)) for c in shares.cpus)
        env |= {"GLOO_SOCKET_IFNAME": _loopback()}  # also with GPUs: control messages use the CPU
        if shares.gpus and "NCCL_SOCKET_IFNAME" not in os.environ:
            env |= {"NCCL_SOCKET_IFNAME": _loopback()}  # for the rendezvous only; data goes from GPU to GPU
        command = job.command()
        listen(self.port).close()  # a port in use is reported before anything starts
        with _signals_restored(), _environment(env | self.environment()), _quiet_torch():
            from tauon.launch.elastic import make_agent

            agent: Any = make_agent(
                command, workers, self.port, self.max_restarts, self.grace, on_event, numa=shares.gpus and self.pin is not False
            )
            try:
                result = agent.run()
            except (SignalException, KeyboardInterrupt) as err:
                raise _stopped(agent, err) from None
            finally:
                agent.stop_now()
        if not result.is_failed():
            return
        codes = agent.codes or {rank: f.exitcode for rank, f in result.failures.items()}
        if codes[cause(codes)] == STOPPED:
            raise Interrupted(
                f"{ended(cause(codes), STOPPED)}: it was stopped from outside, and saved. Run the same command again to resume."
            )
        error = failed(codes, job.logs, agent.restarted)
        raise error if is_final(codes, agent.restarted) else _UsedUp(ended(cause(codes), codes[cause(codes)]), error)


class _UsedUp(Exception):
    """Restarts are used up; `error` is raised if fewer workers are not possible."""

    def __init__(self, words: str, error: TauonError) -> None:
        super().__init__(words)
        self.words, self.error = words, error


def _stopped(agent: Any, err: BaseException) -> Interrupted:
    """Error after a signal: says whether all workers saved."""
    name = getattr(getattr(err, "sigval", None), "name", "SIGINT")
    codes = agent.exit_codes()
    if codes and all(c in (0, STOPPED) for c in codes):
        return Interrupted(f"{name}: all {len(codes)} workers saved and ended. Run the same command again to resume.")
    return Interrupted(
        f"{name}: workers ended with {', '.join(str(c) for c in codes) or 'nothing started'}; a worker that did not end in time (launch.grace), or "
        "had not finished its first step, saved nothing new. Run the same command again to resume from the last checkpoint."
    )


def _gpus(device: str) -> int:
    """Number of accelerators of this machine that `train.device` permits."""
    if device.startswith("cpu"):
        return 0
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def _loopback() -> str:
    """Name of the loopback interface: without it gloo resolves the host name, which may fail, and listens there."""
    names = [name for _, name in socket.if_nameindex()]
    return next((n for n in names if n in ("lo", "lo0")), "lo")


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    """Context that restores signal handlers, which the agent replaces."""
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        yield
    finally:
        for s, handler in before.items():
            with contextlib.suppress(ValueError):  # not the main thread: they were not replaced
                signal.signal(s, handler)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Context with the environment for the agent's children."""
    before = {k: os.environ.get(k) for k in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for k, old in before.items():
            if old is None:
                os.environ.pop(k, None)
            else:
                os.environ[k] = old


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Context that silences the agent, which logs an error for each worker that it stops; our own messages cover it."""
    import torch  # noqa: F401  (its import sets these loggers up)

    names = ("multiprocessing.api", "agent.server.api", "agent.server.local_elastic_agent")
    loggers = [logging.getLogger(f"torch.distributed.elastic.{n}") for n in names]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False
