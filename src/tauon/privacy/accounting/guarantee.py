"""`Guarantee`: epsilon and delta of a run, its unit, the assumptions, and what is not covered. Saved in the run and shown in the report.

Also two charges beside the steps of a run: choosing the best of several trials (`charge_search`), and guarantees that cannot be composed as
releases (`compose_basic`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tauon.errors import RecipeError
from tauon.privacy.accounting.loss import Accountant, dp_accounting, epsilons, event_of, trade_off
from tauon.privacy.accounting.release import ZERO_OUT, Release, as_releases, plain, refuse_delta, relation_of

__all__ = ["NOT_COVERED", "Guarantee", "Scaling", "charge_search", "compose_basic", "guarantee", "uncovered"]

ALPHAS = (0.0, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.05, *(round(0.1 * i, 1) for i in range(1, 10)), 0.95, 1.0)
"""False-positive rates of the saved curve."""

Scaling = Literal["fitted", "public", "noisy"]
"""Source of the scaling statistics: fitted on the data; public; or a noisy answer among the releases."""

LEARNED = "Vocabularies, categories, class weights and imputed values fitted on the data without noise; "
FITTED: dict[Scaling, str] = {
    "fitted": "Statistics, vocabularies and categories fitted on the data without noise; state public values, or fit them privately.",
    "public": f"{LEARNED}state public values. The scaling of numbers is public: it was stated, not fitted.",
    "noisy": f"{LEARNED}state public values. The means and deviations for scaling are covered: they have noise.",
}

NOT_COVERED = (
    "Settings chosen from results on this data (learning rate, clipping norm, architecture): the ledger charges each trial as its own "
    "run; or charge a search with a random number of trials (charge_search).",
    FITTED["fitted"],
    "Early stopping and the choice of the best checkpoint by validation data, if the people in it must be protected as well.",
    "Evaluation results and examples shown in a report: they are exact, not private.",
    "The number of examples N, the batch size and the number of steps: they are public.",
    "An attacker who sees more than the released weights and figures: memory, logs of this machine, step times, the order of batches.",
    "Floating-point attacks on the noise (Mironov 2012): samples are from a continuous distribution rounded to float32, not from a discrete one.",
)
"""What no accountant here counts, for the report."""


def uncovered(scaling: Scaling = "fitted") -> list[str]:
    """`NOT_COVERED` for a run with this scaling."""
    return [FITTED[scaling] if line == FITTED["fitted"] else line for line in NOT_COVERED]


@dataclass(frozen=True)
class Guarantee:
    """(epsilon, delta)-differential privacy of a run, with everything a reader needs to judge it."""

    epsilon: float
    delta: float
    neighbouring: str
    """Neighboring relation: "zero out one" (same N, the data of one unit is zeroed out), or "replace one", which includes it. Older records
    may say "add or remove one"."""
    accountant: str
    """pld or rdp."""
    unit: str
    """Unit of privacy: one example, a document, a user."""
    epsilons: dict[float, float] = field(default_factory=dict)
    """Epsilon at several deltas."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """Trade-off curve: (false-positive rate, smallest false-negative rate) of any membership test for one unit."""
    releases: list[Release] = field(default_factory=list)
    """Releases, with equal steps grouped."""
    assumptions: list[str] = field(default_factory=list)
    not_covered: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain_values = asdict(self)
        plain_values["epsilons"] = {repr(d): e for d, e in self.epsilons.items()}
        plain_values["curve"] = [list(point) for point in self.curve]
        plain_values["releases"] = [r.to_json() for r in self.releases]
        return plain_values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Guarantee:
        """Inverse of `to_json`."""
        return cls(
            **values
            | {
                "epsilons": {float(d): float(e) for d, e in values["epsilons"].items()},
                "curve": [(float(a), float(b)) for a, b in values["curve"]],
                "releases": [Release.from_json(r) for r in values["releases"]],
            }
        )

    def sentence(self) -> str:
        """The guarantee in one sentence."""
        return f"({self.epsilon:.3g}, {self.delta:.2g})-differential privacy for one {self.unit} ({self.neighbouring}; accountant: {self.accountant})"


def guarantee(
    releases: Release | Iterable[Release],
    delta: float,
    *,
    accountant: Accountant = "pld",
    unit: str = "example",
    examples: int | None = None,
    assumptions: Sequence[str] = (),
    not_covered: Sequence[str] = NOT_COVERED,
) -> Guarantee:
    """Return the guarantee of a run: epsilon at `delta` and around it, the curve, the assumptions.

    Args:
        releases: all releases of the run.
        delta: refused unless below 1/`examples`.
        accountant: `pld`, or `rdp`.
        unit: the unit of privacy.
        examples: N, the number of units; None leaves delta unchecked against it.
        assumptions: of the caller, in addition to those of the sampling.
        not_covered: sentences about what is not covered.
    """
    releases = as_releases(releases)
    refuse_delta(delta, examples)
    deltas = sorted({delta, *(d for d in (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4) if examples is None or d < 1 / examples)})
    found = epsilons(releases, deltas, accountant=accountant)
    relation = relation_of(releases)
    betas = trade_off(releases, ALPHAS, accountant=accountant)
    return Guarantee(
        epsilon=found[delta], delta=delta, neighbouring=relation, accountant=accountant, unit=unit, epsilons=found,
        curve=list(zip(ALPHAS, betas, strict=True)), releases=list(releases),
        assumptions=[
            NEIGHBOURS if relation == ZERO_OUT else REPLACED,
            *(ASSUMED[kind] for kind in ASSUMED if any(r.sampling == kind for r in releases)), *COMMON, *assumptions,
        ],
        not_covered=list(not_covered),
    )  # fmt: skip


ASSUMED = {
    "poisson": "Each example was in each step independently, with a probability that depends only on N and the batch size.",
    "full": "Each such release used every example at most once.",
    "shuffled": "An example was in one step of each pass, counted as one Gaussian release per pass; the secret order is not used for amplification.",
    "fixed-size": "Batches of exactly the stated size were drawn without replacement. Their epsilon is for one example replaced by another, which "
    "includes zeroing it out.",
    "known": "Some answers came from mechanisms of which only their own (epsilon, delta) is used; it must hold for one unit zeroed out.",
}
NEIGHBOURS = (
    "Neighboring data sets have the same number N of units, and differ by one unit whose data is zeroed out, so that its gradient is zero "
    "(zero-out; Kairouz et al. 2021, arXiv:2103.00039). N is public, and so are the sampling rate, the number of steps, the divisor and delta, "
    "which follow from it."
)
REPLACED = "Neighboring data sets have the same number N of examples, and differ by one example replaced by another. N is public."
COMMON = (
    "Each unit's gradient was clipped to the norm that the noise is measured in, and the noise is Gaussian, independent of the data.",
    "All intermediate weights may be public; each step may depend on earlier ones.",
)


def charge_search(releases: Release | Iterable[Release], delta: float, *, mean_trials: float, shape: float = 1.0) -> float:
    """Epsilon of the best of a random number of independent runs, if only the best is published.

    Papernot & Steinke 2022, arXiv:2110.03620, by Renyi divergence: draw the number of trials at random beforehand, from a truncated
    negative binomial distribution with this mean and shape (1: geometric; 0: logarithmic; infinite: Poisson). Every trial, with any
    settings, releases at most `releases`, including its score; for neighbors as in `relation_of`. A fixed number of trials, or one that grew
    until the result was good, is not covered: then each run is charged in full.

    >>> one = Release(2.0, "poisson", 0.01, 1000)
    >>> from tauon.privacy.accounting.loss import epsilon
    >>> epsilon(one, 1e-5) < charge_search(one, 1e-5, mean_trials=10) < 3 * epsilon(one, 1e-5)
    True
    """
    refuse_delta(delta)
    if not mean_trials >= 1 or not shape >= 0:
        raise RecipeError(f"got mean_trials={mean_trials:g}, shape={shape:g}, expected a mean of at least 1 and a shape of at least 0.")
    library = dp_accounting()
    steps = plain(as_releases(releases))
    if any(r.known is not None and r.known[1] > 0 for r in steps):
        raise RecipeError("a known mechanism with its own delta cannot be charged inside a search. Remove it from the trials.")
    fixed = any(r.sampling == "fixed-size" for r in steps)
    if fixed and any(r.sampling == "poisson" and r.rate < 1 for r in steps):
        raise RecipeError(
            "a trial with both poisson and fixed-size steps cannot be charged inside a search. Use one kind of sampling in all steps of a trial, "
            "or charge every trial in full."
        )
    neighbours = library.NeighboringRelation
    relation = neighbours.REPLACE_ONE if fixed else neighbours.ADD_OR_REMOVE_ONE
    event = library.dp_event.RepeatAndSelectDpEvent(event_of(steps), mean_trials, shape)
    found = library.rdp.RdpAccountant(neighboring_relation=relation).compose(event).get_epsilon(delta)
    return float(found) if not math.isnan(found) else math.inf


def compose_basic(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """(sum of epsilons, sum of deltas): valid for mechanisms with the same neighboring relation (replace-one includes zero-out)."""
    total = list(pairs)
    return sum(e for e, _ in total), min(1.0, sum(d for _, d in total))
