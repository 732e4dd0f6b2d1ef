"""Axes, curves and numbers as they are drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.report.curves import buckets, envelope, smooth, thin
from tauon.report.plots import Line, Mark, chart, nice_ticks, scale, tick_label
from tauon.report.text import clock, escape, figure, human_bytes, label, spread


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_few_inside_and_evenly_spaced(low, width):
    high = low + width
    if not high - low > 1e-9 * abs(low):
        return
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    slack = 1e-6 * (high - low)
    assert all(low - slack <= t <= high + slack for t in ticks)
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-5)
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-4


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20), st.booleans())
def test_a_scale_places_every_value_within_the_axis(values, zero):
    axis = scale(values, zero=zero)
    assert math.isfinite(axis.low)
    assert axis.high > axis.low
    assert axis.ticks
    for v in values:
        if math.isfinite(v):
            assert 0 <= axis(v) <= 1
    assert all(0 <= at <= 1 for at, _ in axis.labels())


def test_an_axis_is_logarithmic_only_for_positive_values_over_two_decades():
    assert scale([1, 2000]).log
    assert not scale([1, 50]).log
    assert not scale([-1, 2000]).log
    assert not scale([1, 2000], zero=True).log
    assert scale([0.001, 0.2, 1.0], log=True)(0.001) < scale([0.001, 0.2, 1.0], log=True)(0.01)


def test_an_axis_that_starts_at_zero_does():
    assert scale([30.0, 40.0], zero=True).low == 0


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0, 1, "0"),
        (0.25, 0.05, "0.25"),
        (2000, 500, "2,000"),
        (20_000, 5000, "20k"),
        (1.5e6, 5e5, "1.5M"),
        (3e-4, 1e-4, "3e-4"),
        (-2.5, 0.5, "-2.5"),
    ],
)
def test_tick_labels_are_short(value, step, text):
    assert tick_label(value, step) == text


def test_buckets_cover_everything_once():
    for n in (0, 1, 5, 480, 481, 99_999):
        cut = buckets(n)
        assert sum(b - a for a, b in cut) == n
        assert all(b > a for a, b in cut)
        assert len(cut) <= 480


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 2**32 - 1))
def test_thinning_keeps_ends_and_extremes(n, seed):
    rng = np.random.default_rng(seed)
    ys = np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n)).tolist()
    xs = list(range(n))
    kept = [p for p in thin(xs, ys, 50) if p is not None]
    ranges = [p for p in envelope(xs, ys, 50) if p is not None]
    finite = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if not finite:
        assert not kept
        return
    assert set(kept) <= set(finite)
    assert len(kept) <= 104
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    for extreme in (min, max):
        assert extreme(y for _, y in kept) == extreme(y for _, y in finite)
    if math.isfinite(ys[0]):
        assert kept[0] == (0, ys[0])
    if math.isfinite(ys[-1]):
        assert kept[-1] == (n - 1, ys[-1])
    assert min(low for _, low, _ in ranges) == min(y for _, y in finite)
    assert max(high for _, _, high in ranges) == max(y for _, y in finite)


def test_smoothing_equals_numpys_windowed_mean_and_passes_over_nan():
    rng = np.random.default_rng(0)
    ys = rng.normal(size=300)
    ours = smooth(ys.tolist(), 21)
    assert ours[100] == pytest.approx(ys[90:111].mean())
    assert ours[0] == ys[0]
    assert ours[299] == pytest.approx(ys[289:].mean())
    ys[105] = np.nan
    ours = smooth(ys.tolist(), 21)
    assert ours[100] == pytest.approx(np.nanmean(ys[90:111]))
    assert math.isnan(ours[105])


def test_a_line_is_broken_at_gaps_and_a_lone_point_is_seen():
    html = chart("a", "A", [Line("x", [(0, 1.0), (1, 2.0), None, (3, 1.0)])], y_label="y")
    assert html.count('class="line tone-a" d="M') == 1
    path = html.split('class="line tone-a" d="')[1].split('"')[0]
    assert path.count("M") == 2
    assert path.endswith("h0")


def test_marks_stand_where_the_steps_are():
    html = chart("a", "A", [Line("x", [(0, 1.0), (100, 2.0)]), Mark("skip", [25])], y_label="y")
    assert "M250 0V300" in html


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.98712, 0.98480, 0.98918, ("0.9871", "0.9848", "0.9892")),
        (26.671, 26.16, 27.14, ("26.67", "26.16", "27.14")),
        (1234.5, 1100.0, 1400.0, ("1,234", "1,100", "1,400")),
        (1.3743e9, 1.17e9, 1.6e9, ("1.374e9", "1.170e9", "1.600e9")),
        (0.5, None, None, ("0.5000", "–", "–")),
        (1.0, 1.0, 1.0, ("1.000", "1.000", "1.000")),
    ],
)
def test_a_value_has_the_digits_that_its_interval_supports(value, low, high, text):
    assert spread(value, low, high) == text


def test_words_for_numbers():
    assert figure(None) == "–"
    assert figure(math.nan) == "not a number"
    assert figure(-math.inf) == "−∞"
    assert figure(0.00001234) == "1.234e-5"
    assert clock(221) == "3 min 41 s"
    assert clock(86_400 * 2 + 3600) == "2 d 1 h"
    assert clock(0.5) == "0.5 s"
    assert clock(3600) == "1 h"
    assert human_bytes(8_402_113) == "8.0 MiB"
    assert label("bits_per_byte") == "Bits per byte"
    assert label("f1_macro") == "F1 (macro)"
    assert label("precision_weighted") == "Precision (weighted)"
    assert escape('<a href="x">&\x00') == "&lt;a href=&quot;x&quot;&gt;&amp;\ufffd"
