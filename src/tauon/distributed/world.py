"""The processes of a launch, and what they must agree on before and between steps.

A launcher (torchrun's environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) starts each process with the same
command; `join` makes them one `World`. A single process is a world of one and uses no network. Messages between ranks are
JSON, never pickle. Independent of meshes and models.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import tauon.errors
from tauon.distributed.timeouts import REACH, bounded_connections, later_groups_wait, meeting, time_limit
from tauon.errors import Problem, RecipeError, RunError, TauonError

__all__ = ["World", "join", "launched"]

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One of `size` processes. Every method that exchanges something is collective: all ranks must call it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes the run's files."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """All-gather a JSON value; return the values by rank."""
        if self.size == 1:
            return [value]
        import torch
        import torch.distributed as dist

        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(mine)
        dist.all_reduce(lengths)
        longest = int(lengths.max())
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(mine)] = mine
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [json.loads(p[:n].numpy().tobytes()) for p, n in zip(parts, lengths.tolist(), strict=True)]

    def all_or_raise(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank. If it fails on one, raise on all, naming the rank, so that no rank waits for one that ended."""
        if self.size == 1:
            return work()
        failure: dict[str, Any] | None = None
        result: T | None = None
        cause: Exception | None = None
        try:
            result = work()
        except TauonError as err:
            failure, cause = _as_json(err), err
        except Exception as err:
            failure, cause = {"class": "TauonError", "text": f"{type(err).__name__}: {err}"}, err
        failures = [(rank, f) for rank, f in enumerate(self.gather(failure)) if f is not None]
        if failures:
            if cause is not None and len(failures) == self.size:
                raise cause  # failed on all ranks, probably for the same reason: name none
            raise _from_json(failures, self.size) from cause
        return result  # type: ignore[return-value]

    def rank0_broadcast(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and broadcast its JSON result; an error is raised on all ranks."""
        if self.size == 1:
            return work()
        value = self.all_or_raise(lambda: work() if self.leads else None)
        found: T = self.gather(value)[0]
        return found

    def rank0_first(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0, then on the others, so that files are made once."""
        if self.size == 1:
            return work()
        made = self.all_or_raise(lambda: work() if self.leads else None)
        rest = self.all_or_raise(lambda: None if self.leads else work())
        return made if self.leads else rest  # type: ignore[return-value]

    def assert_same(self, what: str, value: str, way_out: str) -> None:
        """Raise `RunError` on every rank if `value` differs between ranks."""
        values = self.gather(value)
        odd = [r for r, v in enumerate(values) if v != values[0]]
        if odd:
            raise RunError(
                f"{what} differs between ranks: rank 0 has {values[0]}, "
                + ", ".join(f"rank {r} has {values[r]}" for r in odd[:4])
                + f". {way_out}"
            )


def launched() -> bool:
    """Whether a launcher started this process (torchrun's variables are set)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """Context that joins the processes of this launch and initializes torch.distributed. A single process is a world of one.

    With GPUs, local rank k uses GPU k; CPU tensors are sent over gloo, GPU tensors over NCCL.
    Raises `RunError` if the rendezvous cannot be reached or its port is taken; `RecipeError` if several processes would use one GPU. No
    wait inside is longer than the timeout (`timeouts.py`).
    """
    if not launched():
        yield World()
        return
    import torch
    import torch.distributed as dist

    rank, size = _number("RANK"), _number("WORLD_SIZE")
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.startswith("cuda:") and local_size > 1:
        raise RecipeError(
            [Problem("train.device", f"is {device}, which {local_size} processes of this machine would share. "
                     "Set cuda: each process then uses its own GPU.")]
        )  # fmt: skip
    use_gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    if use_gpu:
        if local_rank >= torch.cuda.device_count():
            raise RunError(
                f"rank {rank} has local rank {local_rank}, but this machine has {torch.cuda.device_count()} GPUs. Start one process per GPU."
            )
        torch.cuda.set_device(local_rank)
    limit = time_limit()
    begun = not dist.is_initialized()
    if begun:
        try:
            with bounded_connections(_number("MASTER_PORT"), limit), meeting(f"rank {rank} of {size}"):
                dist.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout=datetime.timedelta(seconds=limit))
        except (RuntimeError, ValueError, dist.DistError) as err:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise RunError(
                f"rank {rank} of {size} cannot connect to the others at {where}: {str(err).splitlines()[0].rstrip('.')}. "
                f"Check that the port is free (MASTER_PORT). {REACH}"
            ) from err
    try:
        with later_groups_wait(limit):
            yield World(rank, size, local_rank, local_size)
    finally:
        if begun and dist.is_initialized():
            dist.destroy_process_group()


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdigit():
        raise RunError(
            f"the environment variable {name} is {text!r}, expected a number. Start with `tauon train ... --on local:2`, or torchrun."
        )
    return int(text)


def _as_json(err: TauonError) -> dict[str, Any]:
    found: dict[str, Any] = {"class": type(err).__name__, "text": str(err)}
    if isinstance(err, RecipeError):
        found["problems"] = [[p.path, p.message] for p in err.problems]
    return found


def _from_json(failures: list[tuple[int, dict[str, Any]]], size: int) -> TauonError:
    """One error for all ranks: of the class of the first failure, with a message that names the failed ranks."""
    first = failures[0][1]
    ranks = ", ".join(str(r) for r, _ in failures[:8]) + (", ..." if len(failures) > 8 else "")
    who = "" if len(failures) == size else f"rank{'s' if len(failures) > 1 else ''} {ranks} of {size}: "
    kind = getattr(tauon.errors, first["class"], TauonError)
    if kind is RecipeError:
        return RecipeError([Problem(path, who + message) for path, message in first.get("problems", [["", first["text"]]])])
    error: TauonError = TauonError.__new__(kind)
    Exception.__init__(error, who + first["text"])
    return error
