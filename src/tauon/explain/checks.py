"""Tests of explanations: does hiding what a map marks change the answer, does the map depend on the weights, does it survive small noise?

An attribution that is no better than a random one is not wrong by accident: it says nothing about the model. These checks give figures to
print beside every map, and decide which maps are shown as failed.

Sources: deletion and insertion: Petsiuk et al. 2018, arXiv:1806.07421; randomisation: Adebayo et al. 2018, arXiv:1810.03292; stability:
Alvarez-Melis & Jaakkola 2018, arXiv:1806.08049. Shapes as in `base.py`; R regions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tauon.explain.base import Attribution, Cases, Work, scores_of, untouched
from tauon.explain.methods.baselines import baselines_of

__all__ = [
    "Faithfulness",
    "Hiding",
    "faithfulness",
    "hide_at_random",
    "per_region",
    "randomised_twin",
    "rank_correlation",
    "stability",
    "weight_dependence",
]


@dataclass(frozen=True)
class Faithfulness:
    """Areas under the curves of deletion and insertion, of a map and of random orders. Of each example, N."""

    deletion: Tensor
    """Mean share of the answer that is left while the marked regions are hidden, most important first. Lower is better."""
    insertion: Tensor
    """Mean share of the answer that is back while they are shown. Higher is better."""
    random_deletion: Tensor
    random_insertion: Tensor
    fill: str
    """What hidden features are replaced by."""
    regions: int
    """Number of regions that are hidden one after another."""

    @property
    def deletion_ratio(self) -> float:
        """Area of the map over that of random orders, of all examples together; below 1 is better than random."""
        return float(self.deletion.mean() / self.random_deletion.mean().clamp(min=1e-12))

    @property
    def insertion_ratio(self) -> float:
        """As `deletion_ratio`; above 1 is better than random."""
        return float(self.insertion.mean() / self.random_insertion.mean().clamp(min=1e-12))

    @property
    def failed(self) -> bool:
        """Whether the map is no better than random orders, in one of both ways."""
        return self.deletion_ratio >= 1 or self.insertion_ratio <= 1

    def to_json(self) -> dict[str, Any]:
        """Return the ratios, and what was hidden how."""
        return {
            "deletion_ratio": self.deletion_ratio, "insertion_ratio": self.insertion_ratio, "regions": self.regions, "fill": self.fill,
            "examples": len(self.deletion), "failed": self.failed,
        }  # fmt: skip


def per_region(cases: Cases, values: Tensor) -> Tensor:
    """Return the mean of feature values NF in each region, NR."""
    to = cases.region_of.to(values.device)
    n = int(to.max()) + 1
    size = torch.zeros(n, dtype=values.dtype, device=values.device).index_add_(0, to, torch.ones_like(to, dtype=values.dtype))
    return torch.zeros(len(values), n, dtype=values.dtype, device=values.device).index_add_(1, to, values) / size


@dataclass(frozen=True)
class Hiding:
    """How regions are hidden one after another, and what hiding them in random orders does: the same for every map of the same cases."""

    shares: Tensor
    """Shares of the regions that are hidden at each point of a curve."""
    fill: Tensor | None
    """N *E; None: the baselines."""
    fill_name: str
    ends: tuple[Tensor, Tensor]
    """Answers to the whole inputs and to the fill alone, N each."""
    random: tuple[Tensor, Tensor]
    """Areas of random orders under deletion and insertion, N each."""


def hide_at_random(
    cases: Cases, work: Work, *, steps: int = 12, orders: int = 3, fill: Tensor | Literal["blurred"] | None = None, fill_name: str = ""
) -> Hiding:
    """Measure what hiding regions in random orders does to the answers.

    Args:
        cases: the examples.
        work: how to compute.
        steps: points of a curve; at most the number of regions.
        orders: number of random orders.
        fill: what hides, N *E or 1 *E; blurred: each image without its details; None: the baselines.
        fill_name: its name, for the reader.

    To hide and show single features instead of regions, give `replace(cases, regions=None)`; maps of regions order features by their region.
    """
    fill_name = fill_name or ("baseline" if fill is None else fill if isinstance(fill, str) else "given")
    if isinstance(fill, str):
        fill = baselines_of(cases, fill).baselines
    there = _regions_there(cases)
    hidden = fill if fill is None else fill.expand(len(cases), *cases.inputs.shape[1:])
    shares = torch.linspace(0, 1, min(steps, int(there.sum(1).max())) + 1)
    with untouched(cases.model):
        ends = _ends(cases, work, hidden)
        generator = work.generator()
        drawn = [torch.rand(there.shape, generator=generator) for _ in range(orders)]
        none = Hiding(shares, hidden, fill_name, ends, (ends[0], ends[0]))
        areas = [_areas(cases, order, there, work, none) for order in drawn]
    return replace(none, random=(torch.stack([a for a, _ in areas]).mean(0), torch.stack([b for _, b in areas]).mean(0)))


def faithfulness(cases: Cases, attribution: Attribution, work: Work, hiding: Hiding | None = None) -> Faithfulness:
    """Hide regions in the order of their attribution, and in random orders; measure the answer's probability.

    For a regression the answer is how near the output is to that of the whole input, between it and that of the fill, and regions are ordered
    by the size of their attribution.

    Args:
        cases: the examples.
        attribution: of the same examples.
        work: how to compute.
        hiding: from `hide_at_random`, for several maps of the same cases; None: computed here.
    """
    hiding = hiding or hide_at_random(cases, work)
    values = per_region(cases, attribution.values if cases.link != "identity" else attribution.values.abs())
    there = _regions_there(cases)
    with untouched(cases.model):
        deletion, insertion = _areas(cases, values, there, work, hiding)
    return Faithfulness(deletion, insertion, *hiding.random, hiding.fill_name, int(there.sum(1).max()))


def _regions_there(cases: Cases) -> Tensor:
    """Return which regions exist in each example, NR (bool): padding is never hidden."""
    if cases.valid is None:
        return torch.ones(len(cases), int(cases.region_of.max()) + 1, dtype=torch.bool)
    return per_region(cases, cases.valid.float()).cpu() > 0


def _ends(cases: Cases, work: Work, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the answers to the whole inputs and to the fill alone, N each."""
    rows = torch.arange(len(cases), device=cases.inputs.device)
    nothing = torch.zeros(len(cases), cases.n_features, dtype=torch.bool, device=rows.device)
    whole = scores_of(cases, cases.inputs, rows, work, probability=True)
    return whole, scores_of(cases, cases.masked(nothing, rows, hidden), rows, work, probability=True)


