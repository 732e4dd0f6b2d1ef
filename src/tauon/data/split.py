"""Which data is held out: the settings, and rows. Pure functions of (settings, split seed, content); documents are in `split_text.py`.

The split has its own seed: runs with other training seeds stay comparable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Config, Fraction
from tauon.data.counter import bits, key
from tauon.errors import DataError

__all__ = ["PARTS", "Part", "SplitConfig", "refuse_new_classes", "shares", "split_rows"]

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")


class SplitConfig(Config):
    """How to hold data out for validation and test. A separate source (`data.validation`, `data.test`) takes precedence."""

    validation: Fraction = Field(default=0.1, ge=0, lt=1)
    """Share for validation: of the text's length, or of the rows."""
    test: Fraction = Field(default=0.0, ge=0, lt=1)
    """Share for test."""
    by: Literal["auto", "document", "position", "row"] = "auto"
    """document: whole documents; position: the last share of the text (train, then validation, then test, as nanoGPT does);
    row: rows of a table, each class in proportion, whatever they have in common. auto: row for arrays, but not for a table in which ids of people
    repeat (an error says what to set); document if there are ten or more, else position."""
    folds: int | None = None
    """Cut everything into this many folds: one is the test part, the rest are for training."""
    fold: int | None = Field(default=None, ge=0)
    """Which fold is the test part, from 0. None: each in turn, one run per fold."""
    seed: int = Field(default=0, ge=0)
    """Seed of the split, separate from the training seed, so that runs with other seeds can be compared."""

    def problems(self) -> Iterator[tuple[str, str]]:
        folds, fold, validation, test = (self.raw_value(n) for n in ("folds", "fold", "validation", "test"))
        if folds is not None and folds < 2:
            yield "folds", f"{folds} folds leave no data to train on; set at least 2, or remove it and set test: 20%"
        elif folds is not None and fold is not None and fold >= folds:
            yield "fold", f"fold {fold} of {folds} does not exist; folds are 0 to {folds - 1}"
        if folds is None and fold is not None:
            yield "fold", "has no effect without folds; set folds (5, for example), or remove it"
        if folds is not None and test > 0:
            yield "test", f"has no effect with folds, because the test part is one of the {folds} folds; remove test or folds"
        if validation + test >= 1:
            yield "validation", f"validation ({validation:g}) and test ({test:g}) leave no data to train on; their sum must be below 1"


def shares(config: SplitConfig, wanted: Sequence[Part]) -> Iterator[tuple[Part, float, float]]:
    """Return the parts as intervals of [0, 1), in the order of position."""
    validation = config.validation if "validation" in wanted else 0.0
    if config.folds is not None and "test" in wanted:
        fold = config.fold or 0
        a, b = fold / config.folds, (fold + 1) / config.folds
        rest = [(0.0, a), (b, 1.0)]
        if fold == config.folds - 1:  # validation is the end of the data outside the test fold
            rest = [(0.0, 0.0), (0.0, a)]
        held = min(validation * (1 - (b - a)), rest[1][1] - rest[1][0])
        spans: list[tuple[Part, float, float]] = [
            ("train", *rest[0]), ("test", a, b), ("train", rest[1][0], rest[1][1] - held), ("validation", rest[1][1] - held, rest[1][1]),
        ]  # fmt: skip
        yield from sorted((s for s in spans if s[1] < s[2]), key=lambda s: s[1])
        return
    test = config.test if "test" in wanted else 0.0
    yield "train", 0.0, 1 - validation - test
    if validation:
        yield "validation", 1 - validation - test, 1 - test
    if test:
        yield "test", 1 - test, 1.0


def split_rows(
    targets: NDArray[Any],
    config: SplitConfig,
    wanted: Sequence[Part],
    whose: NDArray[np.int64] | None = None,
    moments: NDArray[Any] | None = None,
) -> tuple[dict[Part, NDArray[np.int64]], dict[str, Any]]:
    """Return the row numbers of each part, ascending; and facts. Each class is held out in proportion if targets are classes (int).

    Sizes are exact: round(share * rows) rows, classes by largest remainder.

    Args:
        targets: (N) classes or values.
        config: the shares.
        wanted: the held-out parts without a separate source.
        whose: group number of each row, from 0; then the shares are of groups, and all rows of a group are in one part. Groups with a
            row of the same rarest class are held out in proportion, and training keeps one of them.
        moments: (N) sortable; then the last rows are the test part, those before them validation, and rows of one moment stay together.
    """
    if moments is not None:
        return _by_time(moments, config, wanted)
    if whose is not None and config.by != "position":
        of_them, facts = split_rows(_rarest_class(targets, whose), config, wanted)
        of_them = _with_one_in_training(of_them, _rarest_class(targets, whose))
        facts |= {"by": "group", "groups": int(whose.max()) + 1}
        return {part: np.flatnonzero(np.isin(whose, chosen)) for part, chosen in of_them.items()}, facts
    n = len(targets)
    by = "row" if config.by == "auto" else config.by
    why = "as set" if config.by != "auto" else "the default for arrays"
    if by == "document":
        raise DataError("split.by=document is only for text, but the data is arrays. Use row or position")
    stratify = by == "row" and targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer)
    groups = [np.flatnonzero(targets == c) for c in np.unique(targets)] if stratify else [np.arange(n)]
    if by == "row":
        groups = [_shuffled(g, config.seed) for g in groups]
    shares: dict[Part, float] = {"validation": config.validation if "validation" in wanted else 0.0}
    taken: dict[Part, NDArray[np.int64]] = {}
    if config.folds is not None and "test" in wanted:
        dealt = np.concatenate(groups)
        number = np.arange(n) % config.folds if by == "row" else np.arange(n) * config.folds // max(n, 1)
        taken["test"] = dealt[number == (config.fold or 0)]
        out = np.isin(dealt, taken["test"])
        lengths = np.cumsum([0, *(len(g) for g in groups)])
        groups = [g[~out[a:b]] for g, a, b in zip(groups, lengths, lengths[1:], strict=False)]
        shares["validation"] *= sum(map(len, groups)) / max(n, 1)
    else:
        shares["test"] = config.test if "test" in wanted else 0.0
    for part in ("test", "validation"):  # from the end: test is last, as for text
        share = shares.get(part, 0.0)
        if share > 0:
            counts = _proportional([len(g) for g in groups], round(share * n))
            taken[part] = np.concatenate([g[len(g) - c :] for g, c in zip(groups, counts, strict=True)])
            groups = [g[: len(g) - c] for g, c in zip(groups, counts, strict=True)]
    taken["train"] = np.concatenate(groups)
    rows: dict[Part, NDArray[np.int64]] = {p: np.sort(taken[p]) for p in PARTS if p in taken}
    for part, held in rows.items():
        if not len(held):
            raise DataError(f"the {part} part is empty: {n} rows are too few for the split. Add rows, or raise the share in data.split")
    facts = {"by": by, "why": why, "stratified": bool(stratify), "seed": config.seed, "folds": config.folds}
    return rows, facts | ({"fold": config.fold or 0} if config.folds is not None else {})


