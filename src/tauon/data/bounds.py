"""`data.bounds`: public ranges of number columns, stated in the recipe, so that scaling does not have to be estimated from the data.

Values are clipped to them before `normalize`. Bounds that were read off the data are not public; nothing here can detect that.
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
"""Key for every number column that is not named."""


def wrong_bounds(bounds: Bounds) -> Iterator[tuple[str, str]]:
    """Yield (column, message) for each invalid range."""
    for name, (low, high) in bounds.items():
        most = float(np.finfo(np.float32).max)
        if not (math.isfinite(low) and math.isfinite(high) and max(abs(low), abs(high)) <= most):
            yield name, f"got {low:g} to {high:g}, expected two finite numbers within the range of float32"
        elif not low < high:
            yield name, f"got {low:.17g} to {high:.17g}: expected the lower bound first"


def limits_of(
    bounds: Bounds, names: Sequence[str], scaled: NDArray[np.bool_] | None = None, known: Sequence[str] = ()
) -> NDArray[np.float64]:
    """Return (2, K) lower and upper bounds of the K number columns among `names`, in their order.

    Args:
        bounds: by column; "*" applies to those that are not named.
        names: columns that the model reads.
        scaled: which of them are numbers to scale; None: all.
        known: columns of the source, including those that were dropped.

    Raises:
        RecipeError: a number column without bounds, or bounds for a column that does not exist or has no numbers to scale.
    """
    numbers = [n for i, n in enumerate(names) if scaled is None or scaled[i]]
    problems: list[Problem] = []
    kept = {*numbers, OTHERS}
    for name in bounds:
        if name in kept or (name in known and not any(n == name or n.startswith((f"{name}=", f"{name}.")) for n in names)):
            continue  # a column that is constant in training was dropped: not an error
        parts = [n for n in numbers if n.startswith(f"{name}.")]
        if parts:
            problems.append(Problem(f"data.bounds.{name}", f"is encoded as the columns {', '.join(parts)}. Set bounds for these."))
        elif name in names or name in known:
            problems.append(Problem(f"data.bounds.{name}", "has categories, which are not scaled. Remove its bounds."))
        else:
            close = get_close_matches(name, numbers, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            message = f"is not a column; {hint}Number columns: {', '.join(numbers[:20])}{', ...' if len(numbers) > 20 else ''}."
            problems.append(Problem(f"data.bounds.{name}", message))
    gone = [n for n in numbers if n not in bounds] if OTHERS not in bounds else []
    if gone:
        listed = f"{', '.join(gone[:8])}{', ...' if len(gone) > 8 else ''}"
        message = (
            f"no bounds are set for {listed}. State their range without looking at the data: "
            f'{{{gone[0]}: [low, high]}}, or {{"{OTHERS}": [low, high]}} for all columns that are not named.'
        )
        problems.append(Problem("data.bounds", message))
    if problems:
        raise RecipeError(problems)
    pairs = [bounds.get(n) or bounds[OTHERS] for n in numbers]
    return np.array(pairs, np.float64).reshape(-1, 2).T
