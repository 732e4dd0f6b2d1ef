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


class FederateConfig(Config):
    """Train where the data is: each site trains on its own examples, and only changes of the weights travel. `train` says what a site does in a round
    (`train.epochs: 1`), and `optim` how; the schedule of its learning rate runs over the rounds.
    """

    rounds: Count = Field(ge=1)
    """Rounds: in each, sampled sites get the weights, train, and send back what changed."""
    strategy: StrategyConfig = FedAvg()
    """How the updates are combined: fedavg, fedprox, fedadam, fedyogi, fedavgm, scaffold, fedbn, krum, trimmed-mean, median, qfedavg."""
    fraction: Fraction = Field(1.0, gt=0, le=1)
    """Share of the sites that is sampled for a round."""
    min_answers: Count = Field(1, ge=1)
    """Good answers that a round needs; with fewer it is repeated with other sites."""
    attempts: Count = Field(5, ge=1)
    """Attempts of a round before training stops with an error."""
    timeout: Duration = Field(600.0, gt=0)
    """Time until the answers of a round are counted; later ones are thrown away."""
    optimizer: Literal["fresh", "kept"] = "fresh"
    """Whether the state of a site's optimizer starts from zero in each round, or is kept at the site."""
    group: Count | None = Field(None, ge=1)
    """For strategies that compare updates: compare the sums of groups of at least this many sites instead of single updates."""
    weighting: WeightingConfig = WeightingConfig()
    """How much each site counts."""
    max_norm: float | None = Field(None, gt=0)
    """An update with a larger L2 norm is refused. Left out: not limited."""
    simulate: SimulateConfig | None = None
    """Simulate the sites here, each with a part of the training data: {sites: 5, split: {kind: dirichlet, alpha: 0.5}}."""

    def problems(self) -> Iterator[tuple[str, str]]:
        strategy = self.raw_value("strategy")
        if strategy.asynchronous:
            yield "strategy", f"{strategy.kind_} applies updates as they arrive, without rounds: it works from Python only. Use fedavg."
        simulate = self.raw_value("simulate")
        if simulate is not None and simulate.raw_value("compare") is True and simulate.raw_value("sites") > 20:
            message = f"would train {simulate.raw_value('sites')} more models, one for each site. Use at most 20 sites, or remove it."
            yield "simulate.compare", message
