"""Where blocks of documents are worked on: in this process, in processes of this machine, or in actors of a Ray cluster.

A process is a fresh Python (`block_process.py`), not a fork: libraries with threads do not survive one. Each keeps its work, with a tokenizer and its
tables, for all blocks that it gets.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from tauon.data.block_process import receive, send, work_on
from tauon.data.sources.base import Document
from tauon.errors import LaunchError

__all__ = ["BlockWork", "Workers", "local_workers", "ray_workers"]


class BlockWork(Protocol):
    """What is done with a block. Can be pickled; its result depends on nothing but `key` and the documents."""

    key: str
    """Everything that decides the result besides the documents."""
    modules: tuple[str, ...]
    """Modules to import before it is unpickled. With `__main__` among them, it is done in this process."""

    def __call__(self, documents: list[Document]) -> bytes: ...


Packed = tuple[tuple[str, ...], bytes]
"""Modules to import, and the pickled work."""


class Worker(Protocol):
    """One process or actor. Takes one block at a time, of any work."""

    def __call__(self, work: Packed, documents: list[Document]) -> bytes: ...

    def close(self) -> None: ...


Submit = Callable[[list[Document], bool], "Future[bytes]"]


class Workers:
    """A number of workers, each started when it is first needed, and kept for later works."""

    def __init__(self, count: int, make: Callable[[], Worker] | None) -> None:
        """`make` starts a worker; None: everything is done in this process."""
        self.count, self._make = count, make
        self.ahead = 0 if make is None else count + 2
        """Blocks that may wait for their turn."""
        self._lock, self._closed = threading.Lock(), False
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._all: list[Worker] = []

    @contextlib.contextmanager
    def start(self, work: BlockWork) -> Iterator[Submit]:
        """Context with a function that gives a block to a worker: `submit(documents, alone)`; one that is alone is done in this process."""
        if self._make is None or "__main__" in work.modules:
            yield lambda documents, _alone: _here(work, documents)
            return
        given = (work.modules, pickle.dumps(work))
        pool = ThreadPoolExecutor(self.count, "blocks")
        try:
            yield lambda documents, alone: _here(work, documents) if alone else pool.submit(self._work_on, given, documents)
        except BaseException:  # an error, or Ctrl-C: blocks that are being worked on end now
            pool.shutdown(wait=False, cancel_futures=True)
            self.close()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _work_on(self, work: Packed, documents: list[Document]) -> bytes:
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            assert self._make is not None
            worker = self._make()
            with self._lock:
                self._all.append(worker)
                if self._closed:
                    worker.close()
        made = worker(work, documents)
        self._idle.put(worker)
        return made

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            self._closed = True
            for worker in self._all:
                worker.close()


def _here(work: BlockWork, documents: list[Document]) -> Future[bytes]:
    done: Future[bytes] = Future()
    done.set_result(work(documents))
    return done


@contextlib.contextmanager
def local_workers(processes: int | None) -> Iterator[Workers]:
    """Context with processes of this machine. 1: no process but this one; None: as many as it may use cores."""
    count = processes or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with contextlib.closing(Workers(count, None if count == 1 else _Process)) as workers:
        yield workers


_MAIN = "from tauon.data.block_process import main; main()"


class _Process:
    """A process of this machine, which works on one block at a time. It ends when this process does, whatever ends it."""

    def __init__(self) -> None:
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-c", _MAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._work: Packed | None = None

    def __call__(self, work: Packed, documents: list[Document]) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            send(self._process.stdin, pickle.dumps((None if self._work is work else work, documents)))
            self._work = work
            reply = receive(self._process.stdout)
        except (BrokenPipeError, ValueError):
            reply = None
        if reply is None:
            code = self._process.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise LaunchError(
                f"a process that prepares data {how}{' (out of memory?)' if code == -9 else ''}. The same command continues; fewer data.processes "
                "need less memory"
            )
        return _result(*pickle.loads(reply))  # noqa: S301 - written by our own process

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _result(ok: bool, made: Any) -> bytes:
    if not ok:
        raise made
    return made  # type: ignore[no-any-return]


@contextlib.contextmanager
def ray_workers(processes: int | None, address: str | None) -> Iterator[Workers]:
    """Context with Ray actors of one core each. `processes` None: as many as the cluster has cores; `address` None: a local Ray.

    Raises:
        MissingExtra: Ray is not installed.
        LaunchError: no cluster, or it has fewer cores than `processes`.
    """
    from tauon.launch.ray import connected

    with connected(address, processes) as ray:
        cores = int(ray.cluster_resources().get("CPU", 0))
        if (processes or 1) > cores:
            raise LaunchError(
                f"{processes} processes do not fit into this Ray cluster, which has {cores} cores. Set data.processes to {max(cores, 1)} or less"
            )
        with contextlib.closing(Workers(processes or cores, functools.partial(_Actor, ray))) as workers:
            yield workers


class _Actor:
    """A Ray actor. If its machine is lost, Ray starts it elsewhere and repeats the block: the result is the same."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._work: Packed | None = None
        self._stored: Any = None
        self._actor = ray.remote(num_cpus=1, max_restarts=3, max_task_retries=3)(_BlockActor).remote(versions())

    def __call__(self, work: Packed, documents: list[Document]) -> bytes:
        if self._work is not work:
            self._work, self._stored = work, self._ray.put(work)
        try:
            reply = self._ray.get(self._actor.work_on.remote(self._stored, documents))
        except self._ray.exceptions.RayError as err:
            last = str(err).strip().splitlines()[-1]
            raise LaunchError(f"Ray could not prepare a block of data: {last}. The same command continues") from err
        return _result(*reply)

    def close(self) -> None:
        self._ray.kill(self._actor)


class _BlockActor:
    def __init__(self, wanted: dict[str, str]) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._wanted = wanted

    def work_on(self, work: Packed, documents: list[Document]) -> tuple[bool, Any]:
        differ = {name: (mine, self._wanted[name]) for name, mine in versions().items() if mine != self._wanted[name]}
        if differ:
            name, (theirs, ours) = next(iter(differ.items()))
            return False, LaunchError(
                f"a machine of the Ray cluster has {name} {theirs}, this one has {ours}: the data would not be the same. Install equal versions"
            )
        return work_on(work, documents)


def versions() -> dict[str, str]:
    """Return the versions of everything that decides the bytes of prepared text, on this machine."""
    found = {"Python": ".".join(map(str, sys.version_info[:2]))}
    for package in ("tauon", "numpy", "tokenizers", "tiktoken", "ftfy", "py3langid", "trafilatura", "phonenumbers", "python-stdnum"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found
