"""Runs a function in several processes that form a process group: gloo on loopback, with a timeout, for tests.

The processes get the variables of `torchrun` (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ...). The store is in the calling process on
a free port, so concurrent tests never use the same port, and no rank outlives a failure.
Not a launcher: no restarts, one machine, one thread a process.

The processes are forked from a server that has imported torch and Tauon once (`multiprocessing`'s own "forkserver"): the imports
take three seconds of processor time a process, most tests less. Each gets the caller's environment as it is at the call.
"""

from __future__ import annotations

import faulthandler
import io
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection, forkserver, get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

__all__ = ["ProcessFailure", "run_processes"]

PRELOADED = [
    "tauon.pipeline", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.pipelining",
    "torch.distributed.tensor.parallel",
]  # fmt: skip
"""Imports of the server before it forks: they must not start threads."""

GRACE = 3.0
"""Seconds for the other ranks to fail as well and report, after one failed."""


class ProcessFailure(RuntimeError):
    """A rank ended without a result: killed, timed out, or with an exception that cannot be pickled."""


def run_processes(fn: Callable[..., Any], world: int, timeout: float, *args: Any) -> list[Any]:
    """Run `fn(*args)` in `world` new processes with an initialized gloo process group; return the results in the order of ranks.

    Args:
        fn: a function of a module (it is found by name in the new process).
        world: number of processes.
        timeout: seconds until all of them are killed; also the timeout of every collective.
        args: anything that pickles; what `fn` returns must pickle too.

    Raises:
        Exception: what the first rank that failed raised, with its rank and traceback as a note.
        ProcessFailure: a rank was killed, or was not done in time (its stack is on stderr).
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):  # read when libraries are loaded
        forkserver.ensure_running()
    ends: dict[connection.Connection, int] = {}
    processes = []
    call = _pickled((fn, args))
    stacks = Path(tempfile.mkdtemp(prefix="tauon-stacks-"))  # the server's standard error is not the caller's
    try:
        for rank in range(world):
            mine, theirs = context.Pipe(duplex=False)
            environment = {**os.environ, **_environment(rank, world, store.port)}
            given = (theirs, call, timeout, environment, stacks / str(rank))
            process = context.Process(target=_child, args=given, name=f"rank {rank}", daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            processes.append(process)
            ends[mine] = rank
        outcomes = _collect(ends, time.monotonic() + timeout)
        _show_stacks([p for rank, p in enumerate(processes) if rank not in outcomes and p.is_alive()], stacks, world)
        for rank in range(world):
            if isinstance(outcomes.get(rank), _Gone):
                processes[rank].join(GRACE)
                outcomes[rank] = _Failed(
                    ProcessFailure(f"rank {rank} of {world} ended with exit code {processes[rank].exitcode}, no result")
                )
    finally:
        for process in processes:
            process.join(1.0 if sys.exc_info()[0] is None and len(processes) == world else 0.0)
            if process.is_alive():
                process.kill()
                process.join()
        for end in ends:
            end.close()
        shutil.rmtree(stacks, ignore_errors=True)
        del store
    return _values(outcomes, world, timeout)


def _show_stacks(late: list[Any], stacks: Path, world: int) -> None:
    """Print the stacks of unfinished processes to stderr."""
    for process in late:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGUSR1)  # it writes its stack; or ends, where it had not begun
    if late:
        time.sleep(0.5)
        for path in sorted(stacks.iterdir()):
            print(f"rank {path.name} of {world}:\n{path.read_text()}", file=sys.stderr)


def _values(outcomes: dict[int, Any], world: int, timeout: float) -> list[Any]:
    """Results of all ranks; or raise the error of the rank that caused the failure."""
    failed = [(rank, o) for rank, o in sorted(outcomes.items()) if isinstance(o, _Failed)]
    if failed:  # a rank that was killed, or else the first that failed, is the cause; the others usually only lost their peer
        rank, failure = min(failed, key=lambda f: (not isinstance(f[1].error, ProcessFailure), f[1].at))
        failure.error.add_note(f"on rank {rank} of {world}:\n{failure.trace}")
        raise failure.error
    missing = [r for r in range(world) if r not in outcomes]
    if missing:
        raise ProcessFailure(f"ranks {missing} of {world} were not done after {timeout:g} s, and were killed. Their stacks are on stderr.")
    return [outcomes[rank].value for rank in range(world)]


def _environment(rank: int, world: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there already: no rank starts one
        "TORCHELASTIC_RESTART_COUNT": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }


class _Done:
    def __init__(self, value: Any) -> None:
        self.value = value


class _Failed:
    def __init__(self, error: BaseException, trace: str = "") -> None:
        self.error, self.trace, self.at = error, trace, time.time()


class _Gone:
    """The pipe closed without a result."""


def _collect(ends: dict[connection.Connection, int], until: float) -> dict[int, Any]:
    """Outcomes by rank of all that answer before `until`, or within the grace time after the first failure."""
    outcomes: dict[int, Any] = {}
    waiting = dict(ends)
    while waiting and (left := until - time.monotonic()) > 0:
        for end in connection.wait(list(waiting), left):
            assert isinstance(end, connection.Connection)
            rank = waiting.pop(end)
            try:
                outcomes[rank] = pickle.loads(end.recv_bytes())  # noqa: S301 - our own process wrote it
            except EOFError:
                outcomes[rank] = _Gone()
            if not isinstance(outcomes[rank], _Done):
                until = min(until, time.monotonic() + GRACE)
    return outcomes


def _pickled(value: Any) -> bytes:
    """By the plain pickler: the one of `multiprocessing` would hand tensors over as shared memory that ends with its process."""
    buffer = io.BytesIO()
    pickle.Pickler(buffer).dump(value)
    return buffer.getvalue()


def _child(end: connection.Connection, call: bytes, timeout: float, environment: dict[str, str], stack: Path) -> None:
    """One rank: join the group, call, answer. Its stack goes to the file `stack` when it is asked for by SIGUSR1."""
    os.environ.clear()
    os.environ.update(environment)
    faulthandler.register(signal.SIGUSR1, file=stack.open("w"))
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        fn, args = pickle.loads(call)  # noqa: S301 - our own process wrote it
        answer = _pickled(_Done(fn(*args)))
    except BaseException as err:  # everything is carried over to the caller
        trace = traceback.format_exc()
        try:
            answer = _pickled(_Failed(err, trace))
            pickle.loads(answer)  # noqa: S301 - an error whose constructor takes other arguments cannot be put together again
        except Exception:
            answer = _pickled(_Failed(ProcessFailure(f"{type(err).__name__}: {err}"), trace))
    end.send_bytes(answer)
    end.close()
    if dist.is_initialized():
        dist.destroy_process_group()
