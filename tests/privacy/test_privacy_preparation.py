"""Private preparation: right where noise is small, noised as it says, and no answer moves further than its sensitivity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

pytest.importorskip("dp_accounting")

from tauon.errors import DataError, PrivacyError, RecipeError
from tauon.privacy.accounting import Release, epsilon
from tauon.privacy.noise import NoiseSource
from tauon.privacy.preparation import (
    private_histogram,
    private_quantile_search,
    private_quantiles,
    private_statistics,
    private_vocabulary,
    threshold_for,
)

TINY = 1e-9
SOURCE = NoiseSource(bytes(32), secret=False, repeats=True)
"""Of tests that ask the same thing several times."""


def test_statistics_are_numpys_where_noise_is_small_and_nothing_is_clipped() -> None:
    x = np.random.default_rng(0).normal([1.0, -20.0], [0.5, 4.0], (400, 2))
    found, releases = private_statistics(x, ([-4, -60], [6, 20]), noise=TINY, source=SOURCE)
    assert found.mean == pytest.approx(x.mean(0), abs=1e-6) and found.std == pytest.approx(x.std(0), rel=1e-5)
    assert releases == [Release(TINY, "full")]
    clipped, _ = private_statistics(x, (-1, 1), noise=TINY, source=SOURCE)
    assert clipped.mean == pytest.approx(np.clip(x, -1, 1).mean(0), abs=1e-6)


def test_noise_in_the_means_is_as_large_as_it_says() -> None:
    x = np.zeros((50, 3))
    answers = [private_statistics(x, (-2, 2), noise=1.5, source=SOURCE, name=str(i))[0] for i in range(500)]
    means = np.array([a.mean for a in answers])
    assert means.std(0) == pytest.approx(answers[0].error, rel=0.12)
    assert answers[0].error == pytest.approx(2 * 1.5 * math.sqrt(1.25 * 3) / 50)
    assert min(a.std.min() for a in answers) > 0


def test_noise_never_makes_a_deviation_nearly_nothing() -> None:
    """What is divided by it would be enormous. 200 constant columns: about half of the noisy variances are below zero."""
    found, _ = private_statistics(np.zeros((900, 200)), (-1, 1), noise=1.0, source=SOURCE)
    noise = math.sqrt(1.25 * 200) / 900  # in each mean square
    assert found.std.min() == pytest.approx(math.sqrt(noise))
    assert 0.02 < np.mean(found.std > 1.01 * found.std.min()) < 0.3  # a normal number is above its deviation in 16% of all cases
    assert private_statistics(np.zeros((9, 2)), (-1, 1), noise=1.0, source=SOURCE, least=0.7)[0].std.min() >= 0.7


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3))
def test_one_example_adds_at_most_the_sensitivity_that_noise_is_measured_in(row: list[float]) -> None:
    u = np.clip(np.array(row) / 2, -1, 1)
    assert np.linalg.norm(np.concatenate([u, u**2 - 0.5])) <= math.sqrt(1.25 * 3) + 1e-12


def test_quantiles_are_numpys_where_epsilon_is_large() -> None:
    x = np.random.default_rng(1).normal(size=999)
    found, releases = private_quantiles(x, [0.1, 0.5, 0.9], (-10, 10), epsilon=200, source=SOURCE)
    assert found == pytest.approx(np.quantile(x, [0.1, 0.5, 0.9]), abs=0.02)
    assert releases == [Release(0.0, "known", count=3, known=(200.0, 0.0))]
    searched, releases = private_quantile_search(x, 0.5, (-10, 10), noise=TINY, source=SOURCE, halvings=20)
    assert searched == pytest.approx(np.median(x), abs=0.01) and releases == [Release(TINY, "full", count=20)]
    noisy, _ = private_quantile_search(x, 0.5, (-10, 10), noise=20.0, source=SOURCE)
    assert 0.2 < (x < noisy).mean() < 0.8


def test_gaps_are_chosen_with_the_probabilities_of_the_exponential_mechanism() -> None:
    """Chi-squared test against length times exp(-epsilon |rank - q N| / 2)."""
    x, eps, q = np.array([1.0, 2.0, 4.0, 7.0]), 0.8, 0.5
    edges = np.concatenate([[0.0], x, [10.0]])
    weight = np.diff(edges) * np.exp(-eps * np.abs(np.arange(5) - q * 4) / 2)
    drawn = [private_quantiles(x, [q], (0, 10), epsilon=eps, source=SOURCE, name=str(i))[0][0] for i in range(2000)]
    counts = np.histogram(drawn, edges)[0]
    assert stats.chisquare(counts, weight / weight.sum() * 2000).pvalue > 0.001


def test_neighbours_change_the_odds_of_a_quantile_by_at_most_its_epsilon() -> None:
    """Densities of the output on a grid, computed from the mechanism's definition, for a value that is taken away or moved."""

    def density(x: np.ndarray, n: int) -> np.ndarray:
        edges = np.concatenate([[0.0], np.sort(x), [1.0]])
        score = np.exp(-0.7 * np.abs(np.arange(len(edges) - 1) - 0.3 * n) / 2)
        grid = np.linspace(0.001, 0.999, 400)
        at = np.clip(np.searchsorted(edges, grid, side="right") - 1, 0, len(score) - 1)
        return score[at] / float(score @ np.diff(edges))

    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.random(12)
        for other in (x[1:], np.concatenate([x[1:], rng.random(1)])):
            ratio = np.log(density(x, len(x)) / density(other, len(other)))
            assert np.abs(ratio).max() <= 0.7 + 1e-9


