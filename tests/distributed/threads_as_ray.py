"""Just enough of Ray's interface, with threads for processes: what the parameter server decides can be tested without waiting for processes.

What goes in and out of an actor is pickled with its arrays out of band, so that a reader gets copies that must not be written to, as from
Ray's object store. One actor runs at a time, as torch's random state is the process's. `kill` fails what the actor has not done yet.
"""

from __future__ import annotations

import pickle
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from contextlib import contextmanager
from typing import Any

__all__ = ["ThreadsAsRay", "session"]


class RayError(Exception):
    pass


class RayActorError(RayError):
    pass


class GetTimeoutError(RayError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class exceptions:
    RayError, RayActorError, GetTimeoutError, RayTaskError = RayError, RayActorError, GetTimeoutError, RayTaskError


def carried(value: Any) -> Any:
    """As another process would have it."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(b) for b in buffers])


class Method:
    def __init__(self, actor: Actor, name: str, returns: int = 1) -> None:
        self.actor, self.name, self.returns = actor, name, returns

    def options(self, num_returns: int) -> Method:
        return Method(self.actor, self.name, num_returns)

    def remote(self, *args: Any) -> Any:
        return self.actor.call(self.name, args, self.returns)


class Actor:
    def __init__(self, lock: Any, cls: type, args: tuple[Any, ...]) -> None:
        self.lock, self.dead = lock, False
        self.todo: queue.Queue[Any] = queue.Queue()
        self.doing: list[Future[Any]] = []
        self.thing = cls(*carried(args))
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)

    def call(self, name: str, args: tuple[Any, ...], returns: int) -> Any:
        refs: list[Future[Any]] = [Future() for _ in range(returns)]
        self.doing += refs
        if self.dead:
            self.fail()
        else:
            self.todo.put((name, args, refs))
        return refs if returns > 1 else refs[0]

    def fail(self) -> None:
        for ref in self.doing:
            if not ref.done():
                try:
                    ref.set_exception(RayActorError("The actor died"))
                except Exception:
                    continue

    def work(self) -> None:
        while not self.dead:
            name, args, refs = self.todo.get()
            try:
                values = [a.result() if isinstance(a, Future) else carried(a) for a in args]
                with self.lock:
                    result = carried(getattr(self.thing, name)(*values))
                for ref, value in zip(refs, result if len(refs) > 1 else [result], strict=True):
                    if not self.dead:
                        ref.set_result(value)
            except Exception as err:
                for ref in refs:
                    if not ref.done():
                        ref.set_exception(RayTaskError(err))
            self.doing = [r for r in self.doing if not r.done()]


class ThreadsAsRay:
    """The module `ray`, as far as Tauon uses it."""

    exceptions = exceptions

    def __init__(self, *, one_at_a_time: bool = True) -> None:
        self.lock: Any = threading.Lock() if one_at_a_time else _NoLock()

    def remote(self, cls: type) -> Any:
        return _Class(self.lock, cls)

    def get(self, ref: Any, timeout: float | None = None) -> Any:
        if isinstance(ref, list):
            return [self.get(r, timeout) for r in ref]
        try:
            return ref.result(timeout)
        except TimeoutError:
            raise GetTimeoutError(str(timeout)) from None

    def wait(self, refs: list[Any], num_returns: int = 1, timeout: float | None = None) -> tuple[list[Any], list[Any]]:
        until = time.monotonic() + (timeout or 0)
        while True:
            done = [r for r in refs if r.done()]
            if len(done) >= num_returns or time.monotonic() >= until:
                return done, [r for r in refs if r not in done]
            wait([r for r in refs if not r.done()], timeout=max(0.0, until - time.monotonic()), return_when=FIRST_COMPLETED)

    def kill(self, actor: Actor) -> None:
        actor.dead = True
        actor.fail()
        actor.todo.put(("ping", (), []))

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}


class _NoLock:
    def __enter__(self) -> None: ...

    def __exit__(self, *about: Any) -> None: ...


class _Class:
    def __init__(self, lock: Any, cls: type) -> None:
        self.lock, self.cls = lock, cls

    def options(self, **_: Any) -> _Class:
        return self

    def remote(self, *args: Any) -> Actor:
        return Actor(self.lock, self.cls, args)


@contextmanager
def session(address: str | None, *, cpus: int, one_at_a_time: bool = True) -> Iterator[ThreadsAsRay]:
    yield ThreadsAsRay(one_at_a_time=one_at_a_time)
