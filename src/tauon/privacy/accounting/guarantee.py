"""`Guarantee`: what was promised, to whom, under which assumptions, and what it does not cover. Written into a run, shown in the report.

Also the two things that are charged besides the steps of one run: the choice of the best of several trials (`charge_search`), and guarantees
that cannot be composed as releases (`compose_basic`).
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
"""False-positive rates of the curve that is kept."""

Scaling = Literal["fitted", "public", "noisy"]
"""Where the statistics that numbers are scaled by come from: the data; what a person stated; a noisy answer that is among the releases."""

LEARNED = "Vocabularies, categories, class weights and imputed values fitted on the data without noise; "
FITTED: dict[Scaling, str] = {
    "fitted": "Statistics, vocabularies and categories fitted on the data without noise; declare them public, or fit them privately.",
    "public": f"{LEARNED}declare them public. How numbers are scaled is public: it was stated, not fitted.",
    "noisy": f"{LEARNED}declare them public. The means and deviations that numbers are scaled by are covered: they came with noise.",
}

NOT_COVERED = (
    "Settings that were chosen by looking at results on this data (learning rate, clipping norm, architecture): each trial is a run of its "
    "own, charged by the ledger; or charge a search of a random number of trials (charge_search).",
    FITTED["fitted"],
    "Early stopping and the choice of the best checkpoint by a validation part whose people are to be protected, too.",
    "Figures of the evaluation and examples shown in a report: they are exact, not private.",
    "The number of examples N, the batch size and the number of steps: they are public.",
    "Anybody who sees more than the released weights and figures: memory, logs of this machine, how long a step takes, the order of batches.",
    "Floating-point attacks on the noise (Mironov 2012): samples are of a continuous law rounded to float32, not of a discrete one.",
)
"""What no accountant here counts, in words for the report."""


def uncovered(scaling: Scaling = "fitted") -> list[str]:
    """`NOT_COVERED`, as true of a run whose numbers are scaled so."""
    return [FITTED[scaling] if line == FITTED["fitted"] else line for line in NOT_COVERED]


@dataclass(frozen=True)
class Guarantee:
    """(epsilon, delta)-differential privacy of a run, and all that a reader needs to judge it."""

    epsilon: float
    delta: float
    neighbouring: str
    """What neighbouring data sets are: "zero out one" (N the same, one unit's data set to nothing), or "replace one", which contains it. Records
    of before may say "add or remove one"."""
    accountant: str
    """pld or rdp."""
    unit: str
    """Who is protected: one example, a document, a user."""
    epsilons: dict[float, float] = field(default_factory=dict)
    """Epsilon at several deltas."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """Trade-off curve: (false-positive rate, least false-negative rate) of any test for one unit's presence."""
    releases: list[Release] = field(default_factory=list)
    """What was released: equal steps counted together."""
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
        """What `to_json` gave."""
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
    """Account for a run: epsilon at `delta` and around it, the curve, what was assumed.

    Args:
        releases: everything that was released.
        delta: refused unless below 1/`examples`.
        accountant: `pld`, or `rdp`.
        unit: who is protected.
        examples: N, the number of units; None leaves delta unchecked against it.
        assumptions: of the caller, beside those that follow from the kind of sampling.
        not_covered: what is not; in words.
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
    "poisson": "Each example entered each step by an independent coin, of a probability that follows from N and the batch alone.",
    "full": "Each such release used every example at most once.",
    "shuffled": "An example was in one step of each pass, counted as one Gaussian release a pass; nothing is gained from the secret order.",
    "fixed-size": "Batches of exactly the stated size were drawn without replacement. Their figure is for one example replaced by another, which "
    "one that is set to nothing is a case of.",
    "known": "Some answers came from mechanisms of which only their own (epsilon, delta) is used; it must hold for one unit set to nothing.",
}
NEIGHBOURS = (
    "Neighbouring data sets have the same number N of units, and differ by one unit whose data is set to nothing, so that its gradient is zero "
    "(zero-out; Kairouz et al. 2021, arXiv:2103.00039). N is public, and so are the sampling rate, the number of steps, the divisor and delta, "
    "which follow from it."
)
REPLACED = "Neighbouring data sets have the same number N of examples, and differ by one example replaced by another. N is public."
COMMON = (
    "Each unit's gradient was clipped to the norm that the noise is measured in, and the noise is Gaussian, independent of the data.",
    "All intermediate weights may be public; each step may depend on what came before.",
)


def charge_search(releases: Release | Iterable[Release], delta: float, *, mean_trials: float, shape: float = 1.0) -> float:
    """Epsilon of the best of a random number of independent runs, only the best of which is published.

    Papernot & Steinke 2022, arXiv:2110.03620, by Renyi divergence: the number of trials has to be drawn at random beforehand, from a truncated
    negative binomial law with this mean and shape (1: geometric; 0: logarithmic; infinite: Poisson), and every trial, whatever settings
    it takes, releases at most `releases`, its score included; for neighbours as `relation_of` says. A number that was fixed, or grew until the
    result pleased, is not covered: then each run is charged in full.

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
        raise RecipeError("a mechanism with a delta of its own cannot be charged inside a search. Take it out of the trials.")
    fixed = any(r.sampling == "fixed-size" for r in steps)
    if fixed and any(r.sampling == "poisson" and r.rate < 1 for r in steps):
        raise RecipeError(
            "a trial with both poisson and fixed-size steps cannot be charged inside a search: its moments are not computed as one mechanism's. Draw "
            "all steps of a trial the same way, or charge every trial in full."
        )
    neighbours = library.NeighboringRelation
    relation = neighbours.REPLACE_ONE if fixed else neighbours.ADD_OR_REMOVE_ONE
    event = library.dp_event.RepeatAndSelectDpEvent(event_of(steps), mean_trials, shape)
    found = library.rdp.RdpAccountant(neighboring_relation=relation).compose(event).get_epsilon(delta)
    return float(found) if not math.isnan(found) else math.inf


def compose_basic(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """(sum of epsilons, sum of deltas): holds for any mechanisms that are all proven for one relation (replacing one contains zeroing one out)."""
    total = list(pairs)
    return sum(e for e, _ in total), min(1.0, sum(d for _, d in total))
