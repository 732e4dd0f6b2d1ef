"""Word and character error rate of a recogniser, and its time relative to the length of the recordings. Runs no model.

Rates are errors over length, summed over all recordings before dividing, as NIST's sclite does. Intervals resample recordings.
"""

from __future__ import annotations

import numpy as np

from tauon.metrics.intervals import generator, percentile, resample_sums
from tauon.metrics.metric import Metric, Scores

__all__ = ["speech_recognition"]

_WER, _CER = "(substitutions + deletions + insertions of words) / words said", "the same, of characters"
_EXACT = "share of recordings without an error"


def speech_recognition(
    found: dict[str, np.ndarray], *, seconds: float | None, rate: int | None, confidence: float, resamples: int, seed: int
) -> Scores:
    """Return the fields of an `Evaluation`.

    found: character_errors, characters, word_errors, words, samples: N each. `seconds`: time of recognition; `rate`: sampling rate.
    """
    n = len(found["words"])
    columns = np.stack([found[k] for k in ("word_errors", "words", "character_errors", "characters")], axis=1).astype(np.float64)
    exact = (found["character_errors"] == 0).astype(np.float64)
    total = columns.sum(0)
    drawn = resample_sums(np.concatenate([columns, exact[:, None]], 1), resamples, generator(seed, "speech"))

    def rate_of(at: int, about: str) -> Metric:
        value = float(total[at] / total[at + 1])
        return Metric.bootstrapped(value, percentile(drawn[:, at] / drawn[:, at + 1], confidence), n, "lower", about, unit="recordings")

    metrics = {"word_error_rate": rate_of(0, _WER), "character_error_rate": rate_of(2, _CER)}
    metrics["exact"] = Metric.bootstrapped(
        float(exact.mean()), percentile(drawn[:, 4] / n, confidence), n, "higher", _EXACT, unit="recordings"
    )
    counts = {"recordings": n, "words": int(total[1]), "characters": int(total[3])}
    notes = []
    if seconds and rate:
        heard = float(found["samples"].sum()) / rate
        notes.append(f"Real-time factor {seconds / heard:.4f}: {seconds:.2f} s for {heard:,.1f} s of recordings, reading them included.")
    return {"primary": "word_error_rate", "metrics": metrics, "counts": counts, "notes": notes}
