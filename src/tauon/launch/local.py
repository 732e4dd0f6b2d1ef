"""`local`: all workers on this machine, under torch's elastic agent (torch.distributed.elastic), the one that torchrun runs.

Ours is what stands around it: how many workers and threads, which cores; a store that listens on the loopback interface alone; logs of
all ranks in one place; no restart for what cannot get better; one error text instead of one traceback a rank. When the restarts are
used up and `min_workers` allows it, the run goes on with one worker less: a card that is broken stays so.
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
from tauon.launch.config import Tell, Workers
from tauon.launch.cores import Shares, numa_nodes, share_out
from tauon.launch.job import Job
from tauon.launch.logs import Console, Follower, print_line
from tauon.launch.loopback import listen
from tauon.launch.outcome import STOPPED, cause, ended, failed, is_final

__all__ = ["Local"]


@register("local")
class Local(Workers):
    """Processes on this machine: one for each GPU, else one for each NUMA node, each with its share of the cores."""

    pin: Literal["auto"] | bool = "auto"
    """Keep each worker on cores of its own. `auto`: where the machine has several NUMA nodes."""
    port: Count | None = Field(None, ge=1, le=65535)
    """Port on 127.0.0.1 at which workers find each other. Left out: a free one."""

    def shares(self, job: Job) -> Shares:
        """How the machine is shared out for this job."""
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

    def start(self, job: Job, on_event: Tell) -> None:
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
                    on_event("warning", message=f"{err.words}, and restarts are used up: going on with {workers} workers (min_workers)")

    def _run(self, job: Job, shares: Shares, workers: int, on_event: Tell) -> None:
        """One life of the agent. Raises `Interrupted`, `_UsedUp`, or what a worker failed of."""
        from torch.distributed.elastic.multiprocessing.api import SignalException

        env = {
            "OMP_NUM_THREADS": str(shares.threads),
            "TAUON_LOG_DIR": str(job.logs),
            "TAUON_PARENT": f"{os.getpid()}:{int(signal.SIGTERM)}",
        }
        if shares.cpus:
            env["TAUON_CPUS"] = "|".join(",".join(map(str, c)) for c in shares.cpus)
        env |= {"GLOO_SOCKET_IFNAME": _loopback()}  # on GPUs too: what processes agree on travels on the CPU
        if shares.gpus and "NCCL_SOCKET_IFNAME" not in os.environ:
            env |= {"NCCL_SOCKET_IFNAME": _loopback()}  # its meeting point only; data goes from card to card
        command = job.command()
        listen(self.port).close()  # a port that is taken is told before anything starts
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
                f"{ended(cause(codes), STOPPED)}: it was stopped from outside, and saved. The same command goes on from there."
            )
        error = failed(codes, job.logs, agent.restarted)
        raise error if is_final(codes, agent.restarted) else _UsedUp(ended(cause(codes), codes[cause(codes)]), error)


class _UsedUp(Exception):
    """Restarts are used up; `error` is what to raise where there is nothing left to try."""

    def __init__(self, words: str, error: TauonError) -> None:
        super().__init__(words)
        self.words, self.error = words, error


def _stopped(agent: Any, err: BaseException) -> Interrupted:
    """After the agent forwarded the signal and waited: whether all saved."""
    name = getattr(getattr(err, "sigval", None), "name", "SIGINT")
    codes = agent.exit_codes()
    if codes and all(c in (0, STOPPED) for c in codes):
        return Interrupted(f"{name}: all {len(codes)} workers saved and ended. The same command goes on from there.")
    return Interrupted(
        f"{name}: workers ended with {', '.join(str(c) for c in codes) or 'nothing started'}; one that did not end in time (launch.grace), or "
        "before its first step, saved nothing new. The same command goes on from the last checkpoint."
    )


def _gpus(device: str) -> int:
    """Accelerators of this machine that `train.device` lets us use."""
    if device.startswith("cpu"):
        return 0
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def _loopback() -> str:
    """Name of the loopback interface: without it gloo looks up the host's name, which need not resolve, and listens there."""
    names = [name for _, name in socket.if_nameindex()]
    return next((n for n in names if n in ("lo", "lo0")), "lo")


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    """The agent takes over the signals and leaves them so."""
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        yield
    finally:
        for s, handler in before.items():
            with contextlib.suppress(ValueError):  # not the main thread: then they were not taken over
                signal.signal(s, handler)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """What the agent's children inherit."""
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
    """The agent logs an error for each worker that it stops; what matters of it we say ourselves."""
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
