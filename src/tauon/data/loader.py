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

    import torch

    from tauon.data.mix import Mixer

__all__ = ["DeviceBatches", "Loader"]


class Sizes(Protocol):
    """How large the batch of each step is, where it is not always the same: pure functions of the step."""

    def size(self, step: int) -> int: ...

    def first(self, step: int) -> int:
        """Examples before this step."""
        ...


class Loader:
    """Batches of training examples in shuffled order, epoch after epoch without a gap.

    The last batch of an epoch is filled up with the first examples of the next, so that every batch has the same size and each
    example is seen exactly once an epoch. A data set that has an `order` of its own is followed in it; one that has a `mixer` has its
    rows mixed in pairs.
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
        self.count = len(dataset)
        self.sizes = sizes
        self._ahead = 2 * workers
        self._pool = ThreadPoolExecutor(workers, "tauon-data") if workers else None
        self._coming: dict[int, Future[Batch]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every example was seen at least once."""
        return math.ceil(self.count / self.batch)

    def steps_for(self, epochs: float) -> int:
        """Steps that go `epochs` times through the data; the last may run into the next epoch."""
        return max(1, math.ceil(epochs * self.count / self.batch - 1e-9))

    def examples_at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, example) of this rank's rows of step `step` (0 is the first), ceil(B / world) int64 each; the last may be repeated."""
        return self._at(step, np.minimum(self.rows(step), self.size(step) - 1))

    def _at(self, step: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, example) of rows of the global batch."""
        order = getattr(self.dataset, "order", None)  # a data set may say that some examples come more often
        position = (step * self.batch if self.sizes is None else self.sizes.first(step)) + row
        return example_at(position, len(self.dataset), self.seed) if order is None else order.at(position)

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
        mixer = getattr(self.dataset, "mixer", None)
        batch = self._read(epoch, example) if mixer is None else self._mixed(step, mixer)
        missing = self.rows(step) >= self.size(step)
        if missing.any():
            weights = batch.weights.clone()
            weights[missing.tolist()] = 0
            batch = replace(batch, weights=weights)
        return batch

    def _read(self, epoch: np.ndarray, example: np.ndarray) -> Batch:
        """These examples in this order, each as its epoch has it."""
        epochs = np.unique(epoch)
        batch = _joined([self.dataset.batch(example[epoch == e], epoch=int(e)) for e in epochs])
        if len(epochs) > 1 and (np.diff(epoch) < 0).any():  # of classes that each have their own
            back = np.empty(len(epoch), np.int64)
            back[np.argsort(epoch, kind="stable")] = np.arange(len(epoch))
            batch = _picked(batch, back)
        return batch

    def _mixed(self, step: int, mixer: Mixer) -> Batch:
        """The rank's rows, each mixed with its partner among those of all ranks."""
        size = self.size(step)
        rows = np.minimum(self.rows(step), size - 1)
        how = mixer.plan(step, size)
        needed, at = np.unique(np.concatenate([rows, how.partner[rows]]), return_inverse=True)
        read = self._read(*self._at(step, needed))
        box = None if how.box is None else how.box[rows]
        return mixer.mix(_picked(read, at[: len(rows)]), _picked(read, at[len(rows) :]), how.own[rows], box)

    def close(self) -> None:
        """Stop the worker threads. Using the loader again afterwards works, without them."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool, self._coming = None, {}

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class BatchAt(Protocol):
    """Where batches come from: a `Loader`, or what stands for one."""

    def batch_at(self, step: int) -> Batch: ...


class DeviceBatches:
    """The batches of a loader on a device. To a GPU the next one is copied, from pinned memory, while the step before it computes.

    Elsewhere each is read when it is asked for.
    """

    def __init__(self, source: BatchAt, device: torch.device, total_steps: int) -> None:
        self.source, self.device, self.total_steps = source, device, total_steps
        self._next: tuple[int, Batch] | None = None
        self._stream: Any = None

    def batch_at(self, step: int) -> Batch:
        """The batch of step `step`, on the device."""
        ready, self._next = self._next, None
        if ready is None or ready[0] != step:
            return self.source.batch_at(step).to(self.device)
        import torch

        now: Any = torch.cuda.current_stream(self.device)
        now.wait_stream(self._stream)  # the device waits for the copy, not the host
        for tensor in ready[1].tensors():
            tensor.record_stream(now)  # its memory is not given away before the step that reads it is done
        return ready[1]

    def prefetch(self, step: int) -> None:
        """Begin to copy the batch of step `step`, where there is one."""
        if self.device.type != "cuda" or step >= self.total_steps:
            return
        import torch

        self._stream = self._stream or torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):
            self._next = step, self.source.batch_at(step).to(self.device)


def _picked(batch: Batch, rows: np.ndarray) -> Batch:
    import torch

    at = torch.from_numpy(np.asarray(rows, np.int64))
    picked: dict[str, Any] = {f.name: None if (v := getattr(batch, f.name)) is None else v[at] for f in fields(Batch)}
    return Batch(**picked)


def _joined(parts: Sequence[Batch]) -> Batch:
    import torch

    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Any] = {f.name: [getattr(p, f.name) for p in parts] for f in fields(Batch)}
    joined: dict[str, Any] = {name: None if values[0] is None else torch.cat(values) for name, values in columns.items()}
    return Batch(**joined)
