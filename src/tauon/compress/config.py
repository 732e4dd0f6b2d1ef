"""The recipe's section `compress`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from tauon.compress.base import CompressStep
from tauon.compress.training.config import HealConfig
from tauon.config import Config, Count, Fraction

__all__ = ["CompressConfig"]


class CompressConfig(Config):
    """Make the trained model smaller and faster, and prove what it costs: `compress: {max_drop: 1%, for: cpu}`."""

    max_drop: Fraction = 0.01
    """Largest relative drop of quality (accuracy, perplexity, mean absolute error). The promise is on the upper end of its 95% interval."""
    for_: Literal["cpu", "gpu", "mobile"] = Field("cpu", alias="for")
    """Where it will run: what is tried, and what it is measured on. gpu needs one here."""
    steps: tuple[CompressStep, ...] = ()
    """Steps to apply instead of searching: [int8], [{kind: structured, remove: 25%}, int8]. Order: parts removed, low rank, sparsity, quantisation.
    The result must keep the same promises."""
    runtime: Literal["auto", "eager", "compiled", "onnx", "openvino", "executorch"] = "auto"
    """Runtime of `steps`. auto: torch (eager) for language models, ONNX Runtime for others."""
    calibration: Count = Field(128, ge=1)
    """Training examples on which the ranges of activations are observed."""
    heal: HealConfig | None = None
    """Train after parts or weights were removed, with the uncompressed model as teacher: `heal: {steps: 200}`. Left out: no training."""
    split: Literal["auto", "validation", "test"] = "auto"
    """Examples on which quality is measured. auto: the validation part, or the test part where that is larger and the other too small for the promise."""
    batch_sizes: tuple[Count, ...] = (1, 8, 64)
    """Batch sizes at which time is measured. The result is slower at none of them."""
    seconds: float = Field(2.0, gt=0)
    """Time for each batch size, shared by all candidates."""
    side_effects: bool = True
    """Also compare every metric, the worst class, explanations and membership inference, before and after."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if not 0 <= self.max_drop < 1:
            yield "max_drop", f"is {self.max_drop:g}, expected a share from 0 to 1, 1% say"
        if not self.batch_sizes or min(self.batch_sizes) < 1 or len(set(self.batch_sizes)) != len(self.batch_sizes):
            yield "batch_sizes", f"{list(self.batch_sizes)}: expected one or more different numbers, each at least 1"
        if self.runtime != "auto" and not self.steps:
            yield "runtime", "has no effect without steps: the search tries several. Remove it, or give steps."
