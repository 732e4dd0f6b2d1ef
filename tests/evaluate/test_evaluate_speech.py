"""Word and character error rates: sums over recordings, intervals, real-time factor."""

from __future__ import annotations

import numpy as np
import pytest

from tauon.metrics.speech import speech_recognition


def test_rates_are_errors_over_lengths_added_up() -> None:
    found = {
        "character_errors": np.array([0, 3, 1]), "characters": np.array([10, 5, 5]), "word_errors": np.array([0, 2, 1]),
        "words": np.array([2, 1, 2]), "samples": np.array([8000, 8000, 16000]),
    }  # fmt: skip
    made = speech_recognition(found, seconds=0.5, rate=8000, confidence=0.95, resamples=500, seed=0)
    metrics = made["metrics"]
    assert metrics["word_error_rate"].value == pytest.approx(3 / 5) and metrics["character_error_rate"].value == pytest.approx(4 / 20)
    assert metrics["exact"].value == pytest.approx(1 / 3) and metrics["word_error_rate"].low <= 0.6 <= metrics["word_error_rate"].high
    assert made["primary"] == "word_error_rate" and "Real-time factor 0.1250" in made["notes"][0]
