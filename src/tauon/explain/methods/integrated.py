"""Integrated gradients (Sundararajan, Taly & Yan 2017, arXiv:1703.01365), with as many steps as each example needs.

    attribution = (x - b) * integral over t in [0, 1] of grad f(b + t (x - b))

Its values sum to f(x) - f(b) (completeness), up to the error of the quadrature. A network of ReLUs is linear in pieces, so the integrand
jumps: rules for smooth functions have no advantage, and equal steps are wasted where nothing happens. But the error of each part of the
path is known exactly, from the outputs at its ends: by the trapezoidal rule h (g(t) + g(t + h)) / 2 - (f(t + h) - f(t)), g the derivative along
the path. The parts with the largest errors are halved, every gradient is used again, and an example is done when its errors sum to less than
1% of f(x) - f(b). Examples that are done leave the batch.

Shapes as in `base.py`; K steps of a fixed rule.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tauon.errors import DataError
from tauon.explain.base import Attribution, Cases, Work, attribution_method, gradients_of, untouched
from tauon.explain.methods.baselines import Baseline, baselines_of

__all__ = ["QUADRATURES", "integrated_gradients", "kept_by_paths", "most_rows", "quadrature_rule"]

QUADRATURES = ("gausslegendre", "riemann_trapezoid", "riemann_middle", "riemann_left", "riemann_right")
"""Fixed rules, named as in Captum."""
FIRST = 32
"""Parts of the path before the first refinement. The sum is exact to 1% with 16 too (37 gradients instead of 49 on a ResNet-20), but the map is then
farther from one of 1,000 steps (.038 of its length) than 50 equal steps are (.024); with 32 it is nearer (.022)."""
HALVED = 8
"""Parts of a path that are halved in one round."""
OPEN = 32
"""Most parts of one path whose gradients are kept; the most exact ones are summed beyond that and not halved again."""
SMALLEST = 2.0**-20
"""Parts of a path that are not halved any more."""
NOISE = 1e-4
"""Share of the outputs below which their difference is rounding: the error is relative to this instead."""


@attribution_method("integrated_gradients", "Integrated gradients", needs="gradients", source="arXiv:1703.01365")
def integrated_gradients(
    cases: Cases, work: Work, *, steps: int | None = None, quadrature: str = "gausslegendre", baseline: Baseline = "own",
    tolerance: float = 0.01, most_steps: int = 1000,
) -> Attribution:  # fmt: skip
    """Attribute f(x) - f(baseline) to the features.

    Facts: `completeness_error`, |sum of values - (f(x) - f(b))| / |f(x) - f(b)|; where the difference is less than 1e-4 of the outputs, it is
    relative to that instead. `steps`: gradients computed. `difference`: f(x) - f(b).

    Args:
        cases: the examples.
        work: how to compute.
        steps: use this many steps of `quadrature` for every example; None: as many as each needs.
        quadrature: one of `QUADRATURES`, only with `steps`.
        baseline: own: that of the cases; zero; blurred: the image without details.
        tolerance: largest completeness error of an example.
        most_steps: an example that needs more has failed.

    >>> from torch import nn
    >>> model = nn.Linear(3, 2)
    >>> x = torch.ones(1, 3)
    >>> cases = Cases(model, x, lambda x, rows: model(x), torch.tensor([1]), torch.zeros(1, 3), torch.arange(3), (3,))
    >>> torch.allclose(integrated_gradients(cases, Work()).values[0], model.weight[1], atol=1e-6)
    True
    """
    cases = baselines_of(cases, baseline)
    with untouched(cases.model):
        if steps is not None:
            return _fixed(cases, work, steps, quadrature, tolerance)
        return _adaptive(cases, work, tolerance, most_steps)


def quadrature_rule(name: str, steps: int) -> tuple[Tensor, Tensor]:
    """Return (points in [0, 1], weights that sum to 1), float64. `DataError` for an unknown rule.

    >>> quadrature_rule("riemann_middle", 2)[0].tolist()
    [0.25, 0.75]
    """
    if name not in QUADRATURES:
        raise DataError(f"{name!r} is not a quadrature rule. Choose from: {', '.join(QUADRATURES)}.")
    if steps < (1 if name == "gausslegendre" else 2):
        raise DataError(f"{steps} steps of {name}: it needs at least {1 if name == 'gausslegendre' else 2}.")
    if name == "gausslegendre":
        import numpy as np

        at, weight = np.polynomial.legendre.leggauss(steps)
        return torch.from_numpy((1 + at) / 2), torch.from_numpy(weight / 2)
    weights = torch.full((steps,), 1 / steps, dtype=torch.float64)
    if name == "riemann_trapezoid":  # Captum's: K points, of which the two at the ends count half; the weights sum to 1 - 1/K
        weights[0] /= 2
        weights[-1] /= 2
        return torch.linspace(0, 1, steps).double(), weights
    offset = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[name]
    return (torch.arange(steps, dtype=torch.float64) + offset) / steps, weights


# ---------------------------------------------------------------------------------------------- the same steps for all


def _fixed(cases: Cases, work: Work, steps: int, quadrature: str, tolerance: float) -> Attribution:
    points_K, weights_K = (t.to(cases.inputs.device, cases.inputs.dtype) for t in quadrature_rule(quadrature, steps))
    n = len(cases)
    summed = torch.zeros_like(cases.inputs)
    for part in work.chunks(n * steps):
        pair = torch.arange(part.start, part.stop, device=summed.device)
        rows, step = pair // steps, pair % steps
        _, grad = gradients_of(cases, _on_path(cases, rows, points_K[step]), rows)
        summed.index_add_(0, rows, grad * _over(weights_K[step], grad))
    every = torch.arange(n, device=summed.device)
    raw = summed.mul_(cases.inputs - cases.baseline(every))
    values = cases.per_feature(raw)
    ends = [_scores(cases, work, torch.full((n,), t, device=summed.device)) for t in (0.0, 1.0)]
    difference = ends[1] - ends[0]
    error = (values.double().sum(1) - difference).abs() / _scale(difference, *ends)
    facts = {"completeness_error": error.float(), "steps": torch.full((n,), float(steps)), "difference": difference.float()}
    return Attribution(
        "integrated_gradients", values, ends[1].float(), raw=raw, facts=facts, failed=error > tolerance, note=f"{steps} steps, {quadrature}"
    )


def _on_path(cases: Cases, rows: Tensor, at: Tensor) -> Tensor:
    """Return b + t (x - b), M *E."""
    base = cases.baseline(rows)
    return base + _over(at.to(base), base) * (cases.inputs[rows] - base)  # the order of operations of Captum: the same numbers


def _over(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.ndim - 1))


def _scores(cases: Cases, work: Work, at: Tensor) -> Tensor:
    found = []
    with torch.no_grad():
        for start in range(0, len(at), work.at_once):
            rows = torch.arange(start, min(len(at), start + work.at_once), device=at.device)
            found.append(cases.score(_on_path(cases, rows, at[rows]), rows).double())
    return torch.cat(found) if found else at.double()


def _scale(difference: Tensor, first: Tensor, last: Tensor) -> Tensor:
    return torch.maximum(difference.abs(), NOISE * torch.maximum(first.abs(), last.abs())).clamp(min=1e-12)


# ---------------------------------------------------------------------------------------------- as many steps as each needs


@dataclass(frozen=True)
class _Node:
    """One gradient."""

    at: float
    score: float
    slope: float
    """Derivative of the score along the path."""
    values: Tensor
    """Gradient times (x - b), of each feature, F."""


@dataclass(frozen=True)
class _Part:
    """The path between two nodes."""

    left: _Node
    right: _Node

    @property
    def length(self) -> float:
        return self.right.at - self.left.at

    @property
    def error(self) -> float:
        """Of the trapezoidal rule: exact, because the integral of the slope is a difference of scores."""
        return self.length * (self.left.slope + self.right.slope) / 2 - (self.right.score - self.left.score)

    def values(self) -> Tensor:
        return (self.left.values + self.right.values) * (self.length / 2)


@dataclass
class _Path:
    """One example's way from the baseline to the input."""

    row: int
    wanted: list[float]
    """Points whose gradients are needed next."""
    parts: list[_Part] = field(default_factory=list)
    halving: list[_Part] = field(default_factory=list)
    summed: Tensor | None = None
    """Of parts that are not halved again, F."""
    summed_error: float = 0.0
    ends: tuple[float, float] = (0.0, 0.0)
    steps: int = 0

    def add(self, nodes: list[_Node]) -> None:
        """Take the gradients at the points that were `wanted`, in their order."""
        self.steps += len(nodes)
        if not self.halving:
            self.parts = [_Part(a, b) for a, b in itertools.pairwise(nodes)]
            self.ends = nodes[0].score, nodes[-1].score
        for part, node in zip(self.halving, nodes, strict=False):
            self.parts += [_Part(part.left, node), _Part(node, part.right)]
        self.halving = []

    def error(self) -> float:
        """Return the relative completeness error."""
        first, last = self.ends
        error = abs(self.summed_error + sum(p.error for p in self.parts))
        return error / max(abs(last - first), NOISE * abs(first), NOISE * abs(last), 1e-12)

    def refine(self, most: int) -> bool:
        """Choose the parts that are halved next, and where. False if none can be, or `most` steps were made."""
        self.parts.sort(key=lambda p: -abs(p.error))
        possible = [p for p in self.parts if p.length > SMALLEST][: min(HALVED, most - self.steps)]
        chosen = {id(p) for p in possible}
        rest = [p for p in self.parts if id(p) not in chosen]
        for part in rest[OPEN:]:
            self.summed = part.values() if self.summed is None else self.summed.add_(part.values())
            self.summed_error += part.error
        self.parts, self.halving = rest[:OPEN], possible
        self.wanted = [(p.left.at + p.right.at) / 2 for p in possible]
        return bool(possible)

    def values(self) -> Tensor:
        """Return the attribution, F."""
        parts = [*self.parts, *self.halving]
        total = torch.zeros_like(parts[0].left.values) if self.summed is None else self.summed.clone()
        for part in parts:
            total += part.values()
        return total


