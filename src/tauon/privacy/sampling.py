"""Which examples a private step takes. The noise that a guarantee needs depends on it, so the loader is part of the mechanism.

    poisson      every example is taken by a coin of its own, with probability batch / N: the size of a batch varies, also to none
    fixed-size   exactly `batch` examples, without replacement
    shuffled     whole passes, one after the other in one order that is drawn once; examples that do not fill a batch are left out.
                 Between two uses of an example lie N // batch steps, which correlated noise makes use of

Sampling must be as secret as the noise (amplification fails against who knows the draws), so both come from one key.
Poisson: Mironov et al. 2019, arXiv:1908.10530, section 3; fixed-size: Wang et al. 2019, arXiv:1808.00087.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from tauon.data import Loader
from tauon.data.counter import bits
from tauon.errors import Problem, RecipeError
from tauon.privacy.units import Units
from tauon.types import Batch, Dataset

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PrivateLoader", "Sampling"]

Sampling = Literal["poisson", "fixed-size", "shuffled"]


class Sizes(Protocol):
    """How large the expected batch of each step is, where it grows."""

    def size(self, step: int) -> int: ...

    def first(self, step: int) -> int: ...


class PrivateLoader(Loader):
    """Batches as a guarantee needs them: a pure function of (data set, key, expected batch, step).

    Every rank gets as many rows, the missing ones at weight zero; an empty batch is one row of weight zero a rank.
    """

    def __init__(
        self, dataset: Dataset, *, batch: int, sampling: Sampling, key: bytes, rank: int = 0, world: int = 1, workers: int = 0,
        sizes: Sizes | None = None, views: int = 1, units: Units | None = None,
    ) -> None:  # fmt: skip
        """`batch`: expected units of a step, all `world` ranks together; `key`: what the draws are a function of; `views`: rows of an example,
        one behind the other, each augmented by itself; `units`: which examples are drawn together. None: each is a unit.

        Raises `RecipeError` where the batch is larger than the data, or the data set draws its examples in a way of its own.
        """
        count = len(dataset) if units is None else len(units)
        if batch > count:
            what = "examples" if units is None else "units"
            said = f"{batch} is more than the {count:,} {what} there are: a private batch is a sample of them. Take fewer."
            raise RecipeError([Problem("train.batch", said)])
        for name, what in (("order", "data.sampling"), ("mixer", "data.mix")):
            if getattr(dataset, name, None) is not None:
                said = "chooses examples by their class" if name == "order" else "mixes examples, so that none of them can be clipped alone"
                raise RecipeError([Problem(what, f"{said}, which no guarantee covers. Drop it, or drop privacy.")])
        if sampling == "shuffled" and sizes is not None:
            said = (
                "grows from step to step, and passes of shuffled sampling are of equal batches. Drop it, or take privacy.sampling=poisson."
            )
            raise RecipeError([Problem("train.batch_warmup", said)])
        super().__init__(dataset, batch=batch, seed=0, rank=rank, world=world, workers=workers, sizes=sizes)
        self.sampling, self.key, self.views, self.units, self.count = sampling, key, views, units, count
        self._drawn: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self._order = self._generator("order").permutation(count) if sampling == "shuffled" else None

    @property
    def steps_in_pass(self) -> int:
        """Steps of a whole pass; of shuffled sampling, the examples that do not fill one more are left out."""
        return self.count // self.batch

    def rate(self, step: int) -> float:
        """Probability of a unit to be in step `step` (fixed-size: share of the units; shuffled: of a pass)."""
        return super().size(step) / self.count

    def chosen(self, step: int) -> np.ndarray:
        """Numbers of the units of step `step`, all ranks together, int64, no number twice."""
        known, found = self._drawn
        if known != step:
            found = self._draw(step)
            self._drawn = (step, found)
        return found

    def _draw(self, step: int) -> np.ndarray:
        if self._order is not None:
            at = (step % self.steps_in_pass) * self.batch
            return self._order[at : at + self.batch]
        draws = self._generator(f"sample/{step}")
        expected = super().size(step)
        # Coins for all of them: how many heads, then which. The same distribution, in time of the batch instead of the data.
        size = int(draws.binomial(self.count, expected / self.count)) if self.sampling == "poisson" else expected
        return draws.choice(self.count, size, replace=False, shuffle=False).astype(np.int64)

    def _digest(self, purpose: str) -> int:
        return int.from_bytes(hashlib.blake2b(purpose.encode(), key=self.key[:64], digest_size=32).digest(), "little")

    def _generator(self, purpose: str) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(self._digest(purpose)))

    @property
    def rows_per_unit(self) -> int:
        """Rows of a batch that are one unit's, one behind the other."""
        return self.views * (1 if self.units is None else self.units.most)

    def size(self, step: int) -> int:
        """Units that step `step` really has."""
        return len(self.chosen(step))

    def rows(self, step: int) -> np.ndarray:
        share = max(1, -(-self.size(step) // self.world))
        return np.arange(self.rank * share, (self.rank + 1) * share, dtype=np.int64)

    def expected(self, step: int) -> int:
        """Units that step `step` is expected to have: what is counted and told, for how many it really has is a secret."""
        return super().size(step)

    def _rows_of_units(self, step: int) -> np.ndarray:
        """(U, rows) examples of the units of a step, of all ranks, -1 where a unit has no more; the same draws in every layout."""
        chosen = self.chosen(step)
        if self.units is None:
            return chosen[:, None]
        return self.units.rows(chosen, lambda unit: self._generator(f"rows/{step}/{unit}"))

    def examples_at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, example) of this rank's rows; -1 where there is none to fill a unit's rows, or the rank's."""
        rows_U = self._rows_of_units(step)
        mine = self.rows(step)
        rows_U = np.concatenate([rows_U, np.full((max(0, int(mine[-1]) + 1 - len(rows_U)), rows_U.shape[1]), -1, np.int64)])
        example = np.repeat(rows_U[mine].ravel(), self.views)
        epoch = step // self.steps_in_pass if self.sampling == "shuffled" else step  # augmented anew each time it comes
        view = np.tile(np.arange(self.views), len(example) // self.views)  # each another augmentation of the same example
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
        """(B) int64: what each row's dropout is drawn from, a function of (key, step, example, view) and of nothing else."""
        import torch

        view = np.tile(np.arange(self.views), len(example) // self.views)
        seeds = bits(self._digest(f"draws/{step}") % 2**64, (example * self.views + view).astype(np.uint64))
        return torch.from_numpy(seeds.view(np.int64))
