"""The recipe's section `federate`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from tauon.config import Config, Count, Duration, Fraction
from tauon.federated.simulation.splits import ClientSplit, Even
from tauon.federated.strategies import FedAvg, StrategyConfig

__all__ = ["FederateConfig", "SimulateConfig", "WeightingConfig"]


class WeightingConfig(Config):
    """How much each site counts in the mean."""

    by: Literal["examples", "equal"] = "examples"
    """`examples`: in proportion to its training examples; `equal`: every site the same."""
    max_examples: Count | None = Field(None, ge=1)
    """A site counts as at most this many examples. Left out: not limited."""
    max_gain: float | None = Field(2.0, ge=1)
    """When sites are missing, the part of another one is at most this many times its usual part: a small site cannot move the mean fivefold."""


class SimulateConfig(Config):
    """Sites that are simulated on this machine, each with a part of the recipe's training data."""

    sites: Count = Field(3, ge=1)
    """Number of simulated sites."""
    split: ClientSplit = Even()
    """Who has which examples: even, dirichlet, by-label, by-quantity, by-feature."""
    compare: Literal["auto"] | bool = "auto"
    """Also train each site alone, and one model on all data, from the same weights and for as long, and compare. auto: with up to 20 sites."""


class SecureAggregationConfig(Config):
    """The coordinator learns the sum of the updates of at least three sites, and none of them (Bell et al. 2020)."""

    bound: float = Field(16.0, gt=0)
    """Largest absolute value of a number in an update; a site whose update goes beyond it is left out. Smaller: finer steps, about 2^-31 of it a site."""
    timeout: Duration = Field(60.0, gt=0)
    """Time for each stage in which keys and shares are exchanged."""
    first_use: bool = True
    """Sites pin the identity keys that the coordinator brings when they first join: compare the fingerprints. false: only keys that are in the site's
    folder already. Simulated sites know each other's keys."""


class AdaptiveClipConfig(Config):
    """A clipping norm that follows a quantile of the norms of the updates (Andrew et al. 2021, arXiv:1905.03871). The count behind it is noised too."""

    quantile: float = Field(0.5, gt=0, lt=1)
    """Share of the updates that should be within the norm."""
    rate: float = Field(0.2, gt=0, le=2)
    """How fast the norm moves: by a factor of at most exp(rate) in a round."""


class SiteBudget(Config):
    """Privacy budget of one site, over all runs of its federation."""

    epsilon: float = Field(gt=0, le=1e6)
    """Never exceeded."""
    delta: float = Field(gt=0, lt=1)
    """Delta at which epsilon is computed; must be below 1 / sites."""


