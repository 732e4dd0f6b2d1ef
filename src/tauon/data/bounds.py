"""`data.bounds`: the ranges that a person says numbers have, so that nothing about scaling has to be learned from the data.

Values are clipped into them before whatever `normalize` does. Bounds that were read off the data are no public ones: nothing here can tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from tauon.errors import Problem, RecipeError

__all__ = ["OTHERS", "Bounds", "limits_of", "wrong_bounds"]

Bounds = Mapping[str, tuple[float, float]]

OTHERS = "*"
"""Stands for every column of numbers that is not named."""


def wrong_bounds(bounds: Bounds) -> Iterator[tuple[str, str]]:
    """(column, message) of each range that holds nothing."""
    for name, (low, high) in bounds.items():
        most = float(np.finfo(np.float32).max)
        if not (math.isfinite(low) and math.isfinite(high) and max(abs(low), abs(high)) <= most):
            yield name, f"got {low:g} to {high:g}, expected two finite numbers that float32 holds"
        elif not low < high:
            yield name, f"got {low:.17g} to {high:.17g}: the lower bound must be below the upper one"


def limits_of(
    bounds: Bounds, names: Sequence[str], scaled: NDArray[np.bool_] | None = None, known: Sequence[str] = ()
) -> NDArray[np.float64]:
    """(2, K) lower and upper bounds of the K columns of numbers among `names`, in their order.

    Args:
        bounds: by column; "*" is for those that are not named.
        names: of the columns that the model reads.
        scaled: which of them are numbers to be scaled; None: all.
        known: names of the source's columns, those included that came to nothing.

    Raises:
        RecipeError: a column of numbers without bounds, bounds of a column that there is not, or that has no numbers to scale.
    """
    numbers = [n for i, n in enumerate(names) if scaled is None or scaled[i]]
    wrong: list[Problem] = []
    kept = {*numbers, OTHERS}
    for name in bounds:
        if name in kept or (name in known and not any(n == name or n.startswith((f"{name}=", f"{name}.")) for n in names)):
            continue  # one that is the same in every training row is dropped, and that is nobody's fault
        parts = [n for n in numbers if n.startswith(f"{name}.")]
        if parts:
            wrong.append(Problem(f"data.bounds.{name}", f"becomes the columns {', '.join(parts)}. Give bounds for these."))
        elif name in names or name in known:
            wrong.append(Problem(f"data.bounds.{name}", "holds categories, which are not scaled. Drop its bounds."))
        else:
            close = get_close_matches(name, numbers, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            said = f"there is no such column; {hint}Columns of numbers: {', '.join(numbers[:20])}{', ...' if len(numbers) > 20 else ''}."
            wrong.append(Problem(f"data.bounds.{name}", said))
    gone = [n for n in numbers if n not in bounds] if OTHERS not in bounds else []
    if gone:
        listed = f"{', '.join(gone[:8])}{', ...' if len(gone) > 8 else ''}"
        said = (
            f"no bounds are given for {listed}. Say what is known of them without looking at the data: "
            f'{{{gone[0]}: [low, high]}}, or {{"{OTHERS}": [low, high]}} for all that are not named.'
        )
        wrong.append(Problem("data.bounds", said))
    if wrong:
        raise RecipeError(wrong)
    pairs = [bounds.get(n) or bounds[OTHERS] for n in numbers]
    return np.array(pairs, np.float64).reshape(-1, 2).T