def _areas(cases: Cases, order_by: Tensor, there: Tensor, work: Work, hiding: Hiding) -> tuple[Tensor, Tensor]:
    """Return the areas under (deletion, insertion), N each, for regions ordered by `order_by` NR, highest first."""
    device = cases.inputs.device
    order_by = order_by.cpu().masked_fill(~there, -torch.inf)
    rank_NR = order_by.argsort(1, descending=True).argsort(1)  # 0 for the most important region, missing regions last
    rank_NF = rank_NR.to(device)[:, cases.region_of]
    size_N1 = there.sum(1, keepdim=True).to(device)
    curves: list[list[Tensor]] = [[], []]
    for share in hiding.shares.tolist():
        n = (size_N1 * share).round()
        for curve, keep in zip(curves, (rank_NF >= n, rank_NF < n), strict=True):
            curve.append(_answers(cases, keep, work, hiding))
    areas = [torch.trapezoid(torch.stack(curve, 1).double().cpu(), hiding.shares.double(), dim=1).float() for curve in curves]
    return areas[0], areas[1]


def _answers(cases: Cases, keep: Tensor, work: Work, hiding: Hiding) -> Tensor:
    found = []
    for part in work.chunks(len(cases)):
        rows = torch.arange(part.start, part.stop, device=keep.device)
        x = cases.masked(keep[part], rows, None if hiding.fill is None else hiding.fill[part])
        found.append(scores_of(cases, x, rows, replace(work, progress=None), probability=True))
    answers = torch.cat(found)
    if cases.link == "identity":
        whole, empty = hiding.ends
        return 1 - ((answers - whole).abs() / (whole - empty).abs().clamp(min=1e-12)).clamp(max=1)
    return answers


