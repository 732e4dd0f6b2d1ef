"""What private training adds to a run: the loader, the noise (calibrated before the first step), the private job, the accounting.

The recipe's `privacy` section is resolved into numbers here; each derived number is reported with the reason.
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
from tauon.privacy.proposals import propose
from tauon.privacy.published import fitted_without_noise
from tauon.privacy.sampling import PrivateLoader, SamplingScheme
from tauon.privacy.statistics import draw_statistics, scaled_columns
from tauon.privacy.units import protect
from tauon.train import TrainJob
from tauon.types import Batch, Dataset

__all__ = ["PrivateRun", "refuse_combinations"]


def refuse_combinations(data: Any, task: Any, optim: Any, parallel: Any) -> Iterator[tuple[str, str]]:
    """(field, message) for each setting that does not work with private training. Checks only what needs no data."""
    if parallel.kind_ in ("parameter-server", "local-sgd", "diloco"):
        yield (
            "parallel.kind",
            f"{parallel.kind_} does not work with privacy: it does not exchange one private gradient per step. Set auto, replicate, shard or tensor.",
        )
    for name in ("pipeline", "context"):
        if (parallel.__dict__.get(name) or 1) > 1:
            yield (
                f"parallel.{name}",
                "splits an example over processes, so that its gradient cannot be clipped. Set parallel.kind to replicate, shard or tensor.",
            )
    if parallel.__dict__.get("sequence_parallel"):
        yield "parallel.sequence_parallel", "splits an example over processes, so that its gradient cannot be clipped. Remove it."
    if parallel.__dict__.get("compression", "none") != "none":
        yield "parallel.compression", "compresses DDP's gradients, and private gradients do not pass through DDP. Set none."
    if task.input_kind == "pairs":
        yield (
            "privacy",
            f"task {task.kind_} (preference pairs) has no private version. Use the task instruction-tuning.",
        )
    if data.raw_value("mix") is not None:
        yield "data.mix", "mixes examples, so that they cannot be clipped one by one. Remove it, or remove privacy."
    if optim.full_batch:
        yield (
            "optim.kind",
            f"{optim.kind_} uses the full training set at every step. Set sgd, and the largest train.batch that you can afford.",
        )


def batches_of(dataset: Dataset, rows: int) -> Iterator[Batch]:
    """Yield all examples in order."""
    for start in range(0, len(dataset), rows):
        yield dataset.batch(np.arange(start, min(len(dataset), start + rows), dtype=np.int64))


class Sizes(Protocol):
    def size(self, step: int) -> int: ...

    def first(self, step: int) -> int: ...


class PrivateRun:
    """Resolved settings of one private run: the same on every rank, a function of the recipe, the size of the data and the key."""

    def __init__(self, config: PrivacyConfig, *, key: bytes, train: Dataset, preprocess: Mapping[str, Any] | None = None) -> None:
        """`key`: seed of noise and sampling; `train`: the training split; `preprocess`: of `DataSplits`. Raises `RecipeError` if delta is too
        large, or if statistics are asked for and the table has no column of numbers.
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
        self.batch: int
        self.multiplier: float
        self.noise: NoisePlan
        self.loader: PrivateLoader
        self.planned: Guarantee

    def load(self, *, batch: int, rank: int, world: int, workers: int, sizes: Sizes | None) -> PrivateLoader:
        """Return the loader that samples as the guarantee requires."""
        self.batch = batch
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

    def resolve(self, steps: int) -> list[tuple[str, Any, str]]:
        """Calibrate the noise for a run of `steps` steps; return (setting, value, reason) of everything that was derived."""
        config = self.config
        derived: list[tuple[str, Any, str]] = []
        if config.delta is None:
            noun = "examples" if self.protected.units is None else "units"
            derived.append(("privacy.delta", self.delta, f"a tenth of 1 / {self.units:,} {noun}, at most 1e-5"))
        if self.protected.units is not None:
            reason = (
                f"from the recipe; {self.protected.units.cut:,} of {self.units:,} units have more rows, a new sample is drawn each step"
            )
            derived.append(("privacy.rows_per_unit", config.rows_per_unit, reason))
        derived += self._resolve_statistics()
        multiplier = config.noise_multiplier
        if config.target_epsilon is not None:
            multiplier = calibrate(
                lambda z: self._releases(self._noise(z, steps), steps),
                target_epsilon=config.target_epsilon, delta=self.delta, accountant=config.accountant,
            )  # fmt: skip
            derived.append(
                (
                    "privacy.noise_multiplier",
                    round(multiplier, 4),
                    f"the smallest for epsilon {config.target_epsilon:g} after {steps:,} steps",
                )
            )
        assert multiplier is not None
        self.multiplier = multiplier
        self.noise = self._noise(multiplier, steps)
        self.planned = self.account(self._releases(self.noise, steps))
        derived.append(
            (
                "privacy.epsilon",
                round(self.planned.epsilon, 4),
                f"planned, for all {steps:,} steps, at delta {self.delta:g} ({config.accountant})",
            )
        )
        return derived + self._proposals(steps)

    def _proposals(self, steps: int) -> list[tuple[str, Any, str]]:
        """Return what would probably be better for this noise, with the reason; only settings that are far from it."""
        found = propose(self.units, self.batch, steps, self.multiplier)
        return [(f"privacy: consider {key}", value, reason) for key, value, reason in found]

    def _resolve_statistics(self) -> list[tuple[str, Any, str]]:
        """Cost of the noisy means and deviations alone. Raises `RecipeError` if it is the whole budget or more."""
        config = self.config
        if config.statistics is None:
            return []
        noise = config.statistics.noise
        alone = epsilon([config.statistics.release], self.delta, accountant=config.accountant)
        if config.target_epsilon is not None and alone >= config.target_epsilon:
            message = (
                f"{noise:g} costs epsilon {alone:.3g} at delta {self.delta:g} alone, but the whole run may cost {config.target_epsilon:g}. "
                f"Set it to about {noise * 10 * alone / config.target_epsilon:.2g}, which costs a tenth of that, or raise target_epsilon."
            )
            raise RecipeError([Problem("privacy.statistics.noise", message)])
        reason = (
            f"one noisy answer for {self.columns} columns: epsilon {alone:.3g} alone, means off by {self._error():.2%} of half their bounds"
        )
        return [("privacy.statistics.noise", noise, reason)]

    def _error(self) -> float:
        """Standard deviation of the noise in a column's mean, over half its bounds."""
        assert self.config.statistics is not None
        return math.sqrt(1.25 * self.columns) * self.config.statistics.noise / self.units

    def draw_statistics(self, folder: Path, splits: DataSplits) -> dict[str, Any]:
        """Draw means and deviations of the columns with noise from the run's key, and save them in `folder`. Reserve their cost first."""
        assert self.config.statistics is not None
        # repeats=True: a resume asks the same question about the same rows, and the first answer is kept
        source = NoiseSource(self.key, secret=self.config.generator == "secure", repeats=True)
        return draw_statistics(folder, splits, self.config.statistics, source)

    def _noise(self, multiplier: float, steps: int) -> NoisePlan:
        return NoisePlan(self.config.noise, multiplier, steps)

    def _releases(self, noise: NoisePlan, steps: int, done: int = 0) -> list[Release]:
        """All releases of a run of `steps` steps: the statistics, the steps, and the noisy queries of adaptive noise and clipping."""
        planned = noise.releases(self.rates(steps), self.config.sampling, done=done)
        spends = self.config.clipping.spends
        first = [] if self.config.statistics is None else [self.config.statistics.release]
        rest = [r if r.sampling in ("full", "known") else replace(r, noise_multiplier=spends(r.noise_multiplier)) for r in planned]
        return [*first, *rest]

    def releases(self, steps: int, done: int | None = None) -> list[Release]:
        """Releases of `steps` steps: the first `done` (None: all) as they were made, the others at their worst case."""
        return self._releases(self.noise, steps, steps if done is None else done)

    def rates(self, steps: int) -> list[tuple[float, int]]:
        """(sampling rate, number of consecutive steps with it), in the order of the steps."""
        runs: list[tuple[float, int]] = []
        for step in range(steps):
            rate = self.loader.rate(step)
            if runs and runs[-1][0] == rate:
                runs[-1] = (rate, runs[-1][1] + 1)
            else:
                runs.append((rate, 1))
        return runs

    def make_private(self, job: TrainJob, validation: Dataset | None = None, canaries: Canaries | None = None) -> TrainJob:
        """Make `job` private. `canaries`: planted for an audit; only gradient canaries are used here."""
        source = NoiseSource(self.key, secret=self.config.generator == "secure")
        job.policy = replace(job.policy, examples_at=self.loader.expected)
        held_out = None if validation is None else partial(batches_of, validation, job.policy.microbatch)
        gradient_canaries = None if canaries is None or canaries.kind != "gradient" else self._gradients(job, canaries)
        return make_private(
            job, self.config.clipping, self.noise, source, expected=lambda step: self.loader.rate(step) * self.units, validation=held_out,
            canaries=gradient_canaries, rows_per_unit=self.loader.rows_per_unit,
        )  # fmt: skip

    def _gradients(self, job: TrainJob, canaries: Canaries) -> GradientCanaries:
        """Canaries that join each step like examples, and are searched for in its noised sum."""
        if job.mesh.world.size > 1:
            message = "gradient needs the complete sum in one process, but this run has several. Start one process, or set mislabelled."
            raise RecipeError([Problem("privacy.audit.kind", message)])
        sizes = {n: p.numel() for n, p in job.model.named_parameters() if p.requires_grad}
        return GradientCanaries.of(canaries, sizes, rate=self.loader.rate)

    def record(self, steps: int) -> dict[str, Any]:
        """`privacy.json`: the guarantee of `steps` steps, and the settings it comes from. JSON values only."""
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
        """The guarantee of these releases."""
        seeded = self.config.generator == "seeded"
        origin = (
            "Noise and sampling come from the recipe's seed: anyone who knows it can remove the noise. This is for tests, not a guarantee."
            if seeded
            else "Noise and sampling come from a key from the operating system, which is in no checkpoint and is deleted after the run."
        )
        stated = ["Bounds of the columns were stated without looking at the data."] if "limits" in self._scaled_by else []
        fitted = (
            [f"In this run's checkpoints without noise, because the model needs it: {'; '.join(self._fitted)}."] if self._fitted else []
        )
        return guarantee(
            releases, self.delta, accountant=self.config.accountant, unit=self.unit, examples=self.units, assumptions=[origin, *stated],
            not_covered=[*fitted, *uncovered(self._scaling())],
        )  # fmt: skip

    def _scaling(self) -> Scaling:
        if self.config.statistics is not None:
            return "noisy"
        return "public" if self._public_targets and self._scaled_by.get("kind") in ("none", "unit", "bounds") else "fitted"
