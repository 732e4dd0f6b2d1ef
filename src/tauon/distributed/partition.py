"""Assignment of parameters to servers: pieces of named tensors, one flat buffer per shard. Plain data, the same on every process.

A tensor larger than its fair share (all numbers / servers) is split along its first dimension into nearly equal runs of rows, if the
optimizer is elementwise; otherwise it is not split. Pieces go, largest first, to the smallest shard so far (Graham's LPT rule: at most 4/3 of
the optimum), two pieces of one tensor never to the same shard. Within a shard, pieces are in the order of the model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tauon.errors import Problem, RecipeError

__all__ = ["Partition", "Piece", "partition"]


@dataclass(frozen=True)
class Piece:
    """Rows of one parameter."""

    name: str
    shape: tuple[int, ...]
    """Of the piece."""
    row: int
    """Its first row in the tensor."""
    offset: int
    """Its offset in the shard's flat buffer."""
    whole: bool
    """Whether it is the complete tensor."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True)
class Partition:
    """Pieces of all shards."""

    shards: tuple[tuple[Piece, ...], ...]

    @property
    def sizes(self) -> list[int]:
        """Number of elements in each shard."""
        return [pieces[-1].end for pieces in self.shards]


def partition(shapes: Mapping[str, Sequence[int]], servers: int, *, rows_may_part: bool) -> Partition:
    """Spread parameters over `servers` shards.

    Args:
        shapes: of each trainable parameter, in the model's order.
        servers: number of shards.
        rows_may_part: the optimizer is elementwise, so a large tensor may be split.

    Raises:
        RecipeError: more servers than tensors.
    """
    total = sum(math.prod(s) for s in shapes.values())
    fair = math.ceil(total / servers)
    pieces: list[tuple[int, str, tuple[int, ...], int]] = []  # (number of the tensor, name, shape, first row)
    for number, (name, size) in enumerate(shapes.items()):
        shape = tuple(size)
        runs = 1
        if rows_may_part and len(shape) >= 1 and math.prod(shape) > fair:
            runs = min(math.ceil(math.prod(shape) / fair), shape[0], servers)
        edges = [shape[0] * i // runs for i in range(runs + 1)] if runs > 1 else []
        if runs == 1:
            pieces.append((number, name, shape, 0))
        pieces += [(number, name, (stop - start, *shape[1:]), start) for start, stop in itertools.pairwise(edges)]
    if len(pieces) < servers:
        raise RecipeError(
            [
                Problem(
                    "parallel.servers",
                    f"is {servers}, but the model has only {len(pieces)} tensors to distribute. Set at most {len(pieces)}.",
                )
            ]
        )
    held: list[list[tuple[int, str, tuple[int, ...], int]]] = [[] for _ in range(servers)]
    load = [0] * servers
    for piece in sorted(pieces, key=lambda p: -math.prod(p[2])):
        free = [s for s in range(servers) if all(p[0] != piece[0] for p in held[s])]
        least = min(free, key=lambda s: (load[s], len(held[s]), s))
        held[least].append(piece)
        load[least] += math.prod(piece[2])
    shards = []
    for mine in held:
        offset, laid = 0, []
        for _, name, shape, row in sorted(mine):
            laid.append(Piece(name, shape, row, offset, shape == tuple(shapes[name])))
            offset = laid[-1].end
        shards.append(tuple(laid))
    return Partition(tuple(shards))
