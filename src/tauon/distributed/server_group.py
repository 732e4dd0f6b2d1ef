"""The group of parameter servers: Ray actors with the shards and their replicas, and the recovery of a server that died.

Replication is by state machine (Schneider 1990): every server with a shard gets the same calls in the same order, so all copies are
bitwise equal. Shard s lives on server s; its replicas on servers s + 1, ..., s + r (modulo). Gradients and weights are sent
through Ray's object store; the caller passes references.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from tauon.distributed.codec import CodecConfig, Floats, Payload
from tauon.distributed.outer import OuterConfig
from tauon.distributed.partition import Partition
from tauon.distributed.server import Names, OptimizerRule, OuterRule, Push, Rule, ServerShard, ShardState
from tauon.errors import RunError, TrainingError

__all__ = ["Blueprint", "ServerDied", "ServerGroup", "ServerLost"]


ATTEMPTS = 3
"""Number of retries for servers that are alive but not reachable."""


class ServerDied(Exception):
    """A server died, but its shards exist on others. `ServerGroup.heal` replaces it."""


class ServerLost(TrainingError):
    """No server has a valid copy of some shard: go back to the last checkpoint."""


@dataclass(frozen=True)
class Blueprint:
    """Everything to build an empty shard."""

    partition: Partition
    names: Names
    optimizer: Callable[[nn.Module], Optimizer] | None
    """Builds the optimizer over a skeleton; None: `outer` updates the weights."""
    outer: OuterConfig | None
    push: CodecConfig
    pull: CodecConfig
    clip_value: float | None = None
    compensation: float = 0.0

    def rule(self, names: nn.Module, parameters: dict[str, nn.Parameter]) -> Rule:
        if self.outer is not None:
            return OuterRule(self.outer, parameters)
        assert self.optimizer is not None
        return OptimizerRule(self.optimizer, names, parameters)

    def shard(self, number: int) -> ServerShard:
        return ServerShard(
            self.partition.shards[number], self.names, self.rule, push=self.push, pull=self.pull, clip_value=self.clip_value,
            compensation=self.compensation,
        )  # fmt: skip


class ServerProcess:
    """Actor of one server: its own shards, and replicas of others."""

    def __init__(self, blueprint: Blueprint, shards: Sequence[int], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.shards = {n: blueprint.shard(n) for n in shards}

    def load(self, shard: int, state: ShardState) -> int:
        self.shards[shard].load(state)
        return self.shards[shard].version

    def state(self, shard: int) -> ShardState:
        return self.shards[shard].state()

    def reduce(self, shard: int, version: int, rescale: float, pulled: Payload | None, *pushes: Push) -> Floats:
        """Raise `ServerLost` if this server is not at `version`: `apply` is not awaited, and may be lost when a connection breaks."""
        refuse_behind(shard, self.shards[shard].version, version)
        return self.shards[shard].reduce(pushes, rescale=rescale, pulled=pulled)

    def apply(self, shard: int, scale: float, factor: float) -> int:
        return self.shards[shard].apply(scale, factor)

    def weights(self, shard: int) -> Payload:
        return self.shards[shard].weights()

    def ping(self) -> int:
        import os

        return os.getpid()


class ServerGroup:
    """The servers of a run, on the driver's side."""

    def __init__(self, ray: Any, blueprint: Blueprint, *, replicas: int, timeout: float, may_restart: Callable[[str], bool]) -> None:
        """`may_restart(what)` is called before a server that died is replaced."""
        self.ray, self.blueprint, self.replicas, self.timeout = ray, blueprint, replicas, timeout
        self.may_restart = may_restart
        self.count = len(blueprint.partition.shards)
        self.actors: list[Any] = [self._start(s) for s in range(self.count)]
        self.version = 0
        """Number of updates sent to every shard."""
        self.weights: list[Any] = []
        """References to each shard's newest weights."""
        self.restarts = 0

    def holders(self, shard: int) -> list[int]:
        """Servers with a copy of a shard, its own first."""
        return [(shard + i) % self.count for i in range(self.replicas + 1)]

    def _start(self, server: int) -> Any:
        mine = [s for s in range(self.count) if server in self.holders(s)]
        actor = self.ray.remote(ServerProcess)
        # no CPU reserved in Ray: servers work while workers wait, and the other way round
        return actor.options(num_cpus=0, max_restarts=0, scheduling_strategy="SPREAD").remote(self.blueprint, mine, 1)

    # ---------------------------------------------------------------------------------------- the three calls of a step

    def reduce(self, pushes: Sequence[Sequence[Any]], *, rescale: float, pulled: Sequence[Any] | None) -> list[Floats]:
        """Sum `pushes[w][s]`, references to worker w's push for shard s; return the norms of each shard's pieces.

        Raises `ServerDied`: call `heal`, and repeat.
        """
        refs = [
            [
                self.actors[h].reduce.remote(s, self.version, rescale, pulled[s] if pulled is not None else None, *(p[s] for p in pushes))
                for h in self.holders(s)
            ]
            for s in range(self.count)
        ]
        norms: list[list[Floats]] = self.get(refs)
        return [of_shard[0] for of_shard in norms]

    def apply(self, scale: float, factor: float) -> None:
        """Start the update of every shard. Returns at once; reading the new weights waits for it."""
        for s in range(self.count):
            for h in self.holders(s):
                self.actors[h].apply.remote(s, scale, factor)
        self.version += 1
        self.weights = [self.actors[s].weights.remote(s) for s in range(self.count)]

    def states(self) -> list[ShardState]:
        """State of all shards. Raises `ServerDied`; `ServerLost` if a server missed an update."""
        states: list[ShardState] = self.get([[self.actors[s].state.remote(s)] for s in range(self.count)], flat=True)
        for s, state in enumerate(states):
            refuse_behind(s, state.version, self.version)
        return states

    def load(self, states: Sequence[ShardState]) -> None:
        """Load `states` into every shard and its replicas."""
        in_vain = 0
        while True:
            try:
                self.get([[self.actors[h].load.remote(s, states[s]) for h in self.holders(s)] for s in range(self.count)])
                break
            except ServerDied as err:  # died, or the connection broke
                in_vain += not self._replace_dead()
                if in_vain == ATTEMPTS:
                    raise unreachable(err) from err
        self.version = states[0].version
        self.weights = [self.actors[s].weights.remote(s) for s in range(self.count)]

    def get(self, refs: Any, flat: bool = False) -> Any:
        """Values of nested references. Raises `ServerDied` if a server died, `TrainingError` after the timeout."""
        exceptions = self.ray.exceptions
        try:
            values = [self.ray.get(row, timeout=self.timeout) for row in refs]
        except exceptions.GetTimeoutError:
            raise TrainingError(
                f"no answer from a server for {self.timeout:g} s (parallel.timeout). Run the same command again to resume from the last checkpoint."
            ) from None
        except exceptions.RayTaskError as err:
            if isinstance(err.cause, ServerLost):
                raise ServerLost(str(err.cause)) from None
            if isinstance(err.cause, exceptions.RayError):  # an input of the call came from a process that died
                raise ServerDied(str(err).splitlines()[0]) from err
            raise
        except exceptions.RayError as err:
            raise ServerDied(str(err).splitlines()[0]) from err
        return [row[0] for row in values] if flat else values

    # ---------------------------------------------------------------------------------------- death

    def dead(self) -> list[int]:
        """Servers that do not answer."""
        found = []
        for server, ref in [(s, a.ping.remote()) for s, a in enumerate(self.actors)]:
            try:
                self.ray.get(ref, timeout=self.timeout)
            except self.ray.exceptions.RayError:
                found.append(server)
        return found

    def _replace_dead(self) -> list[int]:
        dead = self.dead()
        for server in dead:
            if not self.may_restart(f"server {server}"):
                raise TrainingError(
                    f"server {server} died, and parallel.max_restarts is used up. Run the same command again to resume from the last checkpoint."
                )
            self.actors[server] = self._start(server)
            self.restarts += 1
        return dead

    def heal(self) -> list[int]:
        """Replace servers that died, with the state of the remaining copies; return their indices. Raises `ServerLost`.

        A server that is alive has executed all calls in order, so its state is the one after the last call.
        """
        replaced: list[int] = []
        empty: set[int] = set()
        while new := self._replace_dead():
            replaced += new
            empty |= {*new}
            try:
                for s in range(self.count):
                    behind = [h for h in self.holders(s) if h in empty]
                    alive = [h for h in self.holders(s) if h not in empty]
                    if behind and not alive:
                        raise ServerLost(
                            f"server {behind[0]} died, and there was no other copy of its shard (parallel.replicas is {self.replicas})."
                        )
                    if behind:
                        state = self.actors[alive[0]].state.remote(s)
                        versions = self.get([[self.actors[h].load.remote(s, state) for h in behind]])
                        for version in versions[0]:
                            refuse_behind(s, version, self.version)
                empty.clear()
            except ServerDied:
                continue
        self.weights = [self.actors[s].weights.remote(s) for s in range(self.count)]
        return replaced


