"""Which examples are chosen, what is said about them, and how two models are compared: properties of the parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tauon.explain.compare import _mcnemar
from tauon.explain.drawing.shapes import bars, scaled, words
from tauon.explain.parts.choose import choose_examples
from tauon.explain.parts.opening import _half, _span
from tauon.explain.subject import Sample


def sample(outputs: np.ndarray, targets: np.ndarray, losses: np.ndarray | None = None) -> Sample:
    n = len(outputs)
    return Sample(np.arange(n), outputs.astype(np.float32), np.zeros(n, np.float32) if losses is None else losses, targets)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=st.floats(0, 1, width=32)), st.integers(0, 15), st.booleans(),
    st.integers(0, 3),
)  # fmt: skip
def test_no_example_is_chosen_twice(outputs: np.ndarray, n: int, classes: bool, seed: int) -> None:
    made = sample(outputs, np.arange(len(outputs)) % outputs.shape[1], outputs[:, 0])
    chosen = choose_examples(made, n, classes=classes, seed=seed)
    places = [place for place, _ in chosen]
    assert len(set(places)) == len(places) == min(n, len(outputs)) and all(0 <= p < len(outputs) for p in places)
    assert choose_examples(made, n, classes=classes, seed=seed) == chosen


def test_confident_wrong_and_uncertain_answers_are_among_the_first() -> None:
    outputs = np.array([[0.9, 0.1], [0.55, 0.45], [0.2, 0.8], [0.01, 0.99]])
    chosen = choose_examples(sample(outputs, np.array([0, 0, 0, 1])), 3, classes=True)
    assert chosen == [(0, "a confident right answer"), (2, "a confident wrong answer"), (1, "an uncertain answer")]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=200))
def test_mcnemar_is_the_binomial_test_of_the_changed_answers(pairs: list[tuple[bool, bool]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    before, after = (np.array([p[i] for p in pairs], bool) for i in (0, 1))
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert _mcnemar(before, after) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_changed_answers() -> None:
    before = np.zeros(5000, bool)
    after = np.arange(5000) % 5 < 2
    before[after.nonzero()[0][:900]] = True
    assert 0 <= _mcnemar(before, ~after) <= 1


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1e6)))
def test_the_span_holds_half(along: np.ndarray) -> None:
    low, high = _span(along)
    assert 0 <= low <= high < len(along) and along[low : high + 1].sum() >= along.sum() / 2 * (1 - 1e-9)


def test_half_of_what_counts() -> None:
    assert _half(np.array([[1.0, 1.0, 1.0, 1.0]])) == 0.5 and _half(np.array([[9.0, 1.0]])) == 0.5 and _half(np.zeros((2, 3))) == 0


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.integers(0, 20), elements=st.floats(allow_nan=True, allow_infinity=True)))
def test_colours_are_finite_whatever_the_values(values: np.ndarray) -> None:
    found = scaled(values)
    assert np.isfinite(found).all() and (np.abs(found) <= 1).all()
    names = [f"<{i}>" for i in range(len(values))]
    for html in (words(names, values.tolist(), signed=True), bars(names, values.tolist())):
        assert "<0>" not in html and 'style="left:nan' not in html and "width:nan" not in html and "inf%" not in html
