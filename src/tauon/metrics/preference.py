"""Metrics of preferences: the reward of chosen answers over rejected ones, and how often it is higher. Runs no model."""

from __future__ import annotations

import numpy as np

from tauon.errors import DataError
from tauon.metrics.intervals import generator, percentile, resample_sums
from tauon.metrics.metric import Metric, Scores

__all__ = ["preference"]

_ABOUT = {
    "reward_accuracy": ("share of pairs whose chosen answer has the higher reward; where both are equal, half of one", "higher"),
    "reward_margin": ("mean of reward chosen - reward rejected; reward = beta log (p / p of the reference)", "higher"),
    "reward_chosen": ("mean reward of chosen answers", "higher"),
    "reward_rejected": ("mean reward of rejected answers", "lower"),
    "loss": ("mean DPO loss, nats", "lower"),
}


def preference(rewards_N2: np.ndarray, loss_N: np.ndarray, *, confidence: float, resamples: int, seed: int) -> Scores:
    """Return the fields of an `Evaluation` for preferences. rewards: chosen first. Intervals resample pairs."""
    if not (np.isfinite(rewards_N2).all() and np.isfinite(loss_N).all()):
        raise DataError("rewards are not finite: training diverged. Check the loss curve, and lower optim.lr")
    n = len(loss_N)
    margin = rewards_N2[:, 0].astype(np.float64) - rewards_N2[:, 1]
    right = np.where(margin == 0, 0.5, (margin > 0).astype(np.float64))
    columns = np.stack([right, margin, rewards_N2[:, 0], rewards_N2[:, 1], loss_N], axis=1).astype(np.float64)
    means = resample_sums(columns, resamples, generator(seed, "preference")) / n
    metrics = {}
    for i, (name, (about, better)) in enumerate(_ABOUT.items()):
        ends = percentile(means[:, i], confidence)
        metrics[name] = Metric.bootstrapped(float(columns[:, i].mean()), ends, n, better, about, unit="pairs")  # type: ignore[arg-type]
    return {"primary": "reward_accuracy", "metrics": metrics, "counts": {"pairs": n}}