def test_histograms_are_counts_with_noise() -> None:
    codes = [0, 0, 2, 1, 0]
    assert private_histogram(codes, 4, noise=TINY, source=SOURCE)[0] == pytest.approx([3, 1, 1, 0], abs=1e-6)
    many = np.array([private_histogram(codes, 4, noise=2.0, source=SOURCE, name=str(i))[0] for i in range(400)])
    assert (many - [3, 1, 1, 0]).std() == pytest.approx(2.0, rel=0.1)
    with pytest.raises(DataError, match=r"4 categories"):
        private_histogram([4], 4, noise=1.0, source=SOURCE)


@pytest.mark.parametrize("most", [1, 5])
def test_items_of_one_person_are_shown_as_rarely_as_delta_says(most: int) -> None:
    """The closed form at its worst number of items, and counted."""
    noise, delta = 2.0, 0.05
    limit = threshold_for(delta, noise, most)
    t = np.arange(1, most + 1)
    chances = 1 - stats.norm.cdf((limit - 1 / np.sqrt(t)) / noise) ** t
    assert chances.max() == pytest.approx(delta, rel=1e-6)
    worst = int(t[chances.argmax()])
    shown = [
        bool(private_vocabulary([range(worst)], noise=noise, delta=delta, most=most, source=SOURCE, name=str(i))[0]) for i in range(1500)
    ]
    assert np.mean(shown) == pytest.approx(delta, abs=4 * math.sqrt(delta / 1500))


