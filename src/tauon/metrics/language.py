"""Metrics of a language model from the loss of each sequence: loss, perplexity, bits per byte, word perplexity.

Intervals resample whole sequences, not tokens: the losses of one sequence's tokens depend on one another (one topic, one
author, one copied passage), so resampling single tokens would give intervals that are too narrow. Runs no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tauon.metrics.intervals import generator, percentile, resample_sums
from tauon.metrics.metric import Metric, Scores

__all__ = ["language_modelling"]

_WHOLE = 0.999
"""Share of the text's bytes that must have been predicted for word perplexity: the first token has no context."""
_PERPLEXITY, _BITS = "exp(loss): perplexity per token of this tokenizer", "total -log2 p / UTF-8 bytes of the predicted text"
_WORD = "exp(total -log p in nats / words of the text): comparable across tokenizers"


def language_modelling(
    nll_N: np.ndarray, tokens_N: np.ndarray, bytes_N: np.ndarray, facts: Mapping[str, Any], *, confidence: float, resamples: int, seed: int
) -> Scores:
    """Return the fields of an `Evaluation` for a language model.

    nll: sum of -log p over a sequence's counted tokens (nats); tokens, bytes: their numbers. facts of the data set;
    `n_words` or `words` (with `n_bytes` or `bytes`, to check that the whole text was predicted) lead to word perplexity.
    """
    n = len(nll_N)
    total_tokens, total_bytes = int(tokens_N.sum()), int(bytes_N.sum())
    counts = {"sequences": n, "tokens": total_tokens, "bytes": total_bytes}
    broken = int((~np.isfinite(nll_N)).sum())
    if broken:
        reason = f"{broken} of {n} sequences have a loss that is not finite"
        abouts = {"loss": "mean -log p per token, nats", "perplexity": _PERPLEXITY, "bits_per_byte": _BITS}
        metrics = {k: Metric.undefined(reason, n=n, better="lower", about=a) for k, a in abouts.items()}
        return {"primary": "bits_per_byte", "metrics": metrics, "counts": counts, "notes": [reason]}
    total = math.fsum(nll_N)
    columns = np.stack([nll_N, tokens_N, bytes_N], axis=1).astype(np.float64)
    nll_R, tokens_R, bytes_R = resample_sums(columns, resamples, generator(seed, "language")).T
    loss = total / total_tokens
    ends = percentile(nll_R / tokens_R, confidence)

    def metric(value: float, interval: tuple[float, float] | None, about: str) -> Metric:
        return Metric.bootstrapped(value, interval, n, "lower", about, unit="sequences")

    metrics = {"loss": metric(loss, ends, "mean -log p per token, nats")}
    metrics["perplexity"] = _exponential(metrics["loss"], _PERPLEXITY)
    if total_bytes:
        per_bit = math.log(2)
        metrics["bits_per_byte"] = metric(total / per_bit / total_bytes, percentile(nll_R / per_bit / bytes_R, confidence), _BITS)
    else:
        metrics["bits_per_byte"] = Metric.undefined("the task counted no bytes", n=n, better="lower", about=_BITS)
    words = facts.get("n_words", facts.get("words"))
    notes: list[str] = []
    if words:
        counts["words"] = int(words)
        whole = facts.get("n_bytes", facts.get("bytes"))
        share = total_bytes / whole if whole else None
        if share is not None and not _WHOLE <= share <= 1 / _WHOLE:
            reason = f"{share:.1%} of the text's bytes were predicted; word perplexity needs the whole text"
            metrics["word_perplexity"] = Metric.undefined(reason, n=n, better="lower", about=_WORD)
        else:
            # Words per token is a fact of the text: resampling varies the loss, the ratio stays.
            per_word = total_tokens / words
            by_word = metric(loss * per_word, None if ends is None else (ends[0] * per_word, ends[1] * per_word), _WORD)
            metrics["word_perplexity"] = _exponential(by_word, _WORD)
            notes.append(f"Word perplexity: exp({total:,.1f} nats / {words:,} words); {total_tokens / words:.3f} tokens a word.")
    return {"primary": "bits_per_byte" if total_bytes else "perplexity", "metrics": metrics, "counts": counts, "notes": notes}


def _exponential(loss: Metric, about: str) -> Metric:
    """Return exp of a loss and of its interval's ends: a monotone map transforms a percentile interval exactly."""
    assert loss.value is not None
    if loss.value > 700:
        return Metric.undefined(f"exp({loss.value:.4g}) is larger than a float64 holds", n=loss.n, better="lower", about=about)
    ends = [None if e is None else (math.exp(e) if e < 700 else None) for e in (loss.low, loss.high)]
    return Metric(math.exp(loss.value), ends[0], ends[1], loss.n, loss.method, "lower", about, loss.reason)
