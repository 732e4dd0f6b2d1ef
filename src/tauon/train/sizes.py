"""Warm-up of batch size and sequence length: small and short steps first, when gradients are large and noise matters little
(Smith et al. 2018, arXiv:1711.00489; Li et al. 2022, arXiv:2108.06084). The size of step n is a pure function of n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tauon.train.config import TrainConfig
from tauon.train.step import BatchSource
from tauon.types import Batch

__all__ = ["BatchSizeScheduler", "SeqLenTruncation", "steps_for"]


@dataclass(frozen=True)
class BatchSizeScheduler:
    """Sizes of steps: they grow linearly during the warm-ups, then stay constant."""

    batch: int
    seq_len: int = 1
    """Full sequence length; 1 if examples have no tokens."""
    batch_start: int = 0
    batch_steps: int = 0
    """0: no warm-up of the batch."""
    seq_start: int = 0
    seq_steps: int = 0
    """0: no warm-up of the sequence length."""

    @classmethod
    def of(cls, config: TrainConfig, seq_len: int | None) -> BatchSizeScheduler:
        b, s = config.batch_warmup, config.seq_len_warmup
        return cls(config.batch, seq_len or 1, *((b.start, b.steps) if b else (0, 0)), *((s.start, s.steps) if s else (0, 0)))

    def size(self, step: int) -> int:
        """Return the number of examples of step `step`, all processes together."""
        if step >= self.batch_steps:
            return self.batch
        return self.batch_start + (self.batch - self.batch_start) * step // self.batch_steps

    def length(self, step: int) -> int:
        """Return the tokens of each example at step `step`; during warm-up a multiple of 8, which is fast on matrix units."""
        if step >= self.seq_steps:
            return self.seq_len
        exact = self.seq_start + (self.seq_len - self.seq_start) * step // self.seq_steps
        return max(self.seq_start, exact // 8 * 8)

    def first(self, step: int) -> int:
        """Return the number of examples before step `step`."""
        rising = min(step, self.batch_steps)
        return sum(self.size(s) for s in range(rising)) + (step - rising) * self.batch

    def steps_for(self, wanted: float, *, tokens: bool = False) -> int:
        """Return the number of steps that take `wanted` examples, or tokens."""
        each: Callable[[int], int] = (lambda s: self.size(s) * self.length(s)) if tokens else self.size
        rising, done = max(self.batch_steps, self.seq_steps), 0
        for step in range(rising):
            done += each(step)
            if done >= wanted - 1e-9:
                return step + 1
        return max(1, rising + _ceil(wanted - done - 1e-9 * wanted, each(rising)))


def steps_for(wanted: float, each: float) -> int:
    """Return the number of whole steps of `each` examples that take at least `wanted` examples."""
    return max(1, _ceil(wanted - 1e-9 * wanted, each))


def _ceil(wanted: float, each: float) -> int:
    return -int(-wanted // each)


class SeqLenTruncation:
    """Truncates batches to the sequence length of their step; the rest of each row is not used at this step."""

    def __init__(self, source: BatchSource, sizes: BatchSizeScheduler) -> None:
        self.source, self.sizes = source, sizes

    def batch_at(self, step: int) -> Batch:
        batch, n = self.source.batch_at(step), self.sizes.length(step)
        segments = None if batch.segments is None else batch.segments[:, :n]
        return replace(batch, inputs=batch.inputs[:, :n], targets=batch.targets[:, :n], weights=batch.weights[:, :n], segments=segments)