class UpdatePrivacyConfig(Config):
    """Differential privacy of each site's whole data: what it sends is clipped, and noise is added."""

    mode: Literal["central", "local", "distributed"] = "central"
    """Who adds the noise: the coordinator, which is trusted; each site, all of it; the sites together, each a share, before secure aggregation."""
    clip_norm: float = Field(gt=0)
    """L2 norm at which an update is clipped; with `adaptive`, that of the first round."""
    adaptive: AdaptiveClipConfig | None = None
    """Move the clipping norm towards a quantile of the norms of the updates: {}. Left out: it stays."""
    target_epsilon: float | None = Field(None, gt=0, le=1000)
    """Epsilon of all rounds together: the noise is calibrated to it. Give this or `noise_multiplier`."""
    noise_multiplier: float | None = Field(None, gt=0)
    """Standard deviation of the noise, in units of what one site can change; epsilon follows from it."""
    delta: float = Field(gt=0, lt=1)
    """Probability with which the guarantee may fail; below 1 / sites."""
    budget: SiteBudget | None = None
    """Privacy budget of a site of this federation over all its runs: {epsilon: 8, delta: 1e-3}. Set at the first use (it opens the ledger) and fixed
    from then on; a run that would exceed it does not start. Left out: the budget of the ledger, or none."""
    ledger: str | None = None
    """Folder of the ledgers. Left out: TAUON_LEDGER, else `tauon/ledger` in XDG_DATA_HOME (~/.local/share)."""
    sampling: Literal["fixed-size", "poisson"] = "fixed-size"
    """With `fraction` below 1: how sites are sampled. Secure aggregation needs fixed-size."""
    contributors: Count | None = Field(None, ge=3)
    """`distributed`: sites whose shares of the noise are counted on in each sum."""
    colluders: Count = Field(0, ge=0)
    """`distributed`: sites that may work with the coordinator."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("mode") != "distributed":
            for name in ("contributors", "colluders"):
                if self.raw_value(name):
                    yield name, f"counts on the shares of noise of mode distributed, but the mode is {self.raw_value('mode')}. Remove it."
        given = [k for k in ("target_epsilon", "noise_multiplier") if self.raw_value(k) is not None]
        if len(given) != 1:
            yield "target_epsilon", f"set exactly one of target_epsilon and noise_multiplier, got {' and '.join(given) or 'none'}"


class FederateConfig(Config):
    """Train where the data is: each site trains on its own examples, and only changes of the weights travel. `train` says what a site does in a round
    (`train.epochs: 1`), and `optim` how; the schedule of its learning rate runs over the rounds.
    """

    rounds: Count = Field(ge=1)
    """Rounds: in each, sampled sites get the weights, train, and send back what changed."""
    strategy: StrategyConfig = FedAvg()
    """How the updates are combined: fedavg, fedprox, fedadam, fedyogi, fedavgm, scaffold, fedbn, krum, trimmed-mean, median, qfedavg."""
    sites: Count | None = Field(None, ge=1)
    """Real sites that may take part, the same number everywhere. Needed for `secure_aggregation` and `privacy` of updates; also what the coordinator waits
    for, and how many `tauon federate RECIPE` simulates."""
    fraction: Fraction = Field(1.0, gt=0, le=1)
    """Share of the sites that is sampled for a round."""
    min_answers: Count = Field(1, ge=1)
    """Good answers that a round needs; with fewer it is repeated with other sites."""
    attempts: Count = Field(5, ge=1)
    """Attempts of a round before training stops with an error."""
    timeout: Duration = Field(600.0, gt=0)
    """Time until the answers of a round are counted; later ones are thrown away. Simulated sites have as long as they need."""
    optimizer: Literal["fresh", "kept"] = "fresh"
    """Whether the state of a site's optimizer starts from zero in each round, or is kept at the site."""
    group: Count | None = Field(None, ge=1)
    """For strategies that compare updates (krum, trimmed-mean, median): compare the sums of groups of at least this many sites instead of single updates."""
    weighting: WeightingConfig = WeightingConfig()
    """How much each site counts."""
    max_norm: float | None = Field(None, gt=0)
    """An update with a larger L2 norm is refused; under secure aggregation by its own site, and the mean is checked. Left out: not limited."""
    secure_aggregation: SecureAggregationConfig | None = None
    """Hide single updates from the coordinator: {}. Needs `weighting.max_examples`, or `weighting.by: equal`. Left out: it sees each update."""
    privacy: UpdatePrivacyConfig | None = None
    """Differential privacy of sites: {mode: central, clip_norm: 1, target_epsilon: 8, delta: 1e-3}. That of single examples is the section `privacy`."""
    simulate: SimulateConfig | None = None
    """Simulate the sites here, each with a part of the training data: {sites: 5, split: {kind: dirichlet, alpha: 0.5}}."""

    def problems(self) -> Iterator[tuple[str, str]]:
        strategy = self.raw_value("strategy")
        if strategy.asynchronous:
            yield "strategy", f"{strategy.kind_} applies updates as they arrive, without rounds: it works from Python only. Use fedavg."
        privacy, secure, simulate = (self.raw_value(k) for k in ("privacy", "secure_aggregation", "simulate"))
        if privacy is not None and privacy.raw_value("mode") == "distributed" and secure is None:
            yield "privacy.mode", "is distributed, whose shares of noise protect only a secure sum. Add secure_aggregation: {}."
        if self.raw_value("group") is not None and not strategy.single_updates:
            message = (
                f"has no effect with {strategy.kind_}, which takes one sum over all sites. Remove it, or use krum, trimmed-mean or median."
            )
            yield "group", message
        yield from self._weights_without_effect()
        if secure is not None and privacy is not None and "bound" in secure.model_fields_set:
            yield "secure_aggregation.bound", "has no effect with privacy, whose clip_norm bounds the updates. Remove it."
        if simulate is not None and simulate.raw_value("compare") is True and simulate.raw_value("sites") > 20:
            message = f"would train {simulate.raw_value('sites')} more models, one for each site. Use at most 20 sites, or remove it."
            yield "simulate.compare", message

    def _weights_without_effect(self) -> Iterator[tuple[str, str]]:
        strategy, privacy, group = (self.raw_value(k) for k in ("strategy", "privacy", "group"))
        given = self.raw_value("weighting").model_fields_set
        if not strategy.weighted and group is None:
            for name in sorted(given):
                yield f"weighting.{name}", f"has no effect with {strategy.kind_}, in which every site counts alike. Remove it."
        elif "max_gain" in given and (strategy.single_updates or privacy is not None):
            why = "privacy, whose sum is divided by a fixed number" if privacy is not None else f"{strategy.kind_}, which compares updates"
            yield "weighting.max_gain", f"has no effect with {why}. Remove it."
