"""From a data set to the batch of a step. The only state is the step's number.

Batches are a pure function of (data set, seed, batch size, step): a rank takes its contiguous slice of the global batch, and
worker threads only prepare ahead what would be computed anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tauon.data.order import example_at
from tauon.errors import RecipeError
from tauon.types import Batch, Dataset

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Loader"]


class Sizes(Protocol):
    """How large the batch of each step is, where it is not always the same: pure functions of the step."""

    def size(self, step: int) -> int: ...

    def first(self, step: int) -> int:
        """Examples before this step."""
        ...


class Loader:
    """Batches of training examples in shuffled order, epoch after epoch without a gap.

    The last batch of an epoch is filled up with the first examples of the next, so that every batch has the same size and each
    example is seen exactly once an epoch.
    """

    def __init__(
        self, dataset: Dataset, *, batch: int, seed: int, rank: int = 0, world: int = 1, workers: int = 0, sizes: Sizes | None = None
    ) -> None:
        """`batch` counts the examples of all `world` ranks together; `workers` threads prepare the next steps.

        Every rank gets as many rows: where the batch does not divide, the last ranks' are filled up at weight zero. `sizes`: how large
        each step's batch is, where it grows; None: all of them are `batch`.
        """
        least = batch if sizes is None else sizes.size(0)
        if least < world:
            raise RecipeError(f"a batch of {least} examples for {world} ranks leaves some without any; take at least {world}")
        if not 0 <= rank < world:
            raise RecipeError(f"rank {rank} of {world} does not exist")
        self.dataset, self.batch, self.seed, self.rank, self.world = dataset, batch, seed, rank, world
        self.sizes = sizes
        self._ahead = 2 * workers
        self._pool = ThreadPoolExecutor(workers, "tauon-data") if workers else None
        self._coming: dict[int, Future[Batch]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every example was seen at least once."""
        return math.ceil(len(self.dataset) / self.batch)

    def steps_for(self, epochs: float) -> int:
        """Steps that go `epochs` times through the data; the last may run into the next epoch."""
        return max(1, math.ceil(epochs * len(self.dataset) / self.batch - 1e-9))

    def examples_at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, example) of this rank's rows of step `step` (0 is the first), ceil(B / world) int64 each; the last may be repeated."""
        row = np.minimum(self.rows(step), self.size(step) - 1)
        first = step * self.batch if self.sizes is None else self.sizes.first(step)
        return example_at(first + row, len(self.dataset), self.seed)

    def size(self, step: int) -> int:
        """Examples of step `step`, all ranks together."""
        return self.batch if self.sizes is None else self.sizes.size(step)

    def rows(self, step: int) -> np.ndarray:
        """Numbers of this rank's rows in the batch of step `step`; those from its size on are there only to fill up."""
        share = -(-self.size(step) // self.world)
        return np.arange(self.rank * share, (self.rank + 1) * share, dtype=np.int64)

    def batch_at(self, step: int) -> Batch:
        """The rank's rows of the batch of step `step`, on the CPU."""
        if self._pool is None:
            return self._make(step)
        wanted = self._coming.pop(step, None)
        for other in [s for s in self._coming if not step < s <= step + self._ahead]:  # the caller jumped: these come no more
            self._coming.pop(other).cancel()
        for later in range(step + 1, step + 1 + self._ahead):
            if later not in self._coming:
                self._coming[later] = self._pool.submit(self._make, later)
        return self._make(step) if wanted is None else wanted.result()

    def _make(self, step: int) -> Batch:
        epoch, example = self.examples_at(step)
        parts = [self.dataset.batch(example[epoch == e], epoch=int(e)) for e in np.unique(epoch)]  # epochs ascend along the rows
        batch = parts[0] if len(parts) == 1 else _joined(parts)
        missing = self.rows(step) >= self.size(step)
        if missing.any():
            weights = batch.weights.clone()
            weights[missing.tolist()] = 0
            batch = replace(batch, weights=weights)
        return batch

    def close(self) -> None:
        """Stop the worker threads. Using the loader again afterwards works, without them."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool, self._coming = None, {}

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _joined(parts: Sequence[Batch]) -> Batch:
    import torch

    columns: dict[str, Any] = {f.name: [getattr(p, f.name) for p in parts] for f in fields(Batch)}
    joined: dict[str, Any] = {name: None if values[0] is None else torch.cat(values) for name, values in columns.items()}
    return Batch(**joined)
