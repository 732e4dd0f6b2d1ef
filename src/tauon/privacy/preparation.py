"""Private data preparation, under the same budget as training: means and deviations, quantiles, histograms, vocabularies.

Each function returns (value, releases): the releases go to the accountant and the ledger with those of the training steps. Bounds and lists
that a person states are public; this file avoids taking them from the data without noise. N, the number of examples, is public, and
neighbors differ by one example that is zeroed out.

No noise is used twice: the difference of two answers with the same noise is the exact difference of the data. Each query claims its name from
the source, and a name that was already claimed from this key is refused, whatever the data (accepting it for the same data would reveal that
it is the same). Another query, or the same one again, needs its own `name`.

    statistics   one Gaussian answer for all features: sums of values clipped to bounds, and of their squares
    quantiles    the exponential mechanism over the gaps between values (Smith 2011), or a binary search with noisy counts
    histogram    Gaussian counts of categories from a public list
    vocabulary   the items of the data: those with a Gaussian count above a threshold, each person's contribution bounded (partition selection:
                 Korolova et al. 2009; weighted Gaussian: Gopi et al. 2020, arXiv:2002.09745)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tauon.errors import DataError, RecipeError
from tauon.privacy.accounting import Release
from tauon.privacy.noise import NoiseSource

__all__ = [
    "Statistics",
    "private_histogram",
    "private_quantile_search",
    "private_quantiles",
    "private_statistics",
    "private_vocabulary",
    "threshold_for",
]

Array = NDArray[np.float64]
Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True)
class Statistics:
    """Noisy moments of F features."""

    mean: Array
    std: Array
    error: Array
    """Standard deviation of the noise in each mean."""


def private_statistics(
    features: ArrayLike,
    bounds: tuple[ArrayLike, ArrayLike],
    *,
    noise: float,
    source: NoiseSource,
    name: str = "statistics",
    least: float | None = None,
) -> tuple[Statistics, list[Release]]:
    """Return mean and standard deviation of each column, in one Gaussian answer.

    With u = (x - middle) / half-width in [-1, 1], an example adds (u, u^2 - 1/2), whose norm is at most sqrt(5 F / 4), whatever its values.

    Args:
        features: (N, F), finite.
        bounds: public lower and upper bound of each column, or of all; values beyond are clipped.
        noise: noise multiplier (standard deviation / sensitivity).
        source: of the noise.
        name: of the draw; can be used once.
        least: smallest standard deviation to return, as a share of the half-width. Noise can make a variance tiny or negative, and dividing
            by it gives huge values. Default: the deviation whose variance equals the noise in it, at least 0.001.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not x.size:
        raise DataError(f"private statistics need an array (examples, features), got shape {x.shape}.")
    if not np.isfinite(x).all():
        raise DataError(f"{int((~np.isfinite(x)).sum())} values are missing or not finite. Fill them with a public value first.")
    low, high = (np.broadcast_to(np.asarray(b, dtype=np.float64), x.shape[1:]) for b in bounds)
    if not np.all(low < high):
        raise RecipeError(
            f"bounds of feature {int(np.argmin(high - low))} are {low.tolist()} to {high.tolist()}: the lower bound must be below the upper one."
        )
    count, width = x.shape
    middle, half = (low + high) / 2, (high - low) / 2
    u = np.clip((x - middle) / half, -1.0, 1.0)
    most = math.sqrt(1.25 * width)
    release = Release(noise, "full")
    drawn = _normal(source, _claimed(source, "statistics", name), 2 * width) * noise * most
    first = (u.sum(0) + drawn[:width]) / count
    second = ((u**2 - 0.5).sum(0) + drawn[width:]) / count + 0.5
    first = np.clip(first, -1.0, 1.0)
    floor = max(1e-6, noise * most / count) if least is None else least**2
    std = half * np.sqrt(np.maximum(second - first**2, floor))
    return Statistics(middle + half * first, std, half * noise * most / count), [release]


def private_quantiles(
    values: ArrayLike,
    quantiles: Sequence[float],
    bounds: tuple[float, float],
    *,
    epsilon: float,
    source: NoiseSource,
    name: str = "quantiles",
) -> tuple[list[float], list[Release]]:
    """Return quantiles by the exponential mechanism, each epsilon-differentially private; in rising order if `quantiles` is.

    The gap between two adjacent values (clipped to the public `bounds`) is chosen with probability proportional to its length times
    exp(-epsilon |rank - q N| / 2), and a point in it uniformly. One example moves a rank by at most 1.
    """
    low, high = bounds
    if not low < high:
        raise RecipeError(f"got bounds {low:g} to {high:g}: the lower bound must be below the upper one.")
    if not 0 < epsilon < math.inf:
        raise RecipeError(f"got epsilon {epsilon:g} for a quantile: expected a number above 0.")
    x = np.sort(np.clip(np.asarray(values, dtype=np.float64), low, high))
    if not x.size or not np.isfinite(x).all():
        raise DataError("quantiles need at least one value, and all values must be finite.")
    edges = np.concatenate([[low], x, [high]])
    length = np.diff(edges)
    for q in quantiles:
        if not 0 <= q <= 1:
            raise RecipeError(f"got quantile {q:g}: expected a number from 0 to 1.")
    found = []
    stream = _claimed(source, "quantiles", name)
    for place, q in enumerate(quantiles):
        score = -np.abs(np.arange(len(length)) - q * len(x))
        with np.errstate(divide="ignore"):
            weight = np.log(length) + 0.5 * epsilon * score
        gumbel = -np.log(-np.log(_uniform(source, f"{stream}/{place}/gap", len(length))))
        gap = int(np.argmax(np.where(length > 0, weight + gumbel, -np.inf)))  # a draw with these probabilities (Gumbel-max)
        found.append(float(edges[gap] + length[gap] * _uniform(source, f"{stream}/{place}/place", 1)[0]))
    if list(quantiles) == sorted(quantiles):
        found.sort()  # post-processing: costs nothing
    return found, [Release(0.0, "known", count=len(found), known=(float(epsilon), 0.0))] if found else []


