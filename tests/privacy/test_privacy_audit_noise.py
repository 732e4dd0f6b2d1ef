"""The noise that an audit sees: refuted where it is less than stated, and not where it is as stated, whatever the examples add."""

from __future__ import annotations

import numpy as np
import pytest

from tauon.privacy.audit import noise_level


def squares(scale: float, *, signal: float = 0.0, seed: int = 0, canaries: int = 500, steps: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    seen = scale * rng.normal(size=(canaries, steps)) + signal * rng.random((canaries, 1)) + included[:, None]
    return (seen**2).sum(1), included


def test_right_noise_is_refuted_as_seldom_as_the_confidence_says() -> None:
    refuted = [noise_level(*_in_order(squares(1.0, seed=s)), confidence=0.9).contradicts for s in range(400)]  # type: ignore[union-attr]
    assert 0.06 < np.mean(refuted) < 0.14
    signals = [noise_level(*_in_order(squares(1.0, signal=0.5, seed=s)), confidence=0.9).contradicts for s in range(100)]  # type: ignore[union-attr]
    assert not any(signals)  # what examples add only makes it larger


def test_the_upper_bound_holds_as_often_as_it_says() -> None:
    """Noise of 0.8, examples that add nothing: the bound is above it in 90 of 100."""
    above = [noise_level(*_in_order(squares(0.8, seed=s)), confidence=0.9).at_most > 0.8 for s in range(400)]  # type: ignore[union-attr]
    assert 0.86 < np.mean(above) < 0.94


@pytest.mark.parametrize("scale", [0.0, 0.5, 0.9, 0.97])
def test_less_noise_is_refuted(scale: float) -> None:
    found = noise_level(*_in_order(squares(scale)), confidence=0.99)
    assert found is not None and found.contradicts and found.ratio == pytest.approx(scale, abs=0.02) and found.at_most < 1


def test_with_nothing_to_look_at_nothing_is_said() -> None:
    assert noise_level(np.ones(3), 0, np.zeros(3, bool)) is None
    assert noise_level(np.ones(3), 5, np.ones(3, bool)) is None


def _in_order(found: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, int, np.ndarray]:
    return found[0], 40, found[1]
