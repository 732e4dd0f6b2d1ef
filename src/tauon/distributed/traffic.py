"""Network traffic: payload bytes that this process sends, by kind of communication.

Counts payload, independent of the algorithm: an all-reduce of N bytes counts N on every rank; an all-gather counts the rank's piece,
a reduce-scatter the complete input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Traffic", "counted"]


class Traffic:
    """Bytes by kind since the last `take`, and in total."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.total: Counter[str] = Counter()
        self.each: dict[str, int] | None = None
        """Bytes of every step, if measured once; further additions are then ignored."""

    def add(self, kind: str, size: int) -> None:
        """Add `size` sent bytes of `kind` (all-reduce, all-gather, push, pull, ...)."""
        self.now[kind] += size
        self.total[kind] += size

    def take(self) -> dict[str, int]:
        """Bytes by kind since the last call; training calls it once per step."""
        taken, self.now = dict(self.now), Counter()
        return taken if self.each is None else dict(self.each)


KINDS = {
    "allreduce": "all-reduce", "all_reduce": "all-reduce", "allgather": "all-gather", "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter", "alltoall": "all-to-all", "all_to_all": "all-to-all", "broadcast": "broadcast", "send": "send",
}  # fmt: skip
"""Beginning of the name of torch's operator (after an underscore) -> its name here."""


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Context that counts the bytes of collectives at torch's dispatch: of DDP, FSDP2, DTensor, pipelines."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    found: Counter[str] = Counter()

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
            space = func.namespace
            if space in ("c10d", "_c10d_functional"):
                name = func._schema.name.split("::")[1].lstrip("_")
                kind = next((k for start, k in KINDS.items() if name.startswith(start)), None)
                if kind is not None:
                    # In place (c10d): outputs come first where there are both. Functional: the input is the first argument.
                    position = 1 if space == "c10d" and kind in ("all-gather", "reduce-scatter", "all-to-all") else 0
                    tensors = [t for t in tree_leaves(args[position]) if isinstance(t, Tensor)]
                    found[kind] += sum(t.numel() * t.element_size() for t in tensors)
            return func(*args, **(kwargs or {}))

    with Mode():
        yield found
