"""Slices where a model fails: conjunctions of readable conditions under which its error is larger than elsewhere (SliceFinder: Chung et al. 2020,
arXiv:1807.06068), with a correction for having looked at many.

The rows are halved by the seed. Slices are searched on one half, and only on the other half are they tested: one-sided, by Fisher's exact test for
errors of 0 and 1 and by Welch's t test for other losses. Benjamini & Hochberg (1995) corrects for all slices that were tested, so that of the
slices reported at most a share `rate` is expected to be chance. Overlapping slices are dependent in the way that the procedure allows (Benjamini &
Yekutieli 2001). Does not ask a model: it reads the error of each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError
from tauon.explain.features.columns import Condition, Feature, Matrix, check_rows, shortest_between
from tauon.metrics.intervals import generator, wilson, z_score

__all__ = ["Slice", "SliceReport", "SliceSettings", "benjamini_hochberg", "find_slices", "fisher_p", "welch_p"]

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SliceSettings:
    """What is searched and tested."""

    max_conditions: int = 2
    min_rows: int = 20
    """Fewest rows of a slice, in each half."""
    bins: int = 4
    """Parts of a number, at quantiles; each part, and each side of each quantile, is a condition."""
    tested: int = 50
    """Slices that are tested on the second half: those with the largest effect on the first."""
    rate: float = 0.05
    """False discovery rate of the slices that are reported."""
    confidence: float = 0.95
    most: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Slice:
    """One slice; its figures are of the second half of the rows, which did not choose it."""

    text: str
    conditions: tuple[Condition, ...]
    rows: int
    rows_outside: int
    error: float
    error_interval: tuple[float, float]
    error_outside: float
    effect: float
    """Difference of the errors in pooled standard deviations."""
    p: float
    p_corrected: float
    """Benjamini-Hochberg over all tested slices."""

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self) | {"error_interval": list(self.error_interval)}
        ends = {math.inf: None, -math.inf: None}
        plain["conditions"] = [
            asdict(c) | {"low": ends.get(c.low, c.low), "high": ends.get(c.high, c.high), "codes": list(c.codes)} for c in self.conditions
        ]
        return plain


@dataclass(frozen=True)
class SliceReport:
    """What was found, and how much was looked at."""

    slices: tuple[Slice, ...]
    searched: int
    """Conjunctions looked at on the first half."""
    tested: int
    """Slices tested on the second half: what the correction counts."""
    error: float
    """Of all rows."""
    rows: int
    note: str
    """The result as a sentence; an empty result says so."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"slices": [found.to_json() for found in self.slices]}


def find_slices(rows_NF: Matrix, errors_N: Matrix, features: Sequence[Feature], *, settings: SliceSettings | None = None) -> SliceReport:
    """Return the slices in which the error (0 and 1, or a loss) is larger than outside, the strongest evidence first. A slice is left out
    where the slices before it explain it: where the error is not larger among its rows outside of them.

    Use held-out rows. DataError for errors that are not finite, or fewer rows than two halves need.
    """
    settings = settings or SliceSettings()
    rows_NF, errors_N = check_rows(rows_NF, features), np.asarray(errors_N, np.float64).reshape(-1)
    if len(errors_N) != len(rows_NF) or not np.isfinite(errors_N).all():
        raise DataError(f"got {int(np.isfinite(errors_N).sum())} finite errors for {len(rows_NF)} rows: one is needed for each row")
    if len(rows_NF) < 4 * settings.min_rows:
        need = f"{4 * settings.min_rows}: two halves, each with {settings.min_rows} rows inside a slice and as many outside"
        raise DataError(f"got {len(rows_NF)} rows, need at least {need}. Give more rows, or a smaller min_rows")
    overall = float(errors_N.mean())
    if np.ptp(errors_N) == 0:
        note = f"Every one of {len(rows_NF):,} rows has the error {overall:.4g}: no slice can differ."
        return SliceReport((), 0, 0, overall, len(rows_NF), note)
    order = generator(settings.seed, "halves of slices").permutation(len(rows_NF))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    candidates, searched = _search(rows_NF[first], errors_N[first], features, settings)
    tested = [t for c in candidates if (t := _tested(c, rows_NF[second], errors_N[second], features, settings)) is not None]
    corrected = benjamini_hochberg([t.p for t in tested])
    tested = [replace(t, p_corrected=q) for t, q in zip(tested, corrected, strict=True)]
    below = sorted((t for t in tested if t.p_corrected <= settings.rate), key=lambda t: (t.p, len(t.conditions), t.text))
    found = _without_repeats(below, rows_NF[second], errors_N[second], settings.rate)
    looked = f"{searched:,} slices were looked at on one half of {len(rows_NF):,} rows, {len(tested)} were tested on the other"
    if found:
        note = f"{len(found)} slices have a larger error than the rows outside of them ({looked}; false discovery rate {settings.rate:g})."
    else:
        note = f"No slice has a larger error beyond chance ({looked}; false discovery rate {settings.rate:g})."
    return SliceReport(tuple(found[: settings.most]), searched, len(tested), overall, len(rows_NF), note)