def _by_time(moments: NDArray[Any], config: SplitConfig, wanted: Sequence[Part]) -> tuple[dict[Part, NDArray[np.int64]], dict[str, Any]]:
    if config.folds is not None:
        raise DataError("data.split.folds would train on rows from after the held-out part. Remove folds, or the time column")
    order, n = np.argsort(moments, kind="stable"), len(moments)
    ordered = moments[order]
    ends: dict[Part, int] = {"test": n}
    ends["validation"] = _start_of(ordered, n - round(config.test * n)) if "test" in wanted else n
    ends["train"] = _start_of(ordered, ends["validation"] - round(config.validation * n)) if "validation" in wanted else ends["validation"]
    rows: dict[Part, NDArray[np.int64]] = {}
    start = 0
    for part in PARTS:
        if part == "train" or ends[part] > start:
            rows[part] = np.sort(order[start : ends[part]])
        start = ends[part]
    for part in ("train", *(p for p in wanted if getattr(config, p, 0.0) > 0)):
        if not len(rows.get(part, ())):
            raise DataError(
                f"the {part} part is empty: {n} rows at {len(np.unique(ordered))} different moments are too few for a split by time. "
                "Raise the share in data.split, or remove the time column"
            )
    spans = {part: [str(moments[mine].min()), str(moments[mine].max())] for part, mine in rows.items()}
    return rows, {"by": "time", "why": "a time column is set", "stratified": False, "folds": None, "spans": spans}


def _start_of(ordered: NDArray[Any], at: int) -> int:
    """Return the first row of the moment at place `at`, so that rows of one moment stay together."""
    return at if at >= len(ordered) else int(np.searchsorted(ordered, ordered[at], side="left"))


def _rarest_class(targets: NDArray[Any], whose: NDArray[np.int64]) -> NDArray[Any]:
    """Return the rarest class that each group has; zeros if targets are not classes."""
    groups = int(whose.max()) + 1
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        return np.zeros(groups)
    by_count = np.argsort(np.bincount(targets), kind="stable")
    place = np.empty_like(by_count)
    place[by_count] = np.arange(len(by_count))
    found = np.full(groups, len(by_count))
    np.minimum.at(found, whose, place[targets])
    rarest: NDArray[np.int64] = by_count[found].astype(np.int64)
    return rarest


def _with_one_in_training(parts: dict[Part, NDArray[np.int64]], kinds: NDArray[Any]) -> dict[Part, NDArray[np.int64]]:
    """Return the parts with one group of each kind in training, taken from a held-out part if training has none."""
    moved = dict(parts)
    for kind in np.setdiff1d(kinds, kinds[parts["train"]]):
        part = next(p for p in moved if p != "train" and (kinds[moved[p]] == kind).any())
        one = moved[part][kinds[moved[part]] == kind][:1]
        if len(moved[part]) > 1:
            moved[part], moved["train"] = np.setdiff1d(moved[part], one), np.sort(np.append(moved["train"], one))
    return moved


def refuse_new_classes(targets: NDArray[Any], names: tuple[str, ...], rows: dict[Part, NDArray[np.int64]], where: str) -> None:
    """Raise `DataError` for the first held-out class that training does not have: it cannot be predicted."""
    if not np.issubdtype(targets.dtype, np.integer) or targets.ndim != 1:
        return
    seen = np.unique(targets[rows["train"]])
    for part, mine in rows.items():
        new = np.setdiff1d(targets[mine], seen)
        if new.size:
            name = names[int(new[0])] if names else new[0]
            raise DataError(
                f"{where}: the {part} part has the class {name!r}, which no training row has. Add rows of it, "
                "set data.split.by: row, or remove the class"
            )


def _shuffled(rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    return rows[np.argsort(bits(key(seed, "split rows"), rows.astype(np.uint64)), kind="stable")]


def _proportional(sizes: Sequence[int], total: int) -> list[int]:
    """Divide `total` in proportion to `sizes`, by largest remainder (Hamilton's method)."""
    whole = max(sum(sizes), 1)
    exact = [s * total / whole for s in sizes]
    counts = [int(e) for e in exact]
    for i in sorted(range(len(sizes)), key=lambda i: counts[i] - exact[i])[: total - sum(counts)]:
        counts[i] += 1
    return counts
