"""Quality of membership scores: ROC, its area, and the true-positive rate at small false-positive rates, which matters most (Carlini et al. 2022,
arXiv:2112.03570, section IV: an attack that is certain about a few members does harm that no average shows).

Sources: DeLong, DeLong & Clarke-Pearson 1988 (variance of the area); Clopper & Pearson 1934 (rates). Trains nothing, and uses no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.privacy.audit.binomial import clopper_pearson

__all__ = ["Attack", "Rate", "epsilon_of_rates", "roc_points", "score_attack"]

RATES = (0.001, 0.01)
"""False-positive rates at which attacks are reported."""
_POINTS = 200


@dataclass(frozen=True)
class Rate:
    """True-positive rate at a false-positive rate of at most `fpr`."""

    fpr: float
    """Asked for."""
    value: float
    low: float
    high: float
    """Exact interval (Clopper-Pearson) of the rate at the chosen threshold."""
    false_positives: int
    """Number of false positives. 0 if there are fewer non-members than 1 / fpr: then this is the rate without any."""
    reachable: bool
    """Whether there are enough non-members to measure such a small rate."""


@dataclass(frozen=True)
class Attack:
    """Success of one attack on one set of members and non-members."""

    name: str
    about: str
    members: int
    others: int
    auc: float
    auc_low: float
    auc_high: float
    accuracy: float
    """Balanced accuracy at the best threshold: 0.5 is random guessing."""
    rates: list[Rate]
    roc: list[tuple[float, float]]
    """(false-positive rate, true-positive rate), thinned for drawing."""
    confidence: float
    epsilon: float | None = None
    """Lower bound from the rates, as if examples were independent runs; see `epsilon_of_rates`."""
    slices: list[dict[str, Any]] = field(default_factory=list)
    """The same figures of groups of examples."""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["roc"] = [list(p) for p in self.roc]
        return plain


def roc_points(members: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(false-positive rates, true-positive rates) at every threshold, from (0, 0) to (1, 1). Larger scores look like members."""
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    sorted_m, sorted_o = np.sort(members), np.sort(others)
    tpr = (len(members) - np.searchsorted(sorted_m, thresholds, side="left")) / len(members)
    fpr = (len(others) - np.searchsorted(sorted_o, thresholds, side="left")) / len(others)
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def _thinned(fpr: NDArray[np.float64], tpr: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Points for drawing the curve on linear and on logarithmic axes: the highest at each rate, thinned for both."""
    rates, first = np.unique(fpr[::-1], return_index=True)
    at = len(fpr) - 1 - first
    if len(at) > _POINTS:
        least = rates[rates > 0].min()
        grid = np.concatenate([[0.0], np.geomspace(least, 1, _POINTS // 2), np.linspace(0, 1, _POINTS // 2)])
        at = at[np.unique(np.searchsorted(rates, np.sort(grid)).clip(max=len(at) - 1))]
    return [(float(fpr[i]), float(tpr[i])) for i in at]


def _area(members: NDArray[np.float64], others: NDArray[np.float64], confidence: float) -> tuple[float, float, float]:
    """Area under the ROC with DeLong's interval on the logit scale; ties count one half. Perfect separation: Wilson's interval, which is conservative."""
    m, n = len(members), len(others)
    so, sm = np.sort(others), np.sort(members)
    v_m = (np.searchsorted(so, members, "left") + np.searchsorted(so, members, "right")) / (2 * n)
    v_o = 1 - (np.searchsorted(sm, others, "left") + np.searchsorted(sm, others, "right")) / (2 * m)
    area = float(v_m.mean())
    variance = float(v_m.var(ddof=1) / m + v_o.var(ddof=1) / n) if min(m, n) > 1 else 0.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    if 0 < area < 1 and variance > 0:
        half, logit = z * math.sqrt(variance) / (area * (1 - area)), math.log(area / (1 - area))
        return area, 1 / (1 + math.exp(min(700.0, half - logit))), 1 / (1 + math.exp(-min(700.0, half + logit)))
    k = min(m, n)
    centre, width = (area + z * z / (2 * k)) / (1 + z * z / k), z * math.sqrt(area * (1 - area) / k + z * z / (4 * k * k)) / (1 + z * z / k)
    return area, max(0.0, centre - width), min(1.0, centre + width)


def _rate(members: NDArray[np.float64], others: NDArray[np.float64], fpr: float, confidence: float) -> Rate:
    allowed = math.floor(fpr * len(others) + 1e-9)
    ordered = np.sort(others)[::-1]
    threshold = ordered[allowed] if allowed < len(others) else -np.inf  # at most `allowed` non-members are strictly above it
    hits, misses = int((members > threshold).sum()), int((others > threshold).sum())
    return Rate(fpr, hits / len(members), *clopper_pearson(hits, len(members), confidence), misses, allowed >= 1)


def epsilon_of_rates(hits: int, members: int, false_positives: int, others: int, *, delta: float = 0.0, confidence: float = 0.95) -> float:
    """Lower bound of epsilon from counts of independent runs with and without an example: ln((TPR - delta) / FPR), and the same of the
    complements, TPR and FPR at the worse ends of joint exact one-sided intervals (Kairouz et al. 2015; Nasr et al. 2021,
    arXiv:2101.04535). `hits` of `members` runs with it said "with", `false_positives` of `others` runs without it did.

    Counts over the examples of one run are not independent, so for them this is not a proof: use `one_run`.

    >>> round(epsilon_of_rates(950, 1000, 50, 1000), 2)
    2.66
    """
    each = 1 - (1 - confidence) / 2
    tpr_low = clopper_pearson(hits, members, each, sides=1)[0]
    fpr_high = clopper_pearson(false_positives, others, each, sides=1)[1]
    bounds = [0.0]
    for more, less in ((tpr_low, fpr_high), (1 - fpr_high, 1 - tpr_low)):
        if more > delta and less > 0:
            bounds.append(math.log((more - delta) / less))
    return max(bounds)


def score_attack(
    name: str, about: str, members: NDArray[np.float64], others: NDArray[np.float64], *, confidence: float = 0.95, delta: float = 0.0,
    rates: Sequence[float] = RATES, groups: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]] | None = None,
) -> Attack:  # fmt: skip
    """Area under the ROC curve, rates at low false-positive rates and implied epsilon of an attack, each with its interval.

    Args:
        name: name of the attack.
        about: what its scores are, in words.
        members: (M,) scores of training examples; larger means "was trained on".
        others: (K,) scores of held-out examples.
        confidence: confidence level of the intervals.
        delta: delta at which epsilon is bounded.
        rates: false-positive rates at which the true-positive rate is reported.
        groups: name to (mask of members, mask of others): the same for these alone.

    Raises:
        ValueError: no member, no other example, or scores that are not finite.

    >>> score_attack("loss", "minus the loss", np.array([3.0, 2.5, 2.0, 1.0]), np.array([1.5, 0.5, 0.2, 0.1])).auc
    0.9375
    """
    bad = int((~np.isfinite(members)).sum() + (~np.isfinite(others)).sum())
    if not len(members) or not len(others) or bad:
        raise ValueError(
            f"{name}: got {len(members)} members, {len(others)} non-members and {bad} scores that are not finite; expected some of both, all finite"
        )
    fpr, tpr = roc_points(members, others)
    area, low, high = _area(members, others, confidence)
    found = [_rate(members, others, f, confidence) for f in rates]
    epsilon = max(
        (
            epsilon_of_rates(
                round(r.value * len(members)), len(members), r.false_positives, len(others), delta=delta,
                confidence=1 - (1 - confidence) / len(found),
            )
            for r in found
        ),
        default=0.0,
    )  # fmt: skip
    notes = [
        f"{len(others):,} held-out examples are too few to measure a false-positive rate of {r.fpr:g}: the rate with no false positive is shown"
        for r in found
        if not r.reachable
    ]
    slices = [
        _slice(score_attack(group, "", members[in_m], others[in_o], confidence=confidence, delta=delta, rates=rates))
        for group, (in_m, in_o) in (groups or {}).items()
        if in_m.sum() >= 2 and in_o.sum() >= 2
    ]
    return Attack(
        name, about, len(members), len(others), area, low, high, float(((tpr - fpr) / 2 + 0.5).max()), found, _thinned(fpr, tpr), confidence,
        epsilon, slices, notes,
    )  # fmt: skip


def _slice(attack: Attack) -> dict[str, Any]:
    """The row of one group of examples."""
    row = {k: getattr(attack, k) for k in ("name", "members", "others", "auc", "auc_low", "auc_high")}
    return row | {"rates": [asdict(r) for r in attack.rates]}