# ---------------------------------------------------------------------------------------------- search


def _conditions(rows_NF: Matrix, features: Sequence[Feature], bins: int) -> list[Condition]:
    """Conditions on one column each: a category, a flag, a part of a number, or a side of a quantile."""
    found: list[Condition] = []
    for j, feature in enumerate(features):
        values = np.unique(rows_NF[:, j])
        if len(values) < 2:
            continue
        if feature.kind == "category":
            found += [Condition(j, codes=(int(code),)) for code in values]
            continue
        steps = np.unique(np.quantile(rows_NF[:, j], np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
        nexts = [values[values > step] for step in steps]
        edges = [shortest_between(float(step), float(above[0])) for step, above in zip(steps, nexts, strict=True) if len(above)]
        found += [Condition(j, high=edge) for edge in edges] + [Condition(j, low=edge) for edge in edges]
        found += [Condition(j, low=a, high=b) for a, b in pairwise(edges)]
    return found


def _search(
    rows_NF: Matrix, errors_N: Matrix, features: Sequence[Feature], settings: SliceSettings
) -> tuple[list[tuple[Condition, ...]], int]:
    """Conjunctions with the largest effects on these rows, of different sets of rows, and how many were looked at."""
    singles = _conditions(rows_NF, features, settings.bins)
    masks_LN = np.array([c.mask(rows_NF) for c in singles], np.float64).reshape(len(singles), len(rows_NF))
    level: list[tuple[tuple[int, ...], Matrix]] = [((), np.ones(len(rows_NF)))]
    best: dict[bytes, tuple[float, tuple[int, ...]]] = {}
    searched = 0
    for size in range(settings.max_conditions):
        ranked: list[tuple[float, tuple[int, ...]]] = []
        for parts, mask_N in level:
            allowed = [
                i
                for i in range(len(singles))
                if (not parts or i > parts[-1]) and singles[i].column not in {singles[p].column for p in parts}
            ]
            if not allowed:
                continue
            effects = _effects(masks_LN[allowed] * mask_N, errors_N, settings.min_rows)
            searched += int(np.isfinite(effects).sum())
            ranked += [(float(e), (*parts, i)) for e, i in zip(effects, allowed, strict=True) if e > 0]
        ranked.sort(key=lambda entry: (-entry[0], entry[1]))
        for effect, parts in ranked[: settings.tested * 4]:
            key = np.packbits(masks_LN[list(parts)].prod(0) > 0).tobytes()
            best.setdefault(key, (effect, parts))  # fewer conditions come first
        if size == 0:  # a pair can fail where neither condition does alone
            level = [((i,), masks_LN[i]) for i in range(len(singles))]
        else:
            level = [(parts, masks_LN[list(parts)].prod(0)) for _, parts in ranked[:200]]
    order = sorted(best.values(), key=lambda entry: (-entry[0], len(entry[1]), entry[1]))
    return [tuple(singles[i] for i in parts) for _, parts in order[: settings.tested]], searched


def _effects(masks_SN: Matrix, errors_N: Matrix, min_rows: int) -> Matrix:
    """Standardised difference of the mean error inside and outside of each slice; -inf where a side has too few rows."""
    count, total, squares = len(errors_N), errors_N.sum(), (errors_N**2).sum()
    inside, sums, inner = masks_SN.sum(1), masks_SN @ errors_N, masks_SN @ errors_N**2
    fine = (inside >= min_rows) & (count - inside >= min_rows)
    n, m = np.where(fine, inside, 1.0), np.where(fine, count - inside, 1.0)
    mean_in, mean_out = sums / n, (total - sums) / m
    variance = (np.maximum(inner / n - mean_in**2, 0) + np.maximum((squares - inner) / m - mean_out**2, 0)) / 2
    # Half a row's worth of the overall variance keeps a slice without any variance from having an infinite effect.
    effect = (mean_in - mean_out) / np.sqrt(variance + errors_N.var() * 0.5 / n)
    found: Matrix = np.where(fine, effect, -np.inf)
    return found


# ---------------------------------------------------------------------------------------------- tests


def _tested(
    conditions: tuple[Condition, ...], rows_NF: Matrix, errors_N: Matrix, features: Sequence[Feature], settings: SliceSettings
) -> Slice | None:
    inside = np.logical_and.reduce([c.mask(rows_NF) for c in conditions])
    here, there = errors_N[inside], errors_N[~inside]
    if min(len(here), len(there)) < 2:
        return None
    binary = bool(np.isin(errors_N, (0.0, 1.0)).all())
    p = _p_of(errors_N, inside, binary)
    if binary:
        interval = wilson(float(here.sum()), len(here), settings.confidence)
    else:
        half = z_score(settings.confidence) * float(here.std(ddof=1)) / math.sqrt(len(here))
        interval = float(here.mean()) - half, float(here.mean()) + half
    pooled = math.sqrt((float(here.var()) + float(there.var())) / 2)
    effect = (float(here.mean()) - float(there.mean())) / pooled if pooled > 0 else 0.0
    text = " and ".join(c.text(features) for c in conditions)
    return Slice(text, conditions, len(here), len(there), float(here.mean()), interval, float(there.mean()), effect, p, p)


def _p_of(errors_N: Matrix, inside: Mask, binary: bool) -> float:
    here, there = errors_N[inside], errors_N[~inside]
    return fisher_p(int(here.sum()), len(here), int(there.sum()), len(there)) if binary else welch_p(here, there)


def _without_repeats(found: list[Slice], rows_NF: Matrix, errors_N: Matrix, rate: float) -> list[Slice]:
    """Leave out slices whose error is not larger (p > rate) once the rows of the slices before them are taken away."""
    kept: list[Slice] = []
    left = np.ones(len(rows_NF), bool)
    binary = bool(np.isin(errors_N, (0.0, 1.0)).all())
    for one in found:
        inside = np.logical_and.reduce([c.mask(rows_NF) for c in one.conditions])
        rest = inside[left]
        if min(int(rest.sum()), int((~rest).sum())) >= 2 and _p_of(errors_N[left], rest, binary) <= rate:
            kept.append(one)
            left &= ~inside
    return kept


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """Return corrected p-values: reporting those up to q has a false discovery rate of at most q.

    >>> benjamini_hochberg([0.01, 0.02, 0.03, 0.5])
    [0.04, 0.04, 0.04, 0.5]
    """
    corrected = [0.0] * len(ps)
    least = 1.0
    for rank, i in sorted(enumerate(sorted(range(len(ps)), key=ps.__getitem__), 1), reverse=True):
        least = min(least, ps[i] * len(ps) / rank)
        corrected[i] = least
    return corrected


def fisher_p(errors_in: int, rows_in: int, errors_out: int, rows_out: int) -> float:
    """Return P[at least `errors_in` of the errors fall inside] if each row is as likely to have one (Fisher's exact test, one-sided).

    >>> round(fisher_p(3, 4, 1, 4), 4)
    0.2429
    """
    errors, rows = errors_in + errors_out, rows_in + rows_out

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    whole = log_choose(rows, errors)
    ends = range(errors_in, min(errors, rows_in) + 1)
    return min(
        1.0, math.fsum(math.exp(log_choose(rows_in, k) + log_choose(rows_out, errors - k) - whole) for k in ends if errors - k <= rows_out)
    )


def welch_p(inside: Matrix, outside: Matrix) -> float:
    """Return the one-sided p-value of Welch's t test that the mean inside is larger."""
    a, b = float(inside.var(ddof=1)) / len(inside), float(outside.var(ddof=1)) / len(outside)
    difference = float(inside.mean()) - float(outside.mean())
    if a + b <= 0:
        return 0.0 if difference > 0 else 1.0
    freedom = (a + b) ** 2 / (a**2 / (len(inside) - 1) + b**2 / (len(outside) - 1))
    t = difference / math.sqrt(a + b)
    tail = 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return tail if t > 0 else 1 - tail


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b) by its continued fraction (Press et al. 2007, section 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 300):
        for numerator in (m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)), -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))):
            d, c = 1 / (1 + numerator * d), 1 + numerator / c
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * value