def test_a_vocabulary_holds_what_many_have_and_counts_each_person_once() -> None:
    people = [["a", "a", "b"]] * 300 + [["c"] * 50] + [["a"]] * 100
    found, releases = private_vocabulary(people, noise=1.0, delta=1e-6, most=2, source=SOURCE)
    assert [item for item, _ in found] == ["a", "b"]
    assert dict(found)["a"] == pytest.approx(300 / math.sqrt(2) + 100, abs=4)
    assert private_vocabulary(people, noise=1.0, delta=1e-6, most=2, source=SOURCE, size=1)[0] == found[:1]
    assert releases == [Release(1.0, "full"), Release(0.0, "known", known=(0.0, 1e-6))]
    assert epsilon(releases, 1e-5) == pytest.approx(epsilon(Release(1.0, "full"), 1e-5 - 1e-6), rel=1e-3)
    whole = [[f"w{i}" for i in range(100)]] * 1000
    kept, _ = private_vocabulary(whole, noise=1.0, delta=1e-6, most=10, source=SOURCE)
    assert sum(w for _, w in kept) == pytest.approx(1000 * math.sqrt(10), rel=0.02)
    assert private_vocabulary([], noise=1.0, delta=1e-6, most=2, source=SOURCE)[0] == []


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda: private_statistics(np.zeros(3), (0, 1), noise=1.0, source=SOURCE), DataError, "an array"),
        (lambda: private_statistics([[math.nan]], (0, 1), noise=1.0, source=SOURCE), DataError, "1 values are missing"),
        (lambda: private_statistics([[1.0]], (1, 1), noise=1.0, source=SOURCE), RecipeError, "below the upper"),
        (lambda: private_statistics([[1.0]], (0, 1), noise=0.0, source=SOURCE), RecipeError, "epsilon is infinite"),
        (lambda: private_quantiles([1.0], [0.5], (2, 1), epsilon=1, source=SOURCE), RecipeError, "below the upper"),
        (lambda: private_quantiles([1.0], [1.5], (0, 1), epsilon=1, source=SOURCE), RecipeError, "expected a number from 0 to 1"),
        (lambda: private_quantiles([], [0.5], (0, 1), epsilon=1, source=SOURCE), DataError, "at least one value"),
        (lambda: private_quantiles([1.0], [0.5], (0, 1), epsilon=0, source=SOURCE), RecipeError, "above 0"),
        (lambda: private_quantile_search([1.0], 0.5, (0, 1), noise=1.0, source=SOURCE, halvings=0), RecipeError, "at least one"),
        (lambda: private_vocabulary([["a"]], noise=1.0, delta=0.0, most=1, source=SOURCE), RecipeError, "expected a number above 0 and below 1"),
        (lambda: private_vocabulary([["a"]], noise=1.0, delta=0.1, most=0, source=SOURCE), RecipeError, "expected at least 1 item per person"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused(act: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        act()  # type: ignore[operator]


# ---------------------------------------------------------------------------------------------- no noise is used twice

ROWS = np.random.default_rng(2).random(50)
ASKED = {
    "statistics": lambda x, source, **name: private_statistics(x[:, None], (0, 1), noise=5.0, source=source, **name)[0].mean,
    "quantiles": lambda x, source, **name: private_quantiles(x, [0.5, 0.5], (0, 1), epsilon=1.0, source=source, **name)[0],
    "quantile_search": lambda x, source, **name: private_quantile_search(x, 0.5, (0, 1), noise=5.0, source=source, **name)[0],
    "histogram": lambda x, source, **name: private_histogram((3 * x).astype(int), 3, noise=5.0, source=source, **name)[0],
    "vocabulary": lambda x, source, **name: private_vocabulary(
        [[int(3 * v), 9] for v in x], noise=5.0, delta=0.1, most=2, source=source, **name
    )[0],
}  # fmt: skip


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("same_data", [True, False])
def test_a_second_answer_with_the_noise_of_the_first_is_refused(what: str, same_data: bool) -> None:
    """Whatever the data: that the same data is let pass would tell that it is the same. Two sources of one key are one."""
    key = np.random.default_rng(len(what)).bytes(32) + bytes([same_data])
    ask = ASKED[what]
    one, other = NoiseSource(key[1:]), NoiseSource(key[1:])
    first = ask(ROWS, one)
    for source in (one, other):
        with pytest.raises(PrivacyError, match=rf"private_{what} has already used the name '\w+' with this key.*Give name= its own name"):
            ask(ROWS if same_data else ROWS[1:], source)
    again = ask(ROWS, other, name="second")
    assert np.asarray(first).shape != np.asarray(again).shape or not np.array_equal(first, again)
    ask(ROWS, NoiseSource.secure())


def test_a_name_is_used_by_an_answer_and_not_by_what_was_refused() -> None:
    source = NoiseSource.secure()
    with pytest.raises(DataError):
        private_histogram([4], 4, noise=1.0, source=source)
    with pytest.raises(RecipeError):
        private_histogram([1], 4, noise=0.0, source=source)
    private_histogram([1], 4, noise=1.0, source=source)
    private_statistics([[0.5]], (0, 1), noise=1.0, source=source, name="histogram")  # another question's names are its own


def test_two_quantiles_of_one_share_are_drawn_apart() -> None:
    values = [private_quantiles(ROWS, [0.5, 0.5], (0, 1), epsilon=0.5, source=NoiseSource.secure())[0] for _ in range(20)]
    assert all(a != b for a, b in values)


def test_steps_of_training_are_drawn_again_on_purpose() -> None:
    one, other = NoiseSource(bytes(32)), NoiseSource(bytes(32))
    assert (one.normal(3, "weight", (5,)) == other.normal(3, "weight", (5,))).all()
