"""How a model's output depends on a column: partial dependence, individual conditional expectation (ICE), accumulated local effects (ALE), and
the strength of interactions between two columns.

Sources: Friedman 2001 (partial dependence); Goldstein et al. 2015, arXiv:1309.6392 (ICE); Apley & Zhu 2020, arXiv:1612.08468 (ALE); Friedman &
Popescu 2008, arXiv:0811.1679 (H statistic). Partial dependence asks the model about rows that may not exist where columns go together; ALE
changes a value by one bin at most. Intervals are of the bootstrap over rows: the grid and the model are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError
from tauon.explain.features.columns import Feature, Matrix, Predict, answers_of, check_rows
from tauon.metrics.intervals import generator

__all__ = ["Dependence", "DependenceSettings", "Interaction", "accumulated_local_effects", "grid_of", "interactions", "partial_dependence"]


@dataclass(frozen=True)
class DependenceSettings:
    """Grids, rows and intervals."""

    grid: int = 20
    """Values of a number, at quantiles of the rows."""
    rows: int = 500
    """Rows used; more are thinned by the seed."""
    curves: int = 30
    """ICE curves kept."""
    resamples: int = 200
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Dependence:
    """The model's output along the values of one column."""

    feature: str
    kind: str
    """partial dependence, or accumulated local effects."""
    output: int
    grid: tuple[float, ...]
    """Values; codes of a category."""
    labels: tuple[str, ...]
    """Names of the categories, empty for a number."""
    average: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    ice: tuple[tuple[float, ...], ...] = ()
    """Curves of single rows."""
    values: tuple[float, ...] = field(default=(), repr=False)
    """Deciles of the column: where the curve has data below it."""

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        return {
            key: [list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, tuple) else value
            for key, value in plain.items()
        }


@dataclass(frozen=True)
class Interaction:
    """How much two columns act together."""

    first: str
    second: str
    h: float
    """Friedman's H: share of the pair's joint effect that is not a sum of the two, 0 to about 1; large by chance where both effects are weak."""
    h_low: float
    h_high: float
    size: float
    """Standard deviation of that part, in units of the output: how much it matters."""
    size_low: float
    size_high: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def grid_of(column_N: Matrix, feature: Feature, most: int) -> Matrix:
    """Return the values at which a column is tried: distinct quantiles that occur; every category or value if there are few."""
    values = np.unique(column_N)
    if feature.kind == "category" or len(values) <= most:
        return values.astype(np.float64)
    spaced: Matrix = np.unique(np.quantile(column_N, np.linspace(0, 1, most), method="nearest"))
    return spaced


def partial_dependence(
    predict: Predict,
    rows_NF: Matrix,
    features: Sequence[Feature],
    column: str,
    *,
    output: int = 0,
    settings: DependenceSettings | None = None,
) -> Dependence:
    """Return the mean output when every row has the same value of `column`, for each value of the grid, with the curves of single rows."""
    settings = settings or DependenceSettings()
    rows_NF, at = _rows(rows_NF, features, settings), _column(features, column)
    grid = grid_of(rows_NF[:, at], features[at], settings.grid)
    outputs_GN = np.stack([_with(predict, rows_NF, {at: value}, output) for value in grid])
    low, high = _band(outputs_GN, settings, f"partial dependence of {column}")
    kept = generator(settings.seed, f"curves of {column}").permutation(len(rows_NF))[: settings.curves]
    curves = tuple(tuple(float(v) for v in outputs_GN[:, i]) for i in sorted(kept))
    return _dependence("partial dependence", features[at], output, (grid, outputs_GN.mean(1), low, high), curves, rows_NF[:, at])


def accumulated_local_effects(
    predict: Predict,
    rows_NF: Matrix,
    features: Sequence[Feature],
    column: str,
    *,
    output: int = 0,
    settings: DependenceSettings | None = None,
) -> Dependence:
    """Return the accumulated effect of a number: the mean change of the output from one bin edge to the next, of the rows in that bin,
    summed and centred on the rows. DataError for a category (it has no order), or a constant column.
    """
    settings = settings or DependenceSettings()
    rows_NF, at = _rows(rows_NF, features, settings), _column(features, column)
    edges = grid_of(rows_NF[:, at], features[at], settings.grid)
    if features[at].kind == "category" or len(edges) < 2:
        why = "a category, whose values have no order" if features[at].kind == "category" else "constant"
        raise DataError(f"column {column!r} is {why}: accumulated local effects need numbers. Use partial_dependence")
    bin_N = np.clip(np.searchsorted(edges, rows_NF[:, at], side="left") - 1, 0, len(edges) - 2)  # bins (a, b]; the first has its lower end
    upper, lower = (answers_of(predict, _moved(rows_NF, at, edges[bin_N + k]))[:, output] for k in (1, 0))
    effect_N = upper - lower

    def curve(weight_N: Matrix) -> Matrix:
        counts = np.bincount(bin_N, weight_N, len(edges) - 1)
        steps = np.bincount(bin_N, weight_N * effect_N, len(edges) - 1) / np.maximum(counts, 1e-12)
        path = np.concatenate([[0.0], np.cumsum(steps)])
        centre = float(weight_N @ np.interp(rows_NF[:, at], edges, path) / weight_N.sum())
        shifted: Matrix = path - centre
        return shifted

    rng = generator(settings.seed, f"accumulated local effects of {column}")
    count = len(rows_NF)
    drawn = np.stack([curve(np.bincount(rng.integers(0, count, count), minlength=count).astype(float)) for _ in range(settings.resamples)])
    low, high = _ends(drawn, settings.confidence)
    values = (edges, curve(np.ones(count)), low, high)
    return _dependence("accumulated local effects", features[at], output, values, (), rows_NF[:, at])


