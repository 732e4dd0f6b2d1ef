"""How many rounds a federated run has, and what a round is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tauon.errors import Problem, RecipeError
from tauon.federated.updates import Limits, Weighting
from tauon.optim import Constant, ScheduleConfig

__all__ = ["Rounds"]


@dataclass(frozen=True)
class Rounds:
    """How many rounds a federated run has, and what a round is."""

    count: int
    """Rounds."""
    steps: int | None = None
    """Local steps of each site in a round. Set this or `epochs`."""
    epochs: float | None = None
    """Passes of each site over its examples in a round."""
    fraction: float = 1.0
    """Share of the sites that is sampled for a round."""
    min_answers: int = 1
    """Good answers that a round needs; with fewer it is repeated with other sites."""
    attempts: int = 5
    """Attempts of a round before the run stops with an error."""
    timeout: float = 600.0
    """Seconds until the answers of a round are counted."""
    wait: float = 0.0
    """Seconds to wait for sites when fewer than `min_answers` have joined."""
    seed: int = 0
    """Of the sampling of sites."""
    schedule: ScheduleConfig = field(default_factory=lambda: Constant(warmup=0))
    """Factor of the sites' learning rate, over rounds."""
    optimizer: Literal["fresh", "kept"] = "fresh"
    """Whether the state of each site's optimizer starts from zero in each round."""
    group: int | None = None
    """For strategies that compare updates: compare the sums of groups of at least this many sites, instead of single updates."""
    weighting: Weighting = field(default_factory=Weighting)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise RecipeError([Problem("federate", "set exactly one of steps and epochs: how long sites train in a round.")])
        if self.count < 1 or not 0 < self.fraction <= 1 or self.min_answers < 1 or self.attempts < 1:
            raise RecipeError(
                [Problem("federate", "rounds, min_answers and attempts must be at least 1, and fraction above 0 and at most 1.")]
            )

    def sampled(self, sites: int) -> int:
        """Return the number of sites that are sampled of so many."""
        return max(1, min(sites, max(self.min_answers, round(self.fraction * sites))))
