"""Batches of a data set for each training step. The only state is the step number.

Batches are a pure function of (data set, seed, batch size, step): a rank takes its contiguous slice of the global batch, and
worker threads only prepare ahead of time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tauon.data.mixture_order import MixtureOrder
from tauon.data.order import ShuffledOrder
from tauon.errors import RecipeError
from tauon.types import Batch, Dataset

if TYPE_CHECKING:
    from types import TracebackType

    import torch

    from tauon.data.mix import Mixer

__all__ = ["DeviceBatches", "Loader"]


class Sizes(Protocol):
    """Batch size of each step, if it varies: pure functions of the step."""

    def size(self, step: int) -> int: ...

    def first(self, step: int) -> int:
        """Return the number of examples before this step."""
        ...


class Loader:
    """Batches of training examples in shuffled order, over consecutive epochs.

    The last batch of an epoch is completed with the first examples of the next, so that every batch has the same size and each
    example is seen exactly once per epoch. A data set with an `order` of its own is read in that order; the rows of one with a `mixer` are
    mixed in pairs.
    """

    def __init__(
        self, dataset: Dataset, *, batch: int, seed: int, rank: int = 0, world: int = 1, workers: int = 0, sizes: Sizes | None = None
    ) -> None:
        """`batch` is the number of examples over all `world` ranks; `workers` threads prepare the next steps.

        Every rank gets equally many rows: if the batch does not divide, the last ranks' rows are padded with weight zero. `sizes`: the
        batch size of each step, if it grows; None: always `batch`.
        """
        least = batch if sizes is None else sizes.size(0)
        if least < world:
            raise RecipeError(f"a batch of {least} examples is too small for {world} ranks; set train.batch to at least {world}")
        if not 0 <= rank < world:
            raise RecipeError(f"rank {rank} of {world} does not exist")
        self.dataset, self.batch, self.seed, self.rank, self.world = dataset, batch, seed, rank, world
        self._shuffled = ShuffledOrder(len(dataset), seed)
        self._mixture: MixtureOrder | None = None
        self.sizes = sizes
        order = getattr(dataset, "order", None)
        self.count = len(dataset) if order is None else getattr(order, "count", len(dataset))
        if isinstance(order, MixtureOrder):
            self._mixture = order.bound(self.first)
        self._ahead = 2 * workers
        self._pool = ThreadPoolExecutor(workers, "tauon-data") if workers else None
        self._coming: dict[int, Future[Batch]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps after which every example was seen at least once."""
        return math.ceil(self.count / self.batch)

    def steps_for(self, epochs: float) -> int:
        """Number of steps for `epochs` passes over the data; the last may reach into the next epoch."""
        return max(1, math.ceil(epochs * self.count / self.batch - 1e-9))

    def first(self, step: int) -> int:
        """Return the number of examples before step `step`, over all ranks."""
        return step * self.batch if self.sizes is None else self.sizes.first(step)

    def set_total(self, steps: int) -> None:
        """Tell how many steps the training has: a mixture's weights may change at a share of them."""
        order = getattr(self.dataset, "order", None)
        if isinstance(order, MixtureOrder):
            self._mixture = order.bound(self.first, steps)

    def passes(self, steps: int) -> list[float]:
        """Return how many times the first `steps` steps go through each source of a mixture; [] if there is none."""
        order = self._mixture
        return [] if order is None else (order.drawn(self.first(steps)) / np.array(order.windows)).tolist()

    def examples_at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (epoch, example) of this rank's rows of step `step` (from 0), ceil(B / world) int64 each; the last may be repeated."""
        return self._at(step, np.minimum(self.rows(step), self.size(step) - 1))

    def _at(self, step: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (epoch, example) of rows of the global batch."""
        order = self._mixture or getattr(self.dataset, "order", None) or self._shuffled  # a data set may sample some examples more often
        return order.at(self.first(step) + row)

    def size(self, step: int) -> int:
        """Return the number of examples of step `step`, over all ranks."""
        return self.batch if self.sizes is None else self.sizes.size(step)

    def rows(self, step: int) -> np.ndarray:
        """Return this rank's row numbers in the batch of step `step`; numbers from the batch size on are padding."""
        share = -(-self.size(step) // self.world)
        return np.arange(self.rank * share, (self.rank + 1) * share, dtype=np.int64)

    def batch_at(self, step: int) -> Batch:
        """Return the rank's rows of the batch of step `step`, on the CPU."""
        if self._pool is None:
            return self._make(step)
        wanted = self._coming.pop(step, None)
        for other in [
            s for s in self._coming if not step < s <= step + self._ahead
        ]:  # the caller jumped to another step: these are not needed
            self._coming.pop(other).cancel()
        for later in range(step + 1, step + 1 + self._ahead):
            if later not in self._coming:
                self._coming[later] = self._pool.submit(self._make, later)
        return self._make(step) if wanted is None else wanted.result()

    def _make(self, step: int) -> Batch:
        epoch, example = self.examples_at(step)
        mixer = getattr(self.dataset, "mixer", None)
        batch = self._read(epoch, example) if mixer is None else self._mixed(step, mixer)
        if self.size(step) % self.world:
            missing = self.rows(step) >= self.size(step)
            weights = batch.weights.clone()
            weights[missing.tolist()] = 0
            batch = replace(batch, weights=weights)
        return batch

    def _read(self, epoch: np.ndarray, example: np.ndarray) -> Batch:
        """Return these examples in this order, each from its epoch."""
        if epoch[0] == epoch[-1] and (epoch == epoch[0]).all():
            return self.dataset.batch(example, epoch=int(epoch[0]))
        epochs = np.unique(epoch)
        batch = _joined([self.dataset.batch(example[epoch == e], epoch=int(e)) for e in epochs])
        if (np.diff(epoch) < 0).any():  # with balanced sampling, classes have epochs of their own
            back = np.empty(len(epoch), np.int64)
            back[np.argsort(epoch, kind="stable")] = np.arange(len(epoch))
            batch = _picked(batch, back)
        return batch

    def _mixed(self, step: int, mixer: Mixer) -> Batch:
        """Return the rank's rows, each mixed with its partner from any rank."""
        size = self.size(step)
        rows = np.minimum(self.rows(step), size - 1)
        how = mixer.plan(step, size)
        needed, at = np.unique(np.concatenate([rows, how.partner[rows]]), return_inverse=True)
        read = self._read(*self._at(step, needed))
        box = None if how.box is None else how.box[rows]
        return mixer.mix(_picked(read, at[: len(rows)]), _picked(read, at[len(rows) :]), how.own[rows], box)

    def close(self) -> None:
        """Stop the worker threads. The loader still works afterwards, without them."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool, self._coming = None, {}

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class BatchAt(Protocol):
    """Interface of a `Loader` and its substitutes."""

    def batch_at(self, step: int) -> Batch: ...


class DeviceBatches:
    """Batches of a loader on a device. For a GPU the next batch is copied from pinned memory during the current step.

    On other devices each batch is read when it is requested.
    """

    def __init__(self, source: BatchAt, device: torch.device, total_steps: int) -> None:
        self.source, self.device, self.total_steps = source, device, total_steps
        self._next: tuple[int, Batch] | None = None
        self._stream: Any = None

    def batch_at(self, step: int) -> Batch:
        """Return the batch of step `step`, on the device."""
        ready, self._next = self._next, None
        if ready is None or ready[0] != step:
            batch = self.source.batch_at(step)
            return batch if self.device.type == "cpu" else batch.to(self.device)
        import torch

        now: Any = torch.cuda.current_stream(self.device)
        now.wait_stream(self._stream)  # the device waits for the copy, not the host
        for tensor in ready[1].tensors():
            tensor.record_stream(now)  # its memory is not reused before the step that reads it is done
        return ready[1]

    def prefetch(self, step: int) -> None:
        """Start to copy the batch of step `step`, if it exists."""
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