def interactions(
    predict: Predict, rows_NF: Matrix, features: Sequence[Feature], *, columns: Sequence[str] = (), output: int = 0, rows: int = 50,
    settings: DependenceSettings | None = None, progress: Callable[[int, int], None] | None = None,
) -> list[Interaction]:  # fmt: skip
    """Return Friedman's H of each pair of `columns` (default: all), the largest part of the output first.

    It asks the model about rows^2 rows a pair. A pair whose joint effect is zero has H 0.
    """
    settings = settings or DependenceSettings()
    chosen = [_column(features, name) for name in columns] or list(range(len(features)))
    rows_NF = _rows(rows_NF, features, DependenceSettings(rows=rows, seed=settings.seed))
    if len(rows_NF) < 2:
        raise DataError("interactions need at least 2 rows")
    rng = generator(settings.seed, "interactions")
    count = len(rows_NF)
    weights = [
        np.ones(count),
        *(np.bincount(rng.integers(0, count, count), minlength=count).astype(float) for _ in range(settings.resamples)),
    ]
    single = {j: _at_own_values(predict, rows_NF, (j,), output) for j in chosen}
    pairs = list(combinations(chosen, 2))
    found = []
    for done, (j, k) in enumerate(pairs):
        joint_RM = _at_own_values(predict, rows_NF, (j, k), output)
        figures = np.array([_h(joint_RM, single[j], single[k], w) for w in weights])
        low, high = _ends(figures[1:], settings.confidence) if len(weights) > 1 else (figures[0], figures[0])
        h, size = figures[0]
        found.append(
            Interaction(
                features[j].name, features[k].name, float(h), float(low[0]), float(high[0]), float(size), float(low[1]), float(high[1])
            )
        )
        if progress is not None:
            progress(done + 1, len(pairs))
    return sorted(found, key=lambda one: -one.size)


def _h(joint_RM: Matrix, one_RM: Matrix, other_RM: Matrix, weight_N: Matrix) -> tuple[float, float]:
    """(H, size) with rows counted `weight_N` times, both as those whose values are set and as those averaged over."""
    share = weight_N / weight_N.sum()
    joint, one, other = (part @ share for part in (joint_RM, one_RM, other_RM))
    joint, one, other = (part - part @ share for part in (joint, one, other))
    together, total = float(share @ (joint - one - other) ** 2), float(share @ joint**2)
    return (float(np.sqrt(together / total)) if total > 1e-20 else 0.0), float(np.sqrt(together))


def _at_own_values(predict: Predict, rows_NF: Matrix, columns: tuple[int, ...], output: int) -> Matrix:
    """(R, M): output of row m with the columns of row r."""
    count = len(rows_NF)
    mixed = np.tile(rows_NF, (count, 1))
    mixed[:, columns] = np.repeat(rows_NF[:, columns], count, axis=0)
    return answers_of(predict, mixed)[:, output].reshape(count, count)


def _rows(rows_NF: Matrix, features: Sequence[Feature], settings: DependenceSettings) -> Matrix:
    rows_NF = check_rows(rows_NF, features)
    if not len(rows_NF):
        raise DataError("got no row: dependence is a mean over rows")
    if len(rows_NF) <= settings.rows:
        return rows_NF
    kept: NDArray[np.int64] = np.sort(generator(settings.seed, "rows of dependence").permutation(len(rows_NF))[: settings.rows])
    return rows_NF[kept]


def _column(features: Sequence[Feature], name: str) -> int:
    names = [feature.name for feature in features]
    if name not in names:
        raise DataError(f"there is no column {name!r}: the columns are {', '.join(names[:20])}")
    return names.index(name)


def _moved(rows_NF: Matrix, at: int, values: Matrix | float) -> Matrix:
    mixed = rows_NF.copy()
    mixed[:, at] = values
    return mixed


def _with(predict: Predict, rows_NF: Matrix, values: dict[int, float], output: int) -> Matrix:
    mixed = rows_NF
    for at, value in values.items():
        mixed = _moved(mixed, at, value)
    found: Matrix = answers_of(predict, mixed)[:, output]
    return found


def _band(outputs_GN: Matrix, settings: DependenceSettings, purpose: str) -> tuple[Matrix, Matrix]:
    rng = generator(settings.seed, purpose)
    count = outputs_GN.shape[1]
    weights = np.stack([np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(settings.resamples)])
    return _ends(weights @ outputs_GN.T / count, settings.confidence)


def _ends(drawn_R: Matrix, confidence: float) -> tuple[Matrix, Matrix]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn_R, (tail, 1 - tail), axis=0)
    return low, high


def _dependence(
    kind: str,
    feature: Feature,
    output: int,
    curve: tuple[Matrix, Matrix, Matrix, Matrix],
    ice: tuple[tuple[float, ...], ...],
    column_N: Matrix,
) -> Dependence:
    labels = tuple(feature.categories[int(v)] for v in curve[0]) if feature.kind == "category" else ()
    plain = [tuple(float(v) for v in part) for part in curve]
    deciles = () if labels else tuple(float(v) for v in np.quantile(column_N, np.linspace(0, 1, 11)))
    return Dependence(feature.name, kind, output, plain[0], labels, plain[1], plain[2], plain[3], ice, deciles)
