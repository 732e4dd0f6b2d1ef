"""The recipe's section `privacy`. `private.py` applies it, `accounting/` computes what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from tauon.config import Config, Count
from tauon.privacy.audit import CanaryConfig
from tauon.privacy.clipped import ClippingConfig, FlatClipping
from tauon.privacy.noise import Constant, NoiseConfig
from tauon.privacy.statistics import StatisticsConfig

__all__ = ["Budget", "PrivacyConfig"]


class Budget(Config):
    """Privacy budget of a data set, over all its runs."""

    epsilon: float = Field(gt=0, le=1e6)
    """Never exceeded."""
    delta: float = Field(gt=0, lt=1)
    """Delta at which epsilon is computed; must be below 1 / examples."""


class PrivacyConfig(Config):
    """Differential privacy of the training set: with probability 1 - delta, zeroing out one unit's data changes the odds of any result by at
    most exp(epsilon).
    """

    target_epsilon: float | None = Field(None, gt=0, le=1000)
    """Epsilon of the whole run: the noise is calibrated to it. Give this or `noise_multiplier`."""
    noise_multiplier: float | None = Field(None, gt=0, le=1e6)
    """Standard deviation of the noise, as a multiple of the clipping norm, at the first step; epsilon follows from it."""
    delta: float | None = Field(None, gt=0, lt=1)
    """Probability with which the guarantee may fail; must be below 1 / examples. Default: a tenth of that, at most 1e-5."""
    accountant: Literal["pld", "rdp"] = "pld"
    """`pld`: privacy loss distributions (arXiv:2106.08567), tight; `rdp`: Rényi divergences (arXiv:1702.07476), looser, the only one for
    fixed-size sampling."""
    sampling: Literal["poisson", "fixed-size", "shuffled"] = "poisson"
    """How the examples of a step are drawn. poisson: each independently; fixed-size: exactly `train.batch`, without replacement; shuffled:
    full passes in one order."""
    clipping: ClippingConfig = FlatClipping()
    """How the gradient of each example is clipped: flat, per-layer, automatic, adaptive."""
    noise: NoiseConfig = Constant()
    """Noise schedule over the steps."""
    generator: Literal["secure", "seeded"] = "secure"
    """Where noise and sampling come from: `secure`, a key from the operating system that is deleted when the run ends; `seeded`, the
    recipe's seed: the run can be repeated, and anyone who knows the seed can remove its noise. For tests."""
    budget: Budget | None = None
    """Privacy budget of the data set over all runs: {epsilon: 8, delta: 1e-5}. Set at the first use (it opens the ledger) and fixed from then on;
    a run that would exceed it does not start. Default: the budget of the ledger, or none."""
    ledger: str | None = None
    """Folder of the ledgers. Default: TAUON_LEDGER, else `tauon/ledger` in XDG_DATA_HOME (~/.local/share), one for all runs of a user;
    or the folder `ledger` beside the runs, if the data set has its ledger there."""
    unit: Literal["example", "document", "group"] = "example"
    """Who is protected. example: one row, image, conversation, or sequence of tokens; document (text): all of one document; group (tables):
    all rows of one patient or customer, as data.table.group says. `train.batch` counts units."""
    rows_per_unit: Count = Field(1, ge=1, le=1024)
    """For documents and groups: maximum rows of one unit in a step; from a unit with more, a new sample is drawn each step. Their gradients are
    averaged before clipping. More rows use the data better, at a proportional cost in compute."""
    statistics: StatisticsConfig | None = None
    """For tables with data.normalize=standard and data.bounds: means and deviations of the training rows get noise, and count towards epsilon.
    {}: with the default noise. Default: they are exact, and not covered by the guarantee."""
    views: Count = Field(1, ge=1, le=1024)
    """Augmented views of each example in a step, whose gradients are averaged before clipping (augmentation multiplicity, De et al. 2022,
    arXiv:2204.13650): better gradients at the same epsilon, for a proportional cost in compute. Needs data.augment."""
    audit: CanaryConfig | None = None
    """Plant canaries at random, so that `tauon audit` can measure the leakage. Without target_epsilon and noise_multiplier the run is not
    private: the baseline for a private run."""

    @property
    def promises(self) -> bool:
        """Whether the run is private: with only canaries it is not."""
        return self.raw_value("target_epsilon") is not None or self.raw_value("noise_multiplier") is not None

    def problems(self) -> Iterator[tuple[str, str]]:
        given = [k for k in ("target_epsilon", "noise_multiplier") if self.raw_value(k) is not None]
        canaries = self.raw_value("audit")
        if canaries is not None and canaries.raw_value("kind") == "gradient" and (not given or self.raw_value("sampling") != "poisson"):
            yield (
                "audit.kind",
                "gradient needs a private run with sampling=poisson. Set privacy.sampling=poisson, or another kind.",
            )
        if len(given) != 1 and not (canaries is not None and not given):
            yield "target_epsilon", f"set exactly one of target_epsilon and noise_multiplier, got {' and '.join(given) or 'none'}"
        unit, rows = self.raw_value("unit"), self.raw_value("rows_per_unit")
        if unit == "example" and rows > 1:
            yield (
                "rows_per_unit",
                f"is {rows}, but with unit=example a unit is one row. Set unit=document or unit=group, or remove rows_per_unit.",
            )
        if unit != "example" and canaries is not None:
            yield "audit", f"plants single examples, but the protected unit is {unit}. Remove audit, or set unit=example."
        if self.raw_value("statistics") is not None:
            if not given:
                yield (
                    "statistics",
                    "cost epsilon, but the run is not private. Set target_epsilon or noise_multiplier, or remove statistics.",
                )
            if unit != "example":
                yield (
                    "statistics",
                    f"are private for single rows only, but the protected unit is {unit}. Set data.normalize=bounds, or unit=example.",
                )
        if self.raw_value("sampling") == "fixed-size" and self.raw_value("accountant") != "rdp":
            yield "accountant", "pld is not proven for fixed-size sampling. Set accountant=rdp, or sampling=poisson."
        if self.raw_value("noise").kind_ == "correlated":
            if self.raw_value("sampling") != "shuffled":
                yield (
                    "sampling",
                    f"is {self.raw_value('sampling')}, but correlated noise needs full passes. Set shuffled, or another noise.",
                )
            if self.raw_value("clipping").kind_ == "adaptive" or self.raw_value("clipping").raw_value("final_norm") is not None:
                yield (
                    "clipping",
                    "changes its norm during the run, but correlated noise needs a constant one. Set a clipping with a fixed norm.",
                )
