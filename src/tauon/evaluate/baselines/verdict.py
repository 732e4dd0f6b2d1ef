"""A model against its baselines: their figures, the paired differences, and what follows in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from tauon.evaluate.baselines.base import Baseline, BaselineTask
from tauon.evaluate.config import EvaluateConfig
from tauon.evaluate.evaluation import Evaluation
from tauon.evaluate.paired import PairedTerms, RecordingTask, improvement
from tauon.evaluate.run import evaluate
from tauon.metrics import Metric
from tauon.types import Dataset

__all__ = ["Compared", "compared_with_baselines", "verdict"]

Verdict = Literal["better", "no better", "worse", "uncertain"]
_INSTEAD = {"perplexity": "loss", "map": "log_loss"}
"""Metrics whose difference is that of another one, which is a mean over examples."""


@dataclass(frozen=True)
class Compared:
    """One baseline beside the model."""

    name: str
    about: str
    metric: str
    """Metric of the difference: the primary one, or the mean over examples that stands for it."""
    metrics: dict[str, Metric]
    """The baseline's own, on the same examples."""
    difference: Metric | None
    """By how much the model is better in `metric`, paired; None: there is no such comparison."""
    log_loss: Metric | None = None
    """For classes: by how much the model's log loss is smaller, paired."""

    @property
    def verdict(self) -> Verdict:
        """better, worse: the interval of the difference excludes zero. no better: it does not. uncertain: there is no interval."""
        d = self.difference
        if d is None or d.value is None or d.low is None or d.high is None:
            return "no better" if d is not None and d.value is not None and d.value <= 0 else "uncertain"
        return "better" if d.low > 0 else "worse" if d.high < 0 else "no better"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "about": self.about, "metric": self.metric, "verdict": self.verdict,
            "metrics": {k: m.to_json() for k, m in self.metrics.items()}, "difference": self.difference and self.difference.to_json(),
            "log_loss": self.log_loss and self.log_loss.to_json(),
        }  # fmt: skip


def compared_with_baselines(
    result: Evaluation, terms: PairedTerms, task: Any, baselines: Sequence[Baseline], dataset: Dataset, config: EvaluateConfig,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Compared]:  # fmt: skip
    """Score every baseline as the model was, and compare.

    Args:
        result: of the model.
        terms: that a `RecordingTask` kept while the model was evaluated.
        task: of the model.
        baselines: from `fit_baselines`.
        dataset: the examples of `result`.
        config: that of `result`.
        progress: called with (name, done, all).
    """
    found, nothing = [], nn.Identity()
    metric = _INSTEAD.get(result.primary, result.primary)
    for i, baseline in enumerate(baselines):
        if progress is not None:
            progress(baseline.name, i, len(baselines))
        recording = RecordingTask(BaselineTask(task, baseline))
        own = evaluate(nothing, recording, dataset, config, seed=result.seed, split=result.split)
        assert recording.terms is not None
        difference = improvement(terms, recording.terms, metric)
        log_loss = improvement(terms, recording.terms, "log_loss") if "log_loss" in own.metrics else None
        found.append(Compared(baseline.name, baseline.about, metric, own.metrics, difference, log_loss))
    return found


def verdict(result: Evaluation, compared: Sequence[Compared]) -> dict[str, Any] | None:
    """Return how the model stands against the strongest of its baselines: `against`, `verdict`, `metric`, `ours`, `theirs`, `difference`.

    The strongest is the one that the model is least better than. `probabilities`, if there: the simplest baseline, which knows the shares of the classes
    alone, has a smaller log loss than the model: a model may rank well, and yet be sure of what is wrong. None without a comparison.
    """
    known = [c for c in compared if c.difference is not None and c.difference.value is not None]
    if not known:
        return None
    strongest = min(known, key=lambda c: c.difference.value if c.difference and c.difference.value is not None else 0.0)
    name = result.primary if result.primary in strongest.metrics else strongest.metric
    ours, theirs = (metrics.get(name) for metrics in (result.metrics, strongest.metrics))
    return {
        "against": strongest.name, "verdict": strongest.verdict, "metric": name, "compared": strongest.metric,
        "ours": ours and ours.value, "theirs": theirs and theirs.value,
        "difference": strongest.difference and strongest.difference.to_json(),
    } | _probabilities(result, compared[0], told=strongest)  # fmt: skip


def _probabilities(result: Evaluation, shares: Compared, told: Compared) -> dict[str, Any]:
    """Return `probabilities`, if the shares of the classes have a smaller log loss than the model; {} if not, or if the verdict says it already."""
    d, metric = shares.log_loss, "log_loss"
    if d is None or d.high is None or d.high >= 0 or (told is shares and told.verdict == "worse" and told.metric == metric):
        return {}
    ours, theirs = result.metrics[metric].value, shares.metrics[metric].value
    return {"probabilities": {"against": shares.name, "metric": metric, "ours": ours, "theirs": theirs, "difference": d.to_json()}}
