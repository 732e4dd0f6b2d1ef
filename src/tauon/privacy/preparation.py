"""What preparation learns from the data, under the same budget as training: means and deviations, quantiles, histograms, vocabularies.

Each function gives (value, releases): the releases go to the accountant and the ledger with those of the training steps. Bounds and lists that
a person states are public; taking them from the data without noise is what this file is there to avoid. N, the number of examples, is public, and
neighbours differ by one example that counts nothing.

No noise is used twice: two answers with the same noise differ by exactly what the data differs by. Each question claims its name from the source,
and a name that was claimed before from this key is refused, whatever the data (that it was let pass where the data is the same would tell that
it is the same). Another question, and the same one once more, take a `name` of their own.

    statistics   one Gaussian answer for all features together: sums of values clipped to bounds, and of their squares
    quantiles    the exponential mechanism over the gaps between values (Smith 2011), or a binary search with noisy counts
    histogram    Gaussian counts of categories that are known beforehand
    vocabulary   which items there are at all: Gaussian counts above a threshold, each person's contribution bounded (partition selection:
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
    """Mean and standard deviation of each column, in one Gaussian answer.

    With u = (x - middle) / half-width in [-1, 1], an example adds (u, u^2 - 1/2), whose norm is at most sqrt(5 F / 4), whatever its values.

    Args:
        features: (N, F), finite.
        bounds: public lower and upper bound of each column, or of all; values beyond are clipped.
        noise: multiplier: standard deviation over what one example can add.
        source: of the noise.
        name: of the draw; used once.
        least: smallest standard deviation that is given back, as a share of the half-width. Noise can make a variance small, or negative,
            and what is divided by it enormous; left out: the deviation whose variance is as large as the noise in it, at least 0.001.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not x.size:
        raise DataError(f"private statistics are of a table (examples, features), got shape {x.shape}.")
    if not np.isfinite(x).all():
        raise DataError(f"{int((~np.isfinite(x)).sum())} values are missing or not finite. Fill them with a public value first.")
    low, high = (np.broadcast_to(np.asarray(b, dtype=np.float64), x.shape[1:]) for b in bounds)
    if not np.all(low < high):
        raise RecipeError(
            f"bounds of feature {int(np.argmin(high - low))} are {low.tolist()} to {high.tolist()}: a lower one must be below the upper one."
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
    """Quantiles by the exponential mechanism, each epsilon-differentially private; returned in rising order if asked for in it.

    The gap between two neighbouring values (clipped to `bounds`, which are public) is chosen with probability proportional to its length
    times exp(-epsilon |rank - q N| / 2), a point in it evenly. One example moves a rank by at most 1.
    """
    low, high = bounds
    if not low < high:
        raise RecipeError(f"bounds {low:g} to {high:g}: the lower one must be below the upper one.")
    if not 0 < epsilon < math.inf:
        raise RecipeError(f"epsilon {epsilon:g} of a quantile: expected a number above 0.")
    x = np.sort(np.clip(np.asarray(values, dtype=np.float64), low, high))
    if not x.size or not np.isfinite(x).all():
        raise DataError("quantiles need at least one value, all of them finite.")
    edges = np.concatenate([[low], x, [high]])
    length = np.diff(edges)
    for q in quantiles:
        if not 0 <= q <= 1:
            raise RecipeError(f"quantile {q:g} is not between 0 and 1.")
    found = []
    stream = _claimed(source, "quantiles", name)
    for place, q in enumerate(quantiles):
        score = -np.abs(np.arange(len(length)) - q * len(x))
        with np.errstate(divide="ignore"):
            weight = np.log(length) + 0.5 * epsilon * score
        gumbel = -np.log(-np.log(_uniform(source, f"{stream}/{place}/gap", len(length))))
        gap = int(np.argmax(np.where(length > 0, weight + gumbel, -np.inf)))  # as if drawn with these probabilities
        found.append(float(edges[gap] + length[gap] * _uniform(source, f"{stream}/{place}/place", 1)[0]))
    if list(quantiles) == sorted(quantiles):
        found.sort()  # free: nothing is looked at again
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
    """One quantile by halving `bounds`, each time by a noisy count of the values below: `halvings` Gaussian answers, which compose better with
    training steps than an epsilon does. Exact to (high - low) / 2^halvings, and to the noise in the rank.
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
    """Noisy counts of `size` categories that are known beforehand, one per example (class balance, say); may be negative."""
    counted = np.asarray(list(codes), dtype=np.int64)
    if counted.size and (counted.min() < 0 or counted.max() >= size):
        raise DataError(f"codes run from {counted.min()} to {counted.max()}, and there are {size} categories.")
    exact = np.bincount(counted, minlength=size).astype(np.float64)
    release = Release(noise, "full")
    return exact + noise * _normal(source, _claimed(source, "histogram", name), size), [release]


def threshold_for(delta: float, noise: float, most: int) -> float:
    """The least threshold at which items that one person alone holds are shown with probability at most `delta`.

    A person with t items adds 1/sqrt(t) to each: P(any shown) = 1 - Phi((threshold - 1/sqrt(t)) / noise)^t, the worst over t = 1 ... `most`.
    """
    from scipy.special import ndtri

    if not 0 < delta < 1:
        raise RecipeError(f"delta {delta:g} of a threshold is out of range: expected above 0 and below 1.")
    t = np.arange(1, most + 1)
    each = -np.expm1(np.log1p(-delta) / t)  # allowed chance of each item
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
    """The items that enough people have, with noisy weights, the heaviest first: (item, weight) pairs.

    Args:
        people: the items of each person (or example, or document): repeats count once, and of more than `most` an even choice is kept.
        noise: multiplier of the counts: a person's contribution has norm 1.
        delta: chance that an item of one person alone is shown; spent beside the Gaussian's.
        most: items that one person may contribute.
        source: of noise and choices.
        size: items that are kept, at most.
        name: of the draw; used once.

    Items are strings or numbers. What is shown does not depend on the order of `people`, but for the choice among too many items.
    """
    if most < 1:
        raise RecipeError(f"most={most}: a person must be allowed at least one item.")
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
    """The stream of one question, which nobody has drawn from."""
    stream = f"{what}/{name}"
    source.claim(f"preparation/{stream}", f"private_{what} drew its noise under the name {name!r} from this key before", "name=")
    return stream


def _normal(source: NoiseSource, name: str, count: int) -> Array:
    return np.asarray(source.normal(0, f"preparation/{name}", (count,)).numpy(), dtype=np.float64)


def _uniform(source: NoiseSource, name: str, count: int) -> Array:
    """Even in (0, 1), by the normal's distribution function."""
    from scipy.special import ndtr

    even: Array = ndtr(_normal(source, name, count))
    return np.asarray(np.clip(even, 1e-300, 1 - 1e-16), dtype=np.float64)
