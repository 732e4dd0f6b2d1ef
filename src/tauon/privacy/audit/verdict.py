"""Verdict on a guarantee from coins and scores: all statistics and both bounds, at one joint confidence.

Several tests are several chances of a false alarm: p-values are multiplied by the number of tests (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.privacy.audit.curve import CurveAudit, TradeOff, audit_curve
from tauon.privacy.audit.one_run import OneRun, audit_scores

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True)
class Verdict:
    """Result of an audit by coins."""

    statistic: str
    """The statistic with the strongest result."""
    bound: OneRun
    """Lower bound of epsilon (arXiv:2305.08846)."""
    curve: CurveAudit
    """The same for whole curves (arXiv:2410.22235)."""
    p_of_claim: float | None
    """p-value of the guarantee, corrected for all tests. None: nothing was claimed."""
    confidence: float

    @property
    def contradicts(self) -> bool:
        """Whether the guarantee is refuted at the confidence."""
        return self.p_of_claim is not None and self.p_of_claim < 1 - self.confidence

    def to_json(self) -> dict[str, Any]:
        return {
            "statistic": self.statistic, "bound": self.bound.to_json(), "curve": self.curve.to_json(), "p_of_claim": self.p_of_claim,
            "confidence": self.confidence, "contradicts": self.contradicts,
        }  # fmt: skip


def judge(
    scores: Mapping[str, NDArray[np.float64]], included: NDArray[np.bool_], *, delta: float, claimed: float | None = None,
    curve: TradeOff | None = None, confidence: float = 0.95, examples: int = 1,
) -> Verdict:  # fmt: skip
    """Args:
    scores: statistic -> (M), larger for canaries that look included.
    included: (M), the coins.
    delta, claimed: the guarantee, for one example; claimed None: no guarantee.
    curve: its trade-off curve, if known.
    confidence: confidence level of the bounds and tests.
    """
    each = 1 - (1 - confidence) / len(scores)
    found = {
        name: (
            audit_scores(s, included, delta=delta, claimed=claimed, confidence=each, examples=examples),
            audit_curve(s, included, delta=delta, claimed=curve, confidence=each, examples=examples),
        )
        for name, s in scores.items()
    }
    name, (bound, whole) = max(found.items(), key=lambda item: (item[1][0].epsilon, item[1][1].mu))
    ps = [p for pair in found.values() for a in pair if (p := a.p_of_claim) is not None]
    return Verdict(name, bound, whole, min(1.0, min(ps) * len(ps)) if ps else None, confidence)