def most_rows(cases: Cases) -> int:
    """Return the most rows that can be computed at once without fixed steps."""
    return max(1, len(cases)) * (FIRST + 1)


def kept_by_paths(cases: Cases, at_once: int, steps: int | None) -> int:
    """Return the bytes of the gradients that are kept for further refinement, at most."""
    active = min(len(cases), max(1, at_once // HALVED))
    return 0 if steps else active * (OPEN + HALVED + 2) * cases.n_features * cases.inputs.element_size()


def _adaptive(cases: Cases, work: Work, tolerance: float, most: int) -> Attribution:
    n, device = len(cases), cases.inputs.device
    values = torch.zeros(n, cases.n_features, dtype=cases.inputs.dtype, device=device)
    scores, difference, errors, steps = (torch.zeros(n, dtype=torch.float64) for _ in range(4))
    waiting, active, done = iter(range(n)), list[_Path](), 0
    together, first = max(1, work.at_once // HALVED), max(1, min(FIRST, most - 1))
    while True:
        active += [_Path(row, [i / first for i in range(first + 1)]) for row in itertools.islice(waiting, together - len(active))]
        if not active:
            break
        for path, nodes in _gradients(cases, work, active, done):
            path.add(nodes)
            if path.error() > tolerance and path.refine(most):
                continue
            active = [p for p in active if p is not path]
            values[path.row] = path.values()
            scores[path.row], difference[path.row] = path.ends[1], path.ends[1] - path.ends[0]
            errors[path.row], steps[path.row] = path.error(), path.steps
            done += 1
        if work.progress is not None:
            work.progress(done, n)
    facts = {"completeness_error": errors.float(), "steps": steps.float(), "difference": difference.float()}
    note = f"{int(steps.min())} to {int(steps.max())} steps" if n else ""
    return Attribution(
        "integrated_gradients", values, scores.float().to(device), facts=facts, failed=(errors > tolerance).to(device), note=note
    )


def _gradients(cases: Cases, work: Work, paths: list[_Path], done: int) -> list[tuple[_Path, list[_Node]]]:
    """Compute what all paths want, at most `at_once` rows at a time."""
    pairs = [(path.row, at) for path in paths for at in path.wanted]
    rows = torch.tensor([row for row, _ in pairs], device=cases.inputs.device)
    at = torch.tensor([t for _, t in pairs], dtype=torch.float64, device=cases.inputs.device)
    nodes: list[_Node] = []
    for start in range(0, len(pairs), work.at_once):
        part = slice(start, start + work.at_once)
        scores, grad = gradients_of(cases, _on_path(cases, rows[part], at[part]), rows[part])
        grad *= cases.inputs[rows[part]] - cases.baseline(rows[part])
        slopes, values = grad.flatten(1).double().sum(1).tolist(), cases.per_feature(grad)
        nodes += [_Node(*numbers) for numbers in zip(at[part].tolist(), scores.tolist(), slopes, [v.clone() for v in values], strict=True)]
        if work.progress is not None:
            work.progress(done, len(cases))
    ends = list(itertools.accumulate(len(path.wanted) for path in paths))
    return [(path, nodes[end - len(path.wanted) : end]) for path, end in zip(paths, ends, strict=True)]
