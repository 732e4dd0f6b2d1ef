"""The answer to "which training examples made the model say this?": examples with scores, what a score means, and whether the same few examples lead
for every query. Then they are outliers of the training data rather than an explanation of the query (Barshan et al. 2020, arXiv:2003.11630).

Shapes: Q queries, N training examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tauon.errors import DataError

__all__ = ["Dominance", "InfluenceAnswer", "answer_of", "dominance"]

TOO_COMMON = 0.5
"""Share of the queries that one example may lead before it is reported."""
RELATIVE = " Divided by the length of the training example's own gradient, so only the order has a meaning: whose direction fits, however large it is."


@dataclass(frozen=True)
class Dominance:
    """Whether the same training examples are among the most influential for many queries."""

    queries: int
    top: int
    """How many leading examples (by absolute score) of each query were compared."""
    examples: tuple[int, ...]
    """Those that are among them for more than half of the queries, most frequent first; at most 10."""
    shares: tuple[float, ...]
    """Share of the queries, for each of `examples`."""
    largest_share: float
    """Share of the queries led by the most frequent example."""
    expected_share: float
    """The same if the leading examples were drawn by chance."""

    @property
    def found(self) -> bool:
        """Whether to warn: at least 5 queries, and one example leads for more than half of them."""
        return bool(self.examples) and self.queries >= 5

    def to_json(self) -> dict[str, Any]:
        """Facts, with a sentence if there is something to report."""
        facts: dict[str, Any] = {
            "queries": self.queries, "top": self.top, "examples": list(self.examples), "shares": list(self.shares),
            "largest_share": self.largest_share, "expected_share": self.expected_share, "found": self.found,
        }  # fmt: skip
        if self.found:
            facts["message"] = (
                f"Training example {self.examples[0]} is among the {self.top} most influential of {self.shares[0]:.0%} of the queries: it is unusual "
                "itself, and says little about a single query. Look at the relative influence instead."
            )
        return facts


def dominance(scores_QN: np.ndarray, top: int = 10) -> Dominance:
    """Count for how many queries each training example is among the `top` by absolute score.

    >>> dominance(np.array([[9.0, 1.0, 0.0]] * 6), top=1).examples
    (0,)
    """
    queries, examples = scores_QN.shape
    top = max(1, min(top, examples - 1))
    leading_QT = np.argpartition(-np.abs(scores_QN), top - 1, axis=1)[:, :top] if examples > 1 else np.zeros((queries, 1), int)
    shares_N = np.bincount(leading_QT.ravel(), minlength=examples) / max(1, queries)
    order = np.argsort(-shares_N, kind="stable")[:10]
    common = tuple(int(i) for i in order if shares_N[i] > TOO_COMMON)
    by_chance = top / examples
    return Dominance(queries, top, common, tuple(float(shares_N[i]) for i in common), float(shares_N.max(initial=0.0)), by_chance)


@dataclass(frozen=True)
class InfluenceAnswer:
    """The training examples that helped and hurt each query most, strongest first."""

    helped: np.ndarray
    """(Q, k) numbers of training examples, int64."""
    helped_scores: np.ndarray
    hurt: np.ndarray
    """(Q, k)."""
    hurt_scores: np.ndarray
    meaning: str
    """What sign and size of a score mean."""
    relative: bool
    dominance: Dominance
    """Of the scores themselves."""
    relative_dominance: Dominance
    """Of the scores divided by the length of each example's gradient."""
    facts: dict[str, Any]
    """Method and settings."""

    def to_json(self) -> dict[str, Any]:
        """JSON values; an example whose score has the other sign is left out of a list, so a list may be shorter than k."""
        queries = []
        for helped, up, hurt, down in zip(self.helped, self.helped_scores, self.hurt, self.hurt_scores, strict=True):
            queries.append(
                {
                    "helped": [{"example": int(i), "score": float(s)} for i, s in zip(helped, up, strict=True) if s > 0],
                    "hurt": [{"example": int(i), "score": float(s)} for i, s in zip(hurt, down, strict=True) if s < 0],
                }
            )
        return {
            "method": self.facts.get("method"), "meaning": self.meaning, "relative": self.relative, "queries": queries,
            "dominance": self.dominance.to_json(), "relative_dominance": self.relative_dominance.to_json(),
            "left_out": self.facts.get("left_out", []),
        }  # fmt: skip


def answer_of(scores_QN: np.ndarray, lengths_N: np.ndarray, k: int, *, relative: bool, facts: dict[str, Any]) -> InfluenceAnswer:
    """Order the scores. Raises `DataError` if `k` is below 1 or a score is not finite."""
    if k < 1:
        raise DataError(f"k is {k}: expected 1 or more examples.")
    if not np.isfinite(scores_QN).all():
        bad = np.unique(np.argwhere(~np.isfinite(scores_QN))[:, 1])
        raise DataError(f"the influence of training examples {', '.join(map(str, bad[:5]))} is not finite: their gradients overflow.")
    k = min(k, scores_QN.shape[1])
    relative_QN = scores_QN / np.maximum(lengths_N, 1e-30)
    shown = relative_QN if relative else scores_QN
    order = np.argsort(-shown, axis=1, kind="stable")
    helped, hurt = order[:, :k], order[:, ::-1][:, :k]
    meaning = facts.get("meaning", "") + (RELATIVE if relative else "")
    return InfluenceAnswer(
        helped, np.take_along_axis(shown, helped, 1), hurt, np.take_along_axis(shown, hurt, 1), meaning, relative,
        dominance(scores_QN), dominance(relative_QN), facts,
    )  # fmt: skip
