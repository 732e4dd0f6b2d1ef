"""All servers as one: Ray actors that hold the shards and their replicas, and how a dead one comes back.

Replication is by state machine (Schneider 1990): every holder of a shard gets the same calls in the same order, so all hold the same numbers
to the last bit. Shard s lives on server s; its replicas on servers s + 1, ..., s + r (modulo). Gradients and weights go from process to process
through Ray's object store; the caller handles references.
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
"""How often servers that are neither dead nor within reach are asked again."""


class ServerDied(Exception):
    """A server is dead; another holds its shards. `ServerGroup.heal` brings it back."""


class ServerLost(TrainingError):
    """Nobody holds a shard any more, or not as it should be: back to the last checkpoint."""


@dataclass(frozen=True)
class Blueprint:
    """All that makes an empty shard."""

    partition: Partition
    names: Names
    optimizer: Callable[[nn.Module], Optimizer] | None
    """Builds the optimizer over a skeleton; None: `outer` moves the weights."""
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
    """What runs in a server's process: the shards it holds, its own and replicas of others'."""

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
        """Raises `ServerLost` where this server is not at `version`: nobody waits for the answer to `apply`, and a cut may have taken it."""
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
    """The servers of a run, as the driver sees them."""

    def __init__(self, ray: Any, blueprint: Blueprint, *, replicas: int, timeout: float, may_restart: Callable[[str], bool]) -> None:
        """`may_restart(what)` is asked before a dead server is replaced."""
        self.ray, self.blueprint, self.replicas, self.timeout = ray, blueprint, replicas, timeout
        self.may_restart = may_restart
        self.count = len(blueprint.partition.shards)
        self.actors: list[Any] = [self._start(s) for s in range(self.count)]
        self.version = 0
        """Updates that every shard was told to apply."""
        self.weights: list[Any] = []
        """References to each shard's newest weights."""
        self.restarts = 0

    def holders(self, shard: int) -> list[int]:
        """Servers that hold a shard, its own first."""
        return [(shard + i) % self.count for i in range(self.replicas + 1)]

    def _start(self, server: int) -> Any:
        mine = [s for s in range(self.count) if server in self.holders(s)]
        actor = self.ray.remote(ServerProcess)
        # no CPU of its own in Ray's books: it works while workers wait, and rests while they work
        return actor.options(num_cpus=0, max_restarts=0, scheduling_strategy="SPREAD").remote(self.blueprint, mine, 1)

    # ---------------------------------------------------------------------------------------- the three calls of a step

    def reduce(self, pushes: Sequence[Sequence[Any]], *, rescale: float, pulled: Sequence[Any] | None) -> list[Floats]:
        """Sum `pushes[w][s]`, references to worker w's push for shard s; returns the norms of each shard's pieces.

        Raises `ServerDied`: heal, and call again.
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
        """Tell every shard to update. Returns at once; whoever reads the new weights waits for them."""
        for s in range(self.count):
            for h in self.holders(s):
                self.actors[h].apply.remote(s, scale, factor)
        self.version += 1
        self.weights = [self.actors[s].weights.remote(s) for s in range(self.count)]

    def states(self) -> list[ShardState]:
        """Everything that the shards hold. Raises `ServerDied`; `ServerLost` where one missed an update."""
        states: list[ShardState] = self.get([[self.actors[s].state.remote(s)] for s in range(self.count)], flat=True)
        for s, state in enumerate(states):
            refuse_behind(s, state.version, self.version)
        return states

    def load(self, states: Sequence[ShardState]) -> None:
        """Put every shard, and its replicas, where `states` says."""
        in_vain = 0
        while True:
            try:
                self.get([[self.actors[h].load.remote(s, states[s]) for h in self.holders(s)] for s in range(self.count)])
                break
            except ServerDied as err:  # dead, or cut off for a moment
                in_vain += not self._replace_dead()
                if in_vain == ATTEMPTS:
                    raise unreachable(err) from err
        self.version = states[0].version
        self.weights = [self.actors[s].weights.remote(s) for s in range(self.count)]

    def get(self, refs: Any, flat: bool = False) -> Any:
        """Values of nested references; `ServerDied` where one is of a dead server, `TrainingError` after the time-out."""
        exceptions = self.ray.exceptions
        try:
            values = [self.ray.get(row, timeout=self.timeout) for row in refs]
        except exceptions.GetTimeoutError:
            raise TrainingError(
                f"no answer from a server for {self.timeout:g} s (parallel.timeout). The same command goes on from the last checkpoint."
            ) from None
        except exceptions.RayTaskError as err:
            if isinstance(err.cause, ServerLost):
                raise ServerLost(str(err.cause)) from None
            if isinstance(err.cause, exceptions.RayError):  # something that it was to read came from a dead process
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
                    f"server {server} died, and parallel.max_restarts is used up. The same command goes on from the last checkpoint."
                )
            self.actors[server] = self._start(server)
            self.restarts += 1
        return dead

    def heal(self) -> list[int]:
        """Replace the dead, each with what others still hold of it; returns their numbers. Raises `ServerLost`.

        A holder that lives did every call that was made, in order, so its state is the state after the last of them.
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
                        raise ServerLost(f"server {behind[0]} died, and nobody else held its shard (parallel.replicas is {self.replicas}).")
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
        raise ServerLost(f"a server missed an update, cut off for a moment: shard {shard} is at {found}, the run at {version}.")


def unreachable(err: ServerDied) -> TrainingError:
    return TrainingError(
        f"servers live and cannot be reached, after {ATTEMPTS} attempts ({err}). The same command goes on from the last checkpoint."
    )


def gather(
    partition: Partition, shapes: Mapping[str, tuple[int, ...]], states: Sequence[ShardState]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(weights, optimizer tensors, optimizer numbers) of the whole model from its shards, by name, pieces joined. Numpy arrays."""
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
    """The inverse of `gather`."""
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
    """`RunError` where a process of the cluster runs other code than this one."""
    different = [f"{k} {found.get(k)} instead of {v}" for k, v in here.items() if found.get(k) != v]
    if different:
        raise RunError(f"{who} runs {', '.join(different)}. Install the same versions on every machine of the cluster.")
