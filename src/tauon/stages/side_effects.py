"""What compression changes beside the promised figure: every metric, the worst class, reasons of the answers, membership inference.

Measured on held-out examples; what cannot be measured for a model is named with the reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tauon.data import without_augmentation
from tauon.errors import TauonError
from tauon.evaluate import EvaluateConfig, evaluate, predict_all
from tauon.explain import ExplainConfig
from tauon.explain.compare import compare
from tauon.metrics.intervals import generator
from tauon.privacy.audit.signals import Signals, statistic
from tauon.stages.context import Context
from tauon.stages.explain import subject_of
from tauon.types import Dataset

__all__ = ["membership_auc", "side_effects"]

EXAMPLES = 500


def side_effects(ctx: Context, before: nn.Module, served: nn.Module, after: nn.Module) -> dict[str, Any]:
    """Return the comparison.

    Args:
        ctx: of the run.
        before: the trained model.
        served: the smaller one in its runtime.
        after: the smaller one in torch, for what looks inside.
    """
    splits = ctx.splits
    dataset = splits.test if splits.test is not None and len(splits.test) else splits.validation
    assert dataset is not None
    found: dict[str, Any] = {"split": "test" if dataset is splits.test else "validation", "examples": len(dataset)}
    parts = {
        "metrics": lambda: _metrics(ctx, before, served, dataset),
        "explanations": lambda: _explanations(ctx, before, after),
        "membership": lambda: _membership(ctx, before, served, dataset),
    }
    for i, (name, measure) in enumerate(parts.items()):
        ctx.on_event("progress", what=f"side effects: {name}", done=i, total=len(parts))
        try:
            found[name] = measure()
        except (TauonError, NotImplementedError, RuntimeError, TypeError, AttributeError) as err:  # a runtime's module is no torch model
            found[name] = {"not_measured": f"{type(err).__name__}: {str(err).splitlines()[0] if str(err) else ''}"}
    ctx.on_event("progress", what="side effects", done=len(parts), total=len(parts))
    return found


def _metrics(ctx: Context, before: nn.Module, after: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """Return each metric before and after, with intervals, and the class whose recall fell most."""
    config = EvaluateConfig(resamples=200)
    task: Any = ctx.recipe.task
    a, b = (evaluate(m, task, dataset, config, seed=ctx.recipe.seed, split="held out") for m in (before, after))
    both = {name: [_figure(a.metrics[name]), _figure(b.metrics[name])] for name in a.metrics if name in b.metrics}
    recalls = {name: pair for name, pair in both.items() if name.startswith("recall[") or name.startswith("recall_of_")}
    fell = max(recalls, key=lambda n: (recalls[n][0]["value"] or 0) - (recalls[n][1]["value"] or 0), default=None)
    return {"figures": both, "worst_class": fell}


def _figure(metric: Any) -> dict[str, Any]:
    return {"value": metric.value, "low": metric.low, "high": metric.high}


def _explanations(ctx: Context, before: nn.Module, after: nn.Module) -> dict[str, Any]:
    """Return how far the reasons of the answers stay the same: rank correlation of occlusion maps."""
    subject = subject_of(ctx, ExplainConfig())
    now = replace(subject, model=after)
    found = compare(
        replace(subject, model=before), now, sample=256, explained=12, shown=1, maps=("occlusion",), seed=ctx.recipe.seed
    ).record
    methods = [{k: m[k] for k in ("name", "title", "correlation", "lowest")} for m in found.get("methods") or []]
    if not methods:
        return {"not_measured": "occlusion does not suit this kind of data"}
    return {"methods": methods, "agreement": found.get("agreement"), "examples": 12}


def _membership(ctx: Context, before: nn.Module, after: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """Return the AUC of telling training examples from held-out ones by their loss, before and after; 0.5: they cannot be told apart."""
    if ctx.recipe.privacy is not None:
        return {
            "not_measured": "the run is private: the attack would read its training examples. `tauon audit` charges its ledger for that"
        }
    train = without_augmentation(ctx.splits.train)
    n = min(EXAMPLES, len(train), len(dataset))
    rng = generator(ctx.recipe.seed, "membership of compressed models")
    rows = [rng.permutation(len(d))[:n].astype(np.int64) for d in (train, dataset)]
    areas = []
    for model in (before, after):
        members, others = (
            statistic(predict_all(model, Signals(ctx.recipe.task), _Part(d, r), batch=64)[0])
            for d, r in zip((train, dataset), rows, strict=True)
        )
        areas.append(membership_auc(members, others))
    return {"auc": areas, "examples": n, "standard_error": float(np.sqrt(1 / (6 * n)))}


def membership_auc(members_N: NDArray[Any], others_M: NDArray[Any]) -> float:
    """Return the probability that a member scores above a non-member, ties counting half (Mann-Whitney).

    >>> membership_auc(np.array([3.0, 2.0]), np.array([1.0, 2.0]))
    0.875
    """
    order = np.sort(others_M)
    below = np.searchsorted(order, members_N, side="left")
    ties = np.searchsorted(order, members_N, side="right") - below
    return float((below + 0.5 * ties).mean() / len(others_M))


class _Part:
    """Some examples of a data set."""

    def __init__(self, dataset: Dataset, rows: NDArray[np.int64]) -> None:
        self.dataset, self.rows, self.spec, self.facts = dataset, rows, dataset.spec, dataset.facts

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Any:
        """Return these examples."""
        return self.dataset.batch(self.rows[index], epoch=epoch)