def refuse_behind(shard: int, found: int, version: int) -> None:
    if found != version:
        raise ServerLost(f"a server missed an update when its connection broke: shard {shard} is at version {found}, the run at {version}.")


def unreachable(err: ServerDied) -> TrainingError:
    return TrainingError(
        f"servers are alive but could not be reached in {ATTEMPTS} attempts ({err}). Run the same command again to resume from the last checkpoint."
    )


def gather(
    partition: Partition, shapes: Mapping[str, tuple[int, ...]], states: Sequence[ShardState]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(weights, optimizer tensors, optimizer numbers) of the complete model from its shards, by name. NumPy arrays."""
    weights: dict[str, Any] = {n: np.empty(s, np.float32) for n, s in shapes.items()}
    tensors: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    for pieces, state in zip(partition.shards, states, strict=True):
        numbers |= state.numbers
        for piece in pieces:
            values = state.weights[piece.offset : piece.end].reshape(piece.shape)
            if piece.whole:
                weights[piece.name][...] = values
            else:
                weights[piece.name][piece.row : piece.row + piece.shape[0]] = values
            for key in [k for k in state.tensors if k.rpartition("/")[0] == piece.name]:
                value = state.tensors[key]
                if piece.whole or value.shape != piece.shape:  # a step counter is the same for every piece
                    tensors[key] = np.array(value)
                    continue
                whole = tensors.setdefault(key, np.empty(shapes[piece.name], value.dtype))
                whole[piece.row : piece.row + piece.shape[0]] = value
    return weights, tensors, numbers


def scatter(
    partition: Partition, weights: Mapping[str, Any], tensors: Mapping[str, Any], numbers: Mapping[str, Any], version: int
) -> list[ShardState]:
    """Inverse of `gather`."""
    states = []
    for pieces in partition.shards:
        flat = np.empty(pieces[-1].end, np.float32)
        mine: dict[str, Any] = {}
        for piece in pieces:
            rows = slice(piece.row, piece.row + piece.shape[0]) if piece.shape and not piece.whole else ...
            flat[piece.offset : piece.end] = weights[piece.name][rows].reshape(-1)
            for key, value in tensors.items():
                if key.rpartition("/")[0] == piece.name:
                    mine[key] = value[rows] if value.shape == weights[piece.name].shape else value
        names = {p.name for p in pieces}
        states.append(ShardState(flat, mine, {k: v for k, v in numbers.items() if k.rpartition("/")[0] in names}, version))
    return states


def check_version(found: Mapping[str, str], here: Mapping[str, str], who: str) -> None:
    """Raise `RunError` if a process of the cluster has other versions than this one."""
    different = [f"{k} {found.get(k)} instead of {v}" for k, v in here.items() if found.get(k) != v]
    if different:
        raise RunError(f"{who} runs {', '.join(different)}. Install the same versions on every machine of the cluster.")
