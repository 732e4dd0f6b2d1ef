"""Batch sampling for private training. The noise that a guarantee needs depends on it, so the loader is part of the mechanism.

    poisson      each example is taken independently with probability batch / N; the batch size varies, and can be 0
    fixed-size   exactly `batch` examples, without replacement
    shuffled     full passes in one order that is drawn once; examples that do not fill a batch are left out.
                 An example is used every N // batch steps, which correlated noise makes use of

Sampling must be as secret as the noise (there is no amplification against an attacker who knows the draws), so both come from one key.
Poisson: Mironov et al. 2019, arXiv:1908.10530, section 3; fixed-size: Wang et al. 2019, arXiv:1808.00087.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from tauon.data import Loader
from tauon.data.counter import bits
from tauon.errors import Problem, RecipeError
from tauon.privacy.units import Units
from tauon.types import Batch, Dataset

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PrivateLoader", "Sampling", "SamplingScheme"]

Sampling = Literal["poisson", "fixed-size", "shuffled"]


class Sizes(Protocol):
    """Expected batch size of each step, when it grows (see `data.loader.Sizes`)."""

    def size(self, step: int) -> int: ...

    def first(self, step: int) -> int: ...


@dataclass(frozen=True)
class SamplingScheme:
    """How the units of a step are drawn, and which rows they bring."""

    sampling: Sampling
    key: bytes
    """Seed of all draws."""
    views: int = 1
    """Rows of an example in a batch, next to each other, each with its own augmentation."""
    units: Units | None = None
    """Groups of examples that are drawn together. None: each example is a unit."""


class PrivateLoader(Loader):
    """Loader that samples as the guarantee requires. Batches are a pure function of (data set, key, expected batch size, step).

    Every rank gets the same number of rows; padding rows have weight 0, and an empty batch is one row of weight 0 on each rank.
    """

    def __init__(
        self, dataset: Dataset, *, batch: int, scheme: SamplingScheme, rank: int = 0, world: int = 1, workers: int = 0,
        sizes: Sizes | None = None,
    ) -> None:  # fmt: skip
        """`batch`: expected number of units of a step, over all `world` ranks.

        Raises `RecipeError` if the batch is larger than the data, or if the data set has its own sampling (class weights, mixing).
        """
        sampling, units = scheme.sampling, scheme.units
        count = len(dataset) if units is None else len(units)
        if batch > count:
            noun = "examples" if units is None else "units"
            message = f"is {batch}, but there are only {count:,} {noun}, and a private batch is a sample of them. Set at most {count}."
            raise RecipeError([Problem("train.batch", message)])
        for name, usual in (("order", "data.sampling"), ("mixer", "data.mix")):
            chosen = getattr(dataset, name, None)
            if chosen is not None:
                field = getattr(chosen, "setting", usual)
                reason = getattr(chosen, "words", "mixes examples, so that they cannot be clipped one by one")
                raise RecipeError([Problem(field, f"{reason}; no privacy guarantee covers this. Remove it, or remove privacy.")])
        if sampling == "shuffled" and sizes is not None:
            message = "changes the batch size, but shuffled sampling needs equal batches. Remove it, or set privacy.sampling=poisson."
            raise RecipeError([Problem("train.batch_warmup", message)])
        super().__init__(dataset, batch=batch, seed=0, rank=rank, world=world, workers=workers, sizes=sizes)
        self.sampling, self.key, self.views, self.units, self.count = sampling, scheme.key, scheme.views, units, count
        self._drawn: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self._order = self._generator("order").permutation(count) if sampling == "shuffled" else None

    @property
    def steps_in_pass(self) -> int:
        """Steps of a full pass. With shuffled sampling the examples that do not fill a last batch are left out."""
        return self.count // self.batch

    def rate(self, step: int) -> float:
        """Sampling rate: probability that a unit is in step `step` (fixed-size: share of the units; shuffled: share of a pass)."""
        return super().size(step) / self.count

    def chosen(self, step: int) -> np.ndarray:
        """Indices of the units of step `step`, over all ranks: int64, without repeats."""
        cached_step, units = self._drawn
        if cached_step != step:
            units = self._draw(step)
            self._drawn = (step, units)
        return units

    def _draw(self, step: int) -> np.ndarray:
        if self._order is not None:
            at = (step % self.steps_in_pass) * self.batch
            return self._order[at : at + self.batch]
        draws = self._generator(f"sample/{step}")
        expected = super().size(step)
        # Draw the batch size (binomial), then the members: the same distribution as one coin per unit, in O(batch) instead of O(N).
        size = int(draws.binomial(self.count, expected / self.count)) if self.sampling == "poisson" else expected
        return draws.choice(self.count, size, replace=False, shuffle=False).astype(np.int64)

    def _digest(self, purpose: str) -> int:
        return int.from_bytes(hashlib.blake2b(purpose.encode(), key=self.key[:64], digest_size=32).digest(), "little")

    def _generator(self, purpose: str) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(self._digest(purpose)))

    @property
    def rows_per_unit(self) -> int:
        """Rows of one unit in a batch, next to each other."""
        return self.views * (1 if self.units is None else self.units.most)

    def size(self, step: int) -> int:
        """Number of units drawn for step `step`. It is secret."""
        return len(self.chosen(step))

    def rows(self, step: int) -> np.ndarray:
        share = max(1, -(-self.size(step) // self.world))
        return np.arange(self.rank * share, (self.rank + 1) * share, dtype=np.int64)

    def expected(self, step: int) -> int:
        """Expected number of units of step `step`. Only this is counted and published: the number drawn is secret."""
        return super().size(step)

    def _rows_of_units(self, step: int) -> np.ndarray:
        """(U, rows) examples of the units of a step over all ranks, -1 where a unit has fewer rows; the same in every layout."""
        chosen = self.chosen(step)
        if self.units is None:
            return chosen[:, None]
        return self.units.rows(chosen, lambda unit: self._generator(f"rows/{step}/{unit}"))

    def examples_at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, example) of this rank's rows; -1 for padding rows, of a unit or of the rank."""
        rows_U = self._rows_of_units(step)
        rank_rows = self.rows(step)
        rows_U = np.concatenate([rows_U, np.full((max(0, int(rank_rows[-1]) + 1 - len(rows_U)), rows_U.shape[1]), -1, np.int64)])
        example = np.repeat(rows_U[rank_rows].ravel(), self.views)
        epoch = step // self.steps_in_pass if self.sampling == "shuffled" else step  # a new augmentation at each use
        view = np.tile(np.arange(self.views), len(example) // self.views)  # each view has its own augmentation
        return epoch * self.views + view, example

    def _make(self, step: int) -> Batch:
        epoch, example = self.examples_at(step)
        missing = example < 0
        batch = replace(self._read(epoch, np.where(missing, max(0, int(example.max())), example)), draws=self._draws(step, example))
        if missing.any():
            weights = batch.weights.clone()
            weights[missing.tolist()] = 0
            batch = replace(batch, weights=weights)
        return batch

    def _draws(self, step: int, example: np.ndarray) -> Tensor:
        """(B) int64: seed of each row's dropout, a function of (key, step, example, view) only."""
        import torch

        view = np.tile(np.arange(self.views), len(example) // self.views)
        seeds = bits(self._digest(f"draws/{step}") % 2**64, (example * self.views + view).astype(np.uint64))
        return torch.from_numpy(seeds.view(np.int64))
