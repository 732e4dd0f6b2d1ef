"""What a recipe says of privacy. Only choices: `private.py` acts on them, `accounting/` counts what they cost."""

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
    """What all runs on a data set together may tell."""

    epsilon: float = Field(gt=0, le=1e6)
    """Never exceeded."""
    delta: float = Field(gt=0, lt=1)
    """At which epsilon is counted; must be below 1 / examples."""


class PrivacyConfig(Config):
    """Differential privacy of the training set: with probability 1 - delta, setting one's data to nothing changes the odds of any result by no
    more than exp(epsilon).
    """

    target_epsilon: float | None = Field(None, gt=0, le=1000)
    """Epsilon of the whole run: the noise is calibrated to it. Give this or `noise_multiplier`."""
    noise_multiplier: float | None = Field(None, gt=0, le=1e6)
    """Standard deviation of the noise, as a multiple of the clipping norm, at the first step; epsilon follows from it."""
    delta: float | None = Field(None, gt=0, lt=1)
    """Probability with which the promise may fail; must be below 1 / examples. Left out: a tenth of that, at most 1e-5."""
    accountant: Literal["pld", "rdp"] = "pld"
    """`pld`: privacy loss distributions (arXiv:2106.08567), tight; `rdp`: Rényi moments (arXiv:1702.07476), looser, and all that is known for
    fixed-size sampling."""
    sampling: Literal["poisson", "fixed-size", "shuffled"] = "poisson"
    """How a step's examples are drawn: each by a coin of its own; exactly `train.batch` of them; in whole passes of one order."""
    clipping: ClippingConfig = FlatClipping()
    """How far one example may move the gradient: flat, per-layer, automatic, adaptive."""
    noise: NoiseConfig = Constant()
    """How the noise goes from step to step."""
    generator: Literal["secure", "seeded"] = "secure"
    """Where noise and sampling come from: `secure`, a key from the operating system that is thrown away when the run ends; `seeded`, the
    recipe's seed, so that a run can be repeated - and its noise taken off again by whoever knows the seed. For tests."""
    budget: Budget | None = None
    """Of the data set, over all runs: {epsilon: 8, delta: 1e-5}. Opens its ledger at the first use, and stays; a run that would exceed it does
    not start. Left out: the budget that was set, or none."""
    ledger: str | None = None
    """Folder of the ledgers. Left out: TAUON_LEDGER, else `tauon/ledger` in XDG_DATA_HOME (~/.local/share), one for all runs of a user; but
    `ledger` beside the runs, where the data set has its account there."""
    unit: Literal["example", "document", "group"] = "example"
    """Who is protected. example: one row, picture, conversation, or sequence of tokens; document (text): all of one document; group (tables):
    all rows of one patient or customer, as data.table.group says. `train.batch` counts units."""
    rows_per_unit: Count = Field(1, ge=1, le=1024)
    """Of documents and groups: at most so many of one's rows take part in a step; of those with more, so many are drawn anew each time. Their
    gradients are averaged before clipping. More use the data better, at so many times the computing."""
    statistics: StatisticsConfig | None = None
    """Of tables with data.normalize=standard and data.bounds: means and deviations of the training rows come with noise, and are part of what
    epsilon counts. {}: with the default noise. Left out: they are exact, and not covered."""
    views: Count = Field(1, ge=1, le=1024)
    """Augmented views of each example in a step, whose gradients are averaged before clipping (augmentation multiplicity, De et al. 2022,
    arXiv:2204.13650): better gradients at the same epsilon, for so many times the computing. Needs data.augment."""
    audit: CanaryConfig | None = None
    """Plant examples by coins, so that `tauon audit` can prove something. With neither epsilon nor noise given, nothing is private: the run that a
    private one is compared with."""

    @property
    def promises(self) -> bool:
        """Whether anything is: with canaries alone a run is as any other."""
        return self.raw_value("target_epsilon") is not None or self.raw_value("noise_multiplier") is not None

    def problems(self) -> Iterator[tuple[str, str]]:
        given = [k for k in ("target_epsilon", "noise_multiplier") if self.raw_value(k) is not None]
        canaries = self.raw_value("audit")
        if canaries is not None and canaries.raw_value("kind") == "gradient" and (not given or self.raw_value("sampling") != "poisson"):
            yield (
                "audit.kind",
                "gradient takes part in private steps whose examples are drawn by coins. Take sampling=poisson, or another kind.",
            )
        if len(given) != 1 and not (canaries is not None and not given):
            yield "target_epsilon", f"give exactly one of target_epsilon, noise_multiplier; got {' and '.join(given) or 'none'}"
        unit, rows = self.raw_value("unit"), self.raw_value("rows_per_unit")
        if unit == "example" and rows > 1:
            yield "rows_per_unit", f"{rows}, and an example is one row. Take unit=document or unit=group, or drop it."
        if unit != "example" and canaries is not None:
            yield "audit", f"plants examples, and {unit}s are protected here. Drop it, or take unit=example."
        if self.raw_value("statistics") is not None:
            if not given:
                yield "statistics", "cost epsilon, and nothing is promised here. Give target_epsilon or noise_multiplier, or drop them."
            if unit != "example":
                yield (
                    "statistics",
                    f"are proven for single rows, and {unit}s are protected here. Take data.normalize=bounds, or unit=example.",
                )
        if self.raw_value("sampling") == "fixed-size" and self.raw_value("accountant") != "rdp":
            yield "accountant", "pld is not proven for fixed-size sampling. Take accountant=rdp, or sampling=poisson."
        if self.raw_value("noise").kind_ == "correlated":
            if self.raw_value("sampling") != "shuffled":
                yield (
                    "sampling",
                    f"correlated noise is for whole passes, got {self.raw_value('sampling')}. Take shuffled, or another noise.",
                )
            if self.raw_value("clipping").kind_ == "adaptive" or self.raw_value("clipping").raw_value("final_norm") is not None:
                yield "clipping", "changes its bound, and correlated noise takes off in one step what it put on in another. Take one bound."
