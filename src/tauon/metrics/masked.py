"""Metrics of a masked language model: loss, perplexity and accuracy at the masked tokens. Runs no model.

Intervals resample whole sequences, because the masked tokens of one depend on one another.
"""

from __future__ import annotations

import math

import numpy as np

from tauon.metrics.intervals import generator, percentile, resample_sums
from tauon.metrics.metric import Metric, Scores

__all__ = ["masked_language_modelling"]

_ABOUT = {
    "loss": "mean -log p of a hidden token, nats",
    "perplexity": "exp(loss): perplexity of a hidden token, given both sides",
    "accuracy": "share of hidden tokens that the model finds likeliest",
}


def masked_language_modelling(
    nll_N: np.ndarray, tokens_N: np.ndarray, correct_N: np.ndarray, *, confidence: float, resamples: int, seed: int
) -> Scores:
    """The fields of an `Evaluation`. nll: nats summed over a sequence's masked tokens; tokens: their number; correct: number of correct ones."""
    n, total = len(nll_N), int(tokens_N.sum())
    counts = {"sequences": n, "hidden_tokens": total}
    broken = int((~np.isfinite(nll_N)).sum())
    if broken:
        reason = f"{broken} of {n} sequences have a loss that is not finite"
        gone = {k: Metric.undefined(reason, n=n, better="higher" if k == "accuracy" else "lower", about=a) for k, a in _ABOUT.items()}
        return {"primary": "loss", "metrics": gone, "counts": counts, "notes": [reason]}
    columns = np.stack([nll_N, tokens_N, correct_N], axis=1).astype(np.float64)
    nll_R, tokens_R, correct_R = resample_sums(columns, resamples, generator(seed, "masked")).T
    loss = math.fsum(nll_N) / total
    ends = percentile(nll_R / tokens_R, confidence)
    exponential = None if ends is None or ends[1] > 700 else (math.exp(ends[0]), math.exp(ends[1]))
    share = percentile(correct_R / tokens_R, confidence)
    metrics = {
        "loss": Metric.bootstrapped(loss, ends, n, "lower", _ABOUT["loss"], unit="sequences"),
        "perplexity": Metric.bootstrapped(math.exp(min(loss, 700.0)), exponential, n, "lower", _ABOUT["perplexity"], unit="sequences"),
        "accuracy": Metric.bootstrapped(float(correct_N.sum()) / total, share, n, "higher", _ABOUT["accuracy"], unit="sequences"),
    }
    return {"primary": "accuracy", "metrics": metrics, "counts": counts}