def private_quantile_search(
    values: ArrayLike,
    quantile: float,
    bounds: tuple[float, float],
    *,
    noise: float,
    source: NoiseSource,
    halvings: int = 16,
    name: str = "search",
) -> tuple[float, list[Release]]:
    """Return one quantile by binary search in `bounds` with a noisy count of the values below at each step: `halvings` Gaussian answers,
    which compose better with training steps than an epsilon does. Exact up to (high - low) / 2^halvings and the noise in the rank.
    """
    low, high = bounds
    if not low < high or not 0 <= quantile <= 1 or halvings < 1:
        raise RecipeError(
            f"got bounds {low:g} to {high:g}, quantile {quantile:g}, {halvings} halvings: expected low < high, 0 <= q <= 1, and at least one."
        )
    x = np.sort(np.clip(np.asarray(values, dtype=np.float64), low, high))
    drawn = _normal(source, _claimed(source, "quantile_search", name), halvings) * noise
    for turn in range(halvings):
        middle = 0.5 * (low + high)
        below = float(np.searchsorted(x, middle, side="right")) + drawn[turn]
        low, high = (middle, high) if below < quantile * len(x) else (low, middle)
    return 0.5 * (low + high), [Release(noise, "full", count=halvings)]


def private_histogram(
    codes: Iterable[int], size: int, *, noise: float, source: NoiseSource, name: str = "histogram"
) -> tuple[Array, list[Release]]:
    """Return noisy counts of `size` public categories, one per example (e.g. class balance); may be negative."""
    counted = np.asarray(list(codes), dtype=np.int64)
    if counted.size and (counted.min() < 0 or counted.max() >= size):
        raise DataError(f"category codes are from {counted.min()} to {counted.max()}, but there are only {size} categories.")
    exact = np.bincount(counted, minlength=size).astype(np.float64)
    release = Release(noise, "full")
    return exact + noise * _normal(source, _claimed(source, "histogram", name), size), [release]


def threshold_for(delta: float, noise: float, most: int) -> float:
    """Smallest threshold at which an item of only one person is released with probability at most `delta`.

    A person with t items adds 1/sqrt(t) to each: P(any released) = 1 - Phi((threshold - 1/sqrt(t)) / noise)^t, the worst over t = 1 ... `most`.
    """
    from scipy.special import ndtri

    if not 0 < delta < 1:
        raise RecipeError(f"got delta {delta:g} for a threshold: expected a number above 0 and below 1.")
    t = np.arange(1, most + 1)
    each = -np.expm1(np.log1p(-delta) / t)  # allowed probability of each item
    return float(np.max(1 / np.sqrt(t) - noise * ndtri(each)))


def private_vocabulary(
    people: Iterable[Iterable[Item]],
    *,
    noise: float,
    delta: float,
    most: int,
    source: NoiseSource,
    size: int | None = None,
    name: str = "vocabulary",
) -> tuple[list[tuple[Item, float]], list[Release]]:
    """Return the items that enough people have as (item, noisy weight) pairs, the largest weight first.

    Args:
        people: the items of each person (or example, or document): repeats count once; of more than `most`, a uniform sample is used.
        noise: noise multiplier of the counts; the contribution of a person has norm 1.
        delta: probability that an item of only one person is released; added to the Gaussian's delta.
        most: maximum items of one person.
        source: of noise and samples.
        size: maximum number of items to return.
        name: of the draw; can be used once.

    Items are strings or numbers. The result does not depend on the order of `people`, except for the sample from too many items.
    """
    if most < 1:
        raise RecipeError(f"got most={most}: expected at least 1 item per person.")
    limit = threshold_for(delta, noise, most)
    stream = _claimed(source, "vocabulary", name)
    weights: dict[Any, float] = defaultdict(float)
    for number, items in enumerate(people):
        own = sorted(set(items), key=repr)
        if len(own) > most:
            keys = _uniform(source, f"{stream}/choice/{number}", len(own))
            own = [own[i] for i in sorted(np.argsort(keys)[:most])]
        for item in own:
            weights[item] += 1 / math.sqrt(len(own))
    items = sorted(weights, key=repr)
    noisy = np.array([weights[i] for i in items]) + noise * _normal(source, f"{stream}/weights", len(items)) if items else np.empty(0)
    shown = sorted(
        ((item, float(w)) for item, w in zip(items, noisy, strict=True) if w >= limit), key=lambda pair: (-pair[1], repr(pair[0]))
    )
    return shown[:size], [Release(noise, "full"), Release(0.0, "known", known=(0.0, delta))]


def _claimed(source: NoiseSource, what: str, name: str) -> str:
    """Name of the stream of one query, after claiming it."""
    stream = f"{what}/{name}"
    source.claim(f"preparation/{stream}", f"private_{what} has already used the name {name!r} with this key", "name=")
    return stream


def _normal(source: NoiseSource, name: str, count: int) -> Array:
    return np.asarray(source.normal(0, f"preparation/{name}", (count,)).numpy(), dtype=np.float64)


def _uniform(source: NoiseSource, name: str, count: int) -> Array:
    """Uniform in (0, 1), through the normal distribution function."""
    from scipy.special import ndtr

    even: Array = ndtr(_normal(source, name, count))
    return np.asarray(np.clip(even, 1e-300, 1 - 1e-16), dtype=np.float64)
