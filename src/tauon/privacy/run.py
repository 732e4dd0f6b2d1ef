"""What a private training run adds to a plain one: its loader, its noise (calibrated before the first step), its job, its account.

The recipe's section says what is wanted; here it becomes numbers, and each number that nobody wrote is told with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tauon.config import dump
from tauon.data import DataSplits
from tauon.errors import Problem, RecipeError
from tauon.privacy.accounting import Guarantee, Release, Scaling, calibrate, epsilon, guarantee, refuse_delta, uncovered
from tauon.privacy.audit import Canaries, GradientCanaries
from tauon.privacy.config import PrivacyConfig
from tauon.privacy.noise import NoisePlan, NoiseSource
from tauon.privacy.private import make_private
from tauon.privacy.published import fitted_without_noise
from tauon.privacy.sampling import PrivateLoader, SamplingScheme
from tauon.privacy.statistics import draw_statistics, scaled_columns
from tauon.privacy.units import protect
from tauon.train import TrainJob
from tauon.types import Batch, Dataset

__all__ = ["PrivateRun", "refuse_combinations"]


def refuse_combinations(data: Any, task: Any, optim: Any, parallel: Any) -> Iterator[tuple[str, str]]:
    """(field, message) of settings of a recipe that cannot be private, as far as it can be told without the data."""
    if parallel.kind_ in ("parameter-server", "local-sgd", "diloco"):
        yield (
            "parallel.kind",
            f"{parallel.kind_} exchanges something else than one private gradient a step. Take auto, replicate, shard or tensor.",
        )
    for name in ("pipeline", "context"):
        if (parallel.__dict__.get(name) or 1) > 1:
            yield (
                f"parallel.{name}",
                "cuts an example over processes, whose parts cannot be clipped alone. Take replicate, shard or tensor.",
            )
    if parallel.__dict__.get("sequence_parallel"):
        yield "parallel.sequence_parallel", "cuts an example over processes, whose parts cannot be clipped alone. Drop it."
    if parallel.__dict__.get("compression", "none") != "none":
        yield "parallel.compression", "is of DDP's gradients, and private ones are summed after clipping, without it. Set none."
    if task.input_kind == "pairs":
        yield (
            "privacy",
            f"task {task.kind_} compares an example with a reference model's answers; it has no private form here. Take instruction-tuning.",
        )
    if data.raw_value("mix") is not None:
        yield "data.mix", "mixes examples, so that none of them can be clipped alone. Drop it, or drop privacy."
    if optim.full_batch:
        yield "optim.kind", f"{optim.kind_} takes the whole training set at every step. Take sgd and the batch that you can afford."


def batches_of(dataset: Dataset, rows: int) -> Iterator[Batch]:
    """All examples in order."""
    for start in range(0, len(dataset), rows):
        yield dataset.batch(np.arange(start, min(len(dataset), start + rows), dtype=np.int64))


class Sizes(Protocol):
    def size(self, step: int) -> int: ...

    def first(self, step: int) -> int: ...


class PrivateRun:
    """The choices of one private run. Made on every rank alike: all of it is a function of the recipe, the data's size and the key."""

    def __init__(self, config: PrivacyConfig, *, key: bytes, train: Dataset, preprocess: Mapping[str, Any] | None = None) -> None:
        """`key`: what noise and sampling are drawn from; `train`: the training part; `preprocess`: how it was made (`DataSplits`). Raises
        `RecipeError` for a delta too large, and for statistics of no column.
        """
        self.config, self.key = config, key
        self._scaled_by: Mapping[str, Any] = (preprocess or {}).get("normalize", {})
        self._fitted = fitted_without_noise(preprocess or {}, noisy_scaling=config.statistics is not None)
        self._public_targets = (preprocess or {}).get("target_scale", {"public": True})["public"]
        self.columns = scaled_columns(preprocess or {}) if config.statistics is not None else 0
        self.protected = protect(train, config.unit, config.rows_per_unit)
        self.units, self.unit = len(self.protected), self.protected.name
        self.delta = config.delta if config.delta is not None else min(1e-5, 0.1 / self.units)
        try:
            refuse_delta(self.delta, self.units)
        except RecipeError as err:
            raise RecipeError([Problem("privacy.delta", str(err))]) from None
        self.multiplier: float
        self.noise: NoisePlan
        self.loader: PrivateLoader
        self.planned: Guarantee

    def load(self, *, batch: int, rank: int, world: int, workers: int, sizes: Sizes | None) -> PrivateLoader:
        """The loader that samples as the guarantee says."""
        self.loader = PrivateLoader(
            self.protected.dataset,
            batch=batch,
            scheme=SamplingScheme(self.config.sampling, self.key, views=self.config.views, units=self.protected.units),
            rank=rank,
            world=world,
            workers=workers,
            sizes=sizes,
        )
        return self.loader

    def settle(self, steps: int) -> list[tuple[str, Any, str]]:
        """Find the noise for a run of so many steps; (setting, value, reason) of everything that was derived."""
        config = self.config
        told: list[tuple[str, Any, str]] = []
        if config.delta is None:
            what = "examples" if self.protected.units is None else "units"
            told.append(("privacy.delta", self.delta, f"a tenth of 1 / {self.units:,} {what}, at most 1e-5"))
        if self.protected.units is not None:
            said = f"asked for; {self.protected.units.cut:,} of {self.units:,} units have more, of which so many are drawn anew each step"
            told.append(("privacy.rows_per_unit", config.rows_per_unit, said))
        told += self._settle_statistics()
        given = config.noise_multiplier
        if config.target_epsilon is not None:
            given = calibrate(
                lambda z: self._releases(self._noise(z, steps), steps),
                target_epsilon=config.target_epsilon, delta=self.delta, accountant=config.accountant,
            )  # fmt: skip
            told.append(
                ("privacy.noise_multiplier", round(given, 4), f"the least for epsilon {config.target_epsilon:g} after {steps:,} steps")
            )
        assert given is not None
        self.multiplier = given
        self.noise = self._noise(given, steps)
        self.planned = self.account(self._releases(self.noise, steps))
        told.append(
            ("privacy.epsilon", round(self.planned.epsilon, 4), f"all {steps:,} steps, at delta {self.delta:g} ({config.accountant})")
        )
        return told

    def _settle_statistics(self) -> list[tuple[str, Any, str]]:
        """What the means and deviations of columns cost by themselves: refused where that is all there is to spend."""
        config = self.config
        if config.statistics is None:
            return []
        noise = config.statistics.noise
        alone = epsilon([config.statistics.release], self.delta, accountant=config.accountant)
        if config.target_epsilon is not None and alone >= config.target_epsilon:
            message = (
                f"{noise:g} costs epsilon {alone:.3g} at delta {self.delta:g} by itself, and the whole run may cost {config.target_epsilon:g}. "
                f"Take about {noise * 10 * alone / config.target_epsilon:.2g}, which costs a tenth of that, or raise target_epsilon."
            )
            raise RecipeError([Problem("privacy.statistics.noise", message)])
        said = (
            f"one answer for {self.columns} columns: epsilon {alone:.3g} by itself, means off by {self._error():.2%} of half their bounds"
        )
        return [("privacy.statistics.noise", noise, said)]

    def _error(self) -> float:
        """Standard deviation of the noise in a column's mean, over half its bounds."""
        assert self.config.statistics is not None
        return math.sqrt(1.25 * self.columns) * self.config.statistics.noise / self.units

    def draw_statistics(self, folder: Path, splits: DataSplits) -> dict[str, Any]:
        """Means and deviations of the columns, with noise from the run's key; in `folder` they stay. Only once they are reserved."""
        assert self.config.statistics is not None
        source = NoiseSource(
            self.key, secret=self.config.generator == "secure", repeats=True
        )  # the same rows each time, and kept at the first
        return draw_statistics(folder, splits, self.config.statistics, source)

    def _noise(self, multiplier: float, steps: int) -> NoisePlan:
        return NoisePlan(self.config.noise, multiplier, steps)

    def _releases(self, noise: NoisePlan, steps: int, done: int = 0) -> list[Release]:
        """All that a run of `steps` steps tells: the statistics, the steps, what noise and clipping look at beside."""
        found = noise.releases(self.rates(steps), self.config.sampling, done=done)
        spends = self.config.clipping.spends
        first = [] if self.config.statistics is None else [self.config.statistics.release]
        rest = [r if r.sampling in ("full", "known") else replace(r, noise_multiplier=spends(r.noise_multiplier)) for r in found]
        return [*first, *rest]

    def releases(self, steps: int, done: int | None = None) -> list[Release]:
        """What `steps` steps tell, of which `done` were made (None: all) and the rest is the worst that can come."""
        return self._releases(self.noise, steps, steps if done is None else done)

    def rates(self, steps: int) -> list[tuple[float, int]]:
        """(probability of an example to be in a step, how many such steps), in their order."""
        found: list[tuple[float, int]] = []
        for step in range(steps):
            rate = self.loader.rate(step)
            if found and found[-1][0] == rate:
                found[-1] = (rate, found[-1][1] + 1)
            else:
                found.append((rate, 1))
        return found

    def make_private(self, job: TrainJob, validation: Dataset | None = None, canaries: Canaries | None = None) -> TrainJob:
        """The job, private. `canaries`: what an audit planted; only those that are gradients matter here."""
        source = NoiseSource(self.key, secret=self.config.generator == "secure")
        job.policy = replace(job.policy, examples_at=self.loader.expected)
        held_out = None if validation is None else partial(batches_of, validation, job.policy.microbatch)
        watched = None if canaries is None or canaries.kind != "gradient" else self._gradients(job, canaries)
        return make_private(
            job, self.config.clipping, self.noise, source, expected=lambda step: self.loader.rate(step) * self.units, validation=held_out,
            canaries=watched, rows_per_unit=self.loader.rows_per_unit,
        )  # fmt: skip

    def _gradients(self, job: TrainJob, canaries: Canaries) -> GradientCanaries:
        """Canaries that take part in each step as examples do, and are looked for in its sum."""
        if job.mesh.world.size > 1:
            message = "gradient needs the whole sum, and several processes hold it in parts. Start one process, or take mislabelled."
            raise RecipeError([Problem("privacy.audit.kind", message)])
        sizes = {n: p.numel() for n, p in job.model.named_parameters() if p.requires_grad}
        return GradientCanaries.of(canaries, sizes, rate=self.loader.rate)

    def record(self, steps: int) -> dict[str, Any]:
        """`privacy.json`: what `steps` steps of the run promise, and how it was reached. JSON values only."""
        config = self.config
        return {
            "guarantee": self.account(self.releases(steps)).to_json(),
            "planned_epsilon": self.planned.epsilon,
            "steps": steps,
            "units": self.units,
            "rows_per_unit": config.rows_per_unit,
            "expected_batch": self.loader.batch,
            "sampling": config.sampling,
            "noise_multiplier": self.multiplier,
            "noise": config.noise.kind_,
            "clipping": dump(config.clipping),
            "generator": config.generator,
        } | (
            {}
            if config.statistics is None
            else {"statistics": {"noise": config.statistics.noise, "columns": self.columns, "error": self._error()}}
        )

    def account(self, releases: list[Release]) -> Guarantee:
        """What these releases promise."""
        seeded = self.config.generator == "seeded"
        said = (
            "Noise and sampling come from the recipe's seed: whoever knows it can take the noise off. This is for tests, not a promise."
            if seeded
            else "Noise and sampling come from a key of the operating system that was never in a checkpoint and is thrown away."
        )
        stated = ["Bounds of the columns were stated without looking at the data."] if "limits" in self._scaled_by else []
        held = [f"In this run's checkpoints without noise, because the model needs it: {'; '.join(self._fitted)}."] if self._fitted else []
        return guarantee(
            releases, self.delta, accountant=self.config.accountant, unit=self.unit, examples=self.units, assumptions=[said, *stated],
            not_covered=[*held, *uncovered(self._scaling())],
        )  # fmt: skip

    def _scaling(self) -> Scaling:
        if self.config.statistics is not None:
            return "noisy"
        return "public" if self._public_targets and self._scaled_by.get("kind") in ("none", "unit", "bounds") else "fitted"
