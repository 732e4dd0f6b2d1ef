"""The recipe's `evaluate:` node. Values only; `run.py` and the pipeline read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from tauon.config import Config, Count, Fraction

__all__ = ["CostsConfig", "EvaluateConfig"]


class CostsConfig(Config):
    """What errors of a classifier of two classes cost, in any unit: the table of thresholds then has the cost, and the threshold where it is lowest."""

    false_positive: float = Field(gt=0)
    """Cost of a flagged example of class 0: a healthy person called back."""
    false_negative: float = Field(gt=0)
    """Cost of an example of class 1 that was not flagged: a loan that is not paid back."""


class EvaluateConfig(Config):
    """How a trained model is evaluated: data split, weights, confidence intervals."""

    split: Literal["auto", "test", "validation"] = "auto"
    """Which part of the data: auto is the test split if there is one, else validation."""
    batch: Count = 64
    """Examples read from the data set at once. No metric depends on it: forward passes use fixed tiles."""
    resamples: Count = 1000
    """Bootstrap resamples behind each bootstrap interval; at least 100."""
    confidence: Fraction = 0.95
    """Confidence level of every interval, between 0.5 and 1."""
    weights: Literal["auto", "raw", "ema"] = "auto"
    """Which weights are evaluated: auto is the moving average if training kept one, else the raw ones."""
    top_k: tuple[Count, ...] | None = None
    """Classes only: also report the share of examples whose true class is among the k most probable. Default: 5 for 20 classes or
    more."""
    baselines: bool = True
    """Whether naive references are measured on the same examples, with the interval of the difference: the most frequent class, the mean, the last
    value, token frequencies; and where scikit-learn is installed logistic or ridge regression."""
    costs: CostsConfig | None = None
    """Two classes only: costs of errors."""
    samples: Count = 4
    """Number of texts to generate from each prompt, for language models; 0: none."""
    prompts: tuple[str, ...] = ()
    """Texts to continue. Default: the start of a document."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield settings that no evaluation can work with."""
        if (batch := self.raw_value("batch")) < 1:
            yield "batch", f"got {batch}, expected at least 1 example"
        if (resamples := self.raw_value("resamples")) < 100:
            yield "resamples", f"got {resamples}, expected at least 100: with fewer the ends of a 95% interval are random"
        if not 0.5 <= (confidence := self.raw_value("confidence")) < 1:
            yield "confidence", f"got {confidence}, expected a level from 0.5 up to, not including, 1; write 95% or 0.95"
        if any(k < 1 for k in self.raw_value("top_k") or ()):
            yield "top_k", f"got {list(self.raw_value('top_k'))}, expected values of k, each at least 1"
        if (samples := self.raw_value("samples")) < 0:
            yield "samples", f"got {samples}, expected 0 or more"