# ---------------------------------------------------------------------------------------------- weights and noise


def rank_correlation(a: Tensor, b: Tensor, *, skip_zeros: bool = False) -> Tensor:
    """Return Spearman's correlation of each row of two matrices, N. 0 where a row is constant.

    `skip_zeros`: without the numbers that are 0 in both: features that neither map can mark would agree by themselves.

    >>> round(float(rank_correlation(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[10.0, 20.0, 21.0]]))), 6)
    1.0
    """
    if skip_zeros:
        pairs = [(x[kept][None], y[kept][None]) for x, y in zip(a, b, strict=True) if (kept := (x != 0) | (y != 0)).any()]
        return torch.cat([rank_correlation(x, y) for x, y in pairs]) if len(pairs) == len(a) and pairs else torch.zeros(len(a))
    ranks = [_ranks(x.double()) for x in (a, b)]
    left, right = (r - r.mean(1, keepdim=True) for r in ranks)
    size = left.norm(dim=1) * right.norm(dim=1)
    return torch.where(size > 0, (left * right).sum(1) / size.clamp(min=1e-30), torch.zeros_like(size)).float()


def _ranks(x: Tensor) -> Tensor:
    """Return ranks within each row; ties share their mean rank."""
    found = torch.empty_like(x)
    for i, row in enumerate(x):
        _, inverse, counts = torch.unique(row, return_inverse=True, return_counts=True)
        last = counts.cumsum(0).double()
        found[i] = (last - (counts.double() - 1) / 2)[inverse]
    return found


def randomised_twin(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy of the model that has learned nothing: the numbers of each parameter are shuffled, those of matrices with random signs.

    Without the signs, weights that are mostly positive would stay so, and the map of a linear model would still be its input.
    """
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in twin.parameters():
            flat = p.detach().flatten()
            shuffled = flat[torch.randperm(flat.numel(), generator=generator).to(flat.device)]
            if p.ndim > 1:
                shuffled = shuffled * (torch.randint(0, 2, shuffled.shape, generator=generator) * 2 - 1).to(shuffled)
            p.copy_(shuffled.view_as(p))
    return twin


def weight_dependence(attribution: Attribution, explain: Callable[[nn.Module], Attribution], model: nn.Module, *, seed: int = 0) -> Tensor:
    """Return the rank correlation of each example's map with that of a model with shuffled weights, N. Near 0 is good: what a map of a model
    that learned nothing shows, too, was not learned.

    Args:
        attribution: of the model.
        explain: the same method for the same examples and targets, of another model.
        model: the model.
        seed: of the shuffling.
    """
    return rank_correlation(attribution.values, explain(randomised_twin(model, seed)).values, skip_zeros=True)


def stability(
    cases: Cases, attribution: Attribution, explain: Callable[[Cases], Attribution], *, noise: float = 0.02, seed: int = 0
) -> Tensor:
    """Return the rank correlation of each example's map with that of the same example with a little noise, N. Near 1 is good.

    `noise`: standard deviation, as a share of the inputs' own. For inputs that are codes, or a single number, there is no small noise: NaN.
    """
    if not cases.differentiable or cases.inputs[0].numel() < 2:
        return torch.full((len(cases),), float("nan"))
    g = torch.Generator().manual_seed(seed)
    spread = cases.inputs.flatten(1).std(1).view(-1, *[1] * (cases.inputs.ndim - 1))
    noisy = cases.inputs + noise * spread * torch.randn(cases.inputs.shape, generator=g).to(cases.inputs)
    return rank_correlation(attribution.values, explain(replace(cases, inputs=noisy)).values, skip_zeros=True)
