"""Counterfactuals of a table's row: the smallest changes that turn the model's decision into another one (Wachter, Mittelstadt & Russell 2018,
arXiv:1711.00399; sparse and diverse as in Mothilal, Sharma & Tan 2020, arXiv:1905.07697).

Changes are searched by asking the model: all single columns over a grid, then pairs and more by a beam, then the changeable columns of training
rows that have the wanted decision, with as many columns set back as possible. Only columns that may change are changed; numbers stay inside the
training range (whole where the column is), categories are ones that training rows have. Each answer is checked by asking the model again.
A counterfactual says what the model would answer, not what a change would do in the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError
from tauon.explain.features.columns import Feature, Matrix, Predict, answers_of, check_rows, shortest_between, value_text
from tauon.metrics.intervals import generator

__all__ = ["Change", "Counterfactual", "CounterfactualSettings", "Counterfactuals", "find_counterfactuals"]


@dataclass(frozen=True)
class CounterfactualSettings:
    """What counts as another decision, and how long to search."""

    target: int | None = None
    """Class to reach. None: any other class."""
    interval: tuple[float, float] | None = None
    """For a model with one value: the range to reach."""
    margin: float = 0.0
    """How much more probable the new class must be than every other."""
    most: int = 3
    """Counterfactuals to return, each with its own set of columns."""
    max_columns: int = 4
    grid: int = 16
    """Values of a number that are tried."""
    beam: int = 40
    """Partial changes that are kept while columns are added."""
    neighbours: int = 20
    """Training rows with the wanted decision whose columns are tried."""
    seed: int = 0


@dataclass(frozen=True)
class Change:
    """One column's change."""

    name: str
    before: float
    after: float
    text: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Counterfactual:
    """A changed row for which the model gives another answer; checked by asking it."""

    changes: tuple[Change, ...]
    row: tuple[float, ...]
    outputs: tuple[float, ...]
    """The model's outputs for it."""
    distance: float
    """Sum of the changes: of numbers in median absolute deviations of the training rows, 1 for each category or flag."""

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        return plain | {"changes": [change.to_json() for change in self.changes], "row": list(self.row), "outputs": list(self.outputs)}


@dataclass(frozen=True)
class Counterfactuals:
    """What was found for one row: fewest columns first, then the smallest distance."""

    outputs: tuple[float, ...]
    """The model's outputs for the row as it is."""
    found: tuple[Counterfactual, ...]
    asked: int
    """Changed rows that the model was asked about."""
    note: str = ""
    """What was not found, and within which limits."""

    def to_json(self) -> dict[str, Any]:
        return {"outputs": list(self.outputs), "found": [one.to_json() for one in self.found], "asked": self.asked, "note": self.note}

    def sentences(self, classes: Sequence[str] = ()) -> list[str]:
        """Write each as a sentence: "The answer would be paid (0.61) if amount were 3,000 instead of 5,951."."""
        said = []
        for one in self.found:
            wishes = " and ".join(change.text for change in one.changes)
            if len(one.outputs) == 1:
                said.append(f"The value would be {one.outputs[0]:.4g} if {wishes}.")
            else:
                best = int(np.argmax(one.outputs))
                name = classes[best] if classes else f"class {best}"
                said.append(f"The answer would be {name} ({one.outputs[best]:.2f}) if {wishes}.")
        return said or [self.note]


def find_counterfactuals(
    predict: Predict, row_F: Matrix, train_NF: Matrix, features: Sequence[Feature], *, settings: CounterfactualSettings | None = None
) -> Counterfactuals:
    """Return changes of one row (F,) that flip the model's decision. Deterministic for a seed.

    Nothing found is not a proof that nothing exists, except for changes of a single column to a value that was tried: `note` says what was
    tried. DataError where the target is not a class, or is the model's answer already.
    """
    settings = settings or CounterfactualSettings()
    train_NF, row_F = check_rows(train_NF, features, "the training rows"), check_rows(row_F, features, "the row")[0]
    search = _Search(predict, row_F, train_NF, features, settings)
    if not search.columns:
        return search.result([], "No column of this table may change, so no change can flip the decision.")
    found = search.single() + search.several() + search.from_neighbours()
    kept = search.diverse(found)
    limits = f"{search.asked:,} changed rows, at most {settings.max_columns} of {len(search.columns)} changeable columns, inside the training range"
    note = ""
    if not kept:
        note = f"No change that flips the decision was found among {limits}."
    elif len(kept) < settings.most:
        note = f"Only {len(kept)} of {settings.most} were found among {limits}."
    return search.result(kept, note)


