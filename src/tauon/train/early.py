"""Which checkpoints of early training are kept (`train.keep_early`), for explanations by training examples."""

from __future__ import annotations

from tauon.errors import Problem, RecipeError

__all__ = ["early_steps"]

SHARE, PASSES, SPREAD = 0.3, 5.0, 5.0


def early_steps(count: int, total_steps: int, steps_per_pass: float) -> tuple[int, ...]:
    """Return `count` steps of early training, at equal ratios from a fifth of L to L; L is 30% of all steps, or 5 passes over the data if that is
    earlier. One step: L.

    By then a model has learned what most examples have in common, and has not memorised the few that contradict them, so that wrong labels still have
    large gradients (Arpit et al. 2017, arXiv:1706.05394; measured in `benchmarks/mislabelled.py`).

    Raises `RecipeError` if so few steps do not give `count` different ones.

    >>> early_steps(5, 10_000, steps_per_pass=100)
    (100, 150, 224, 334, 500)
    """
    last = min(SHARE * total_steps, PASSES * steps_per_pass)
    steps = tuple(round(last * SPREAD ** (k / (count - 1) - 1)) if count > 1 else round(last) for k in range(count))
    if count and (steps[0] < 1 or len(set(steps)) < count):
        message = f"{count} checkpoints do not fit into the first {last:.0f} of {total_steps} steps. Train longer, or keep fewer."
        raise RecipeError([Problem("train.keep_early", message)])
    return steps