class _Search:
    """The state of one search: candidate values, scales, and how often the model was asked."""

    def __init__(
        self, predict: Predict, row_F: Matrix, train_NF: Matrix, features: Sequence[Feature], settings: CounterfactualSettings
    ) -> None:
        self.predict, self.row_F, self.train_NF, self.features, self.settings = predict, row_F, train_NF, features, settings
        self.asked = 0
        self.before_C = answers_of(predict, row_F[None])[0]
        self.answer = int(self.before_C.argmax())
        self._check_target()
        self.scales = np.array([_scale(train_NF[:, j]) for j in range(len(features))])
        self.columns = [j for j, feature in enumerate(features) if feature.changeable and len(self._values(j))]
        self.values = {j: self._values(j) for j in self.columns}
        self.partial: list[tuple[float, dict[int, float]]] = []

    def _check_target(self) -> None:
        target, interval = self.settings.target, self.settings.interval
        if len(self.before_C) == 1:
            if interval is None:
                raise DataError("the model has one value: name the range to reach (interval)")
            if interval[0] <= self.before_C[0] <= interval[1]:
                raise DataError(f"the model's value {self.before_C[0]:.4g} is inside {list(interval)} already: nothing to change")
        elif target is not None:
            if not 0 <= target < len(self.before_C):
                raise DataError(f"there is no class {target}: the model has classes 0 to {len(self.before_C) - 1}")
            if target == self.answer:
                raise DataError(f"the model answers class {target} already: nothing to change")

    def _values(self, j: int) -> Matrix:
        """Values that column j may take instead of its own."""
        feature, column = self.features[j], self.train_NF[:, j]
        if feature.kind == "category":
            values = np.array(sorted(set(feature.possible_codes()) & set(column.astype(int).tolist())), np.float64)
        elif feature.kind == "flag" or len(np.unique(column)) <= self.settings.grid:
            values = np.unique(column)
        else:
            values = np.unique(np.quantile(column, np.linspace(0, 1, self.settings.grid), method="nearest"))
        kept: Matrix = values[values != self.row_F[j]]
        return kept

    def gain(self, rows_NF: Matrix) -> Matrix:
        """How far the model is from (below 0), or beyond, the decision that is wanted, (N,)."""
        self.asked += len(rows_NF)
        outputs_NC = answers_of(self.predict, rows_NF)
        if self.settings.interval is not None and outputs_NC.shape[1] == 1:
            low, high = self.settings.interval
            return np.minimum(outputs_NC[:, 0] - low, high - outputs_NC[:, 0])
        wanted = self.settings.target
        if wanted is None:
            others = np.delete(outputs_NC, self.answer, axis=1).max(1)
            gained: Matrix = others - outputs_NC[:, self.answer] - self.settings.margin
        else:
            gained = outputs_NC[:, wanted] - np.delete(outputs_NC, wanted, axis=1).max(1) - self.settings.margin
        return gained

    def flips(self, gain_N: Matrix) -> NDArray[np.bool_]:
        return gain_N >= 0 if self.settings.interval is not None else gain_N > 0

    def rows_of(self, changes: Sequence[dict[int, float]]) -> Matrix:
        rows = np.tile(self.row_F, (len(changes), 1))
        for i, change in enumerate(changes):
            for j, value in change.items():
                rows[i, j] = value
        return rows

    def try_all(self, changes: list[dict[int, float]]) -> list[dict[int, float]]:
        """Return the changes that flip the decision; keep the best of the others to build on."""
        if not changes:
            return []
        gain_N = self.gain(self.rows_of(changes))
        flipped = self.flips(gain_N)
        self.partial += [(float(g), change) for g, change, flip in zip(gain_N, changes, flipped, strict=True) if not flip]
        return [change for change, flip in zip(changes, flipped, strict=True) if flip]

    def single(self) -> list[dict[int, float]]:
        """Every column alone, over all its values."""
        return self.try_all([{j: float(value)} for j in self.columns for value in self.values[j]])

    def several(self) -> list[dict[int, float]]:
        """More columns at once: all pairs of the most promising values, then a beam that adds one column at a time."""
        found: list[dict[int, float]] = []
        beam = self._best(1)
        for size in range(2, self.settings.max_columns + 1):
            if size == 2:
                tried = [a | b for (a, b) in combinations(self._best(1, self.settings.beam * 2), 2) if not a.keys() & b.keys()]
            else:
                tried = [change | single for change in beam for single in self._best(1) if not change.keys() & single.keys()]
            self.partial = [entry for entry in self.partial if len(entry[1]) == 1]
            found += self.try_all(list({tuple(sorted(change.items())): change for change in tried}.values()))
            beam = self._best(size)
            if len({frozenset(change) for change in found}) >= self.settings.most * 4:
                break
        return found

    def _best(self, size: int, most: int | None = None) -> list[dict[int, float]]:
        ranked = sorted((e for e in self.partial if len(e[1]) == size), key=lambda e: (-e[0], self.distance(e[1]), sorted(e[1].items())))
        return [change for _, change in ranked[: most or self.settings.beam]]

    def from_neighbours(self) -> list[dict[int, float]]:
        """The changeable columns of the nearest training rows with the wanted decision, each set back as far as the decision allows."""
        pool = self.train_NF
        if len(pool) > 5000:
            pool = pool[np.sort(generator(self.settings.seed, "neighbours").permutation(len(pool))[:5000])]
        moved = np.tile(self.row_F, (len(pool), 1))
        moved[:, self.columns] = pool[:, self.columns]
        moved = moved[self.flips(self.gain(moved))]
        changes = [self.change_of(row) for row in moved]
        found = []
        for change in sorted(changes, key=lambda c: (self.distance(c), sorted(c.items())))[: self.settings.neighbours]:
            kept = dict(change)
            for j in sorted(change, key=lambda j: (-self.distance({j: change[j]}), j)):
                fewer = {k: v for k, v in kept.items() if k != j}
                if fewer and self.flips(self.gain(self.rows_of([fewer])))[0]:
                    kept = fewer
            if len(kept) <= self.settings.max_columns:
                found.append(kept)
        return found

    def change_of(self, row_F: Matrix) -> dict[int, float]:
        return {j: float(row_F[j]) for j in self.columns if row_F[j] != self.row_F[j]}

    def distance(self, change: dict[int, float]) -> float:
        numbers = [abs(v - self.row_F[j]) / self.scales[j] if self.features[j].kind == "number" else 1.0 for j, v in sorted(change.items())]
        return float(sum(numbers))

    def smaller(self, change: dict[int, float]) -> dict[int, float]:
        """Move each number back towards its own value while the decision stays flipped, by bisection; short decimals where possible."""
        change = dict(change)
        for j in sorted((j for j in change if self.features[j].kind == "number"), key=lambda j: -self.distance({j: change[j]})):
            own, good = float(np.clip(self.row_F[j], self.train_NF[:, j].min(), self.train_NF[:, j].max())), change[j]
            bad = own
            for _ in range(40 if self.features[j].integer else 16):
                middle = (bad + good) / 2
                if self.features[j].integer:
                    middle = float(np.floor(middle) if good > bad else np.ceil(middle))
                if middle in (bad, good):
                    break
                if self.flips(self.gain(self.rows_of([change | {j: middle}])))[0]:
                    good = middle
                else:
                    bad = middle
            change[j] = good
            if not self.features[j].integer:
                change[j] = self._shorter(change, j)
        return change

    def _shorter(self, change: dict[int, float], j: int) -> float:
        """A value with fewer digits, at most 5% of the change further away, if it flips the decision, too."""
        value, more = change[j], 0.05 * (change[j] - self.row_F[j])
        low, high = sorted((value, float(np.clip(value + more, self.train_NF[:, j].min(), self.train_NF[:, j].max()))))
        short = shortest_between(low, high)
        return short if self.flips(self.gain(self.rows_of([change | {j: short}])))[0] else value

    def diverse(self, found: list[dict[int, float]]) -> list[Counterfactual]:
        """The best of each set of columns, without sets that contain one already chosen; made small and checked."""
        best: dict[frozenset[int], dict[int, float]] = {}
        for change in found:
            columns = frozenset(change)
            if columns not in best or self.distance(change) < self.distance(best[columns]):
                best[columns] = change
        chosen: list[frozenset[int]] = []
        for columns in sorted(best, key=lambda s: (len(s), self.distance(best[s]), sorted(s))):
            if not any(earlier <= columns for earlier in chosen):
                chosen.append(columns)
        small = [self.smaller(best[columns]) for columns in chosen[: self.settings.most * 4]]
        small.sort(key=lambda change: (len(change), self.distance(change), sorted(change.items())))
        return [self.checked(change) for change in small[: self.settings.most]]

    def checked(self, change: dict[int, float]) -> Counterfactual:
        row_1F = self.rows_of([change])
        assert self.flips(self.gain(row_1F))[0], "a change is only kept where the model's answer flips"
        outputs = tuple(float(v) for v in answers_of(self.predict, row_1F)[0])
        changes = tuple(Change(self.features[j].name, float(self.row_F[j]), v, self._text(j, v)) for j, v in sorted(change.items()))
        return Counterfactual(changes, tuple(float(v) for v in row_1F[0]), outputs, self.distance(change))

    def _text(self, j: int, value: float) -> str:
        feature = self.features[j]
        return f"{feature.name} were {value_text(feature, value)} instead of {value_text(feature, self.row_F[j])}"

    def result(self, kept: list[Counterfactual], note: str) -> Counterfactuals:
        return Counterfactuals(tuple(float(v) for v in self.before_C), tuple(kept), self.asked, note)


def _scale(column_N: Matrix) -> float:
    """Median absolute deviation; where it is 0, the standard deviation; of a constant column 1."""
    mad = float(np.median(np.abs(column_N - np.median(column_N))))
    return mad or float(column_N.std()) or 1.0
