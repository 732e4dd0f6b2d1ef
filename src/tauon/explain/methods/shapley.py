"""KernelSHAP (Lundberg & Lee 2017, arXiv:1705.07874): Shapley values of regions as a weighted least-squares fit of the model's outputs.

A region's Shapley value is the mean change of the output when it is added to a random set of the others. With few regions all sets are
evaluated and the values are exact. With more, sets are drawn in pairs (a set and its complement), which halves the error or better (Covert & Lee
2021, arXiv:2012.01536); sizes of which all sets fit into the budget are taken whole. The values always sum to f(x) - f(absent).

Shapes as in `base.py`; K sets, P players (regions that exist in an example).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from tauon.errors import DataError
from tauon.explain.base import Attribution, Cases, Work, attribution_method, scores_of, untouched

__all__ = ["Design", "kernel_shap", "shapley_design"]

EXACT = 2**11
"""Sets that are evaluated even if that is more than asked: up to 11 regions are exact."""


@dataclass(frozen=True)
class Design:
    """Sets of players that are evaluated, and how their outputs become Shapley values."""

    sets: Tensor
    """KP, bool. A drawn set stands before its complement."""
    by_output: Tensor
    """PK, float64: values = by_output @ (f(set) - f(empty)) + by_total (f(all) - f(empty))."""
    by_total: Tensor
    """P, float64."""
    drawn: int
    """Number of sets at the end that were drawn at random; 0: exact."""

    def values(self, outputs: Tensor, total: Tensor) -> Tensor:
        """Return Shapley values NP of outputs NK and totals N, both less the output of the empty set."""
        return outputs.double() @ self.by_output.T + total.double().unsqueeze(1) * self.by_total

    def standard_errors(self, outputs: Tensor, values: Tensor) -> Tensor:
        """Return the error of drawing, NP: a jackknife over pairs (HC3)."""
        if not self.drawn:
            return torch.zeros_like(values)
        sets = self.sets[-self.drawn :].double()
        residual = outputs[:, -self.drawn :].double() - values @ sets.T
        by = self.by_output[:, -self.drawn :]
        leverage = ((sets - sets[:, -1:]) * by.T).sum(1)[0::2] * 2
        apart = (residual[:, 0::2] - residual[:, 1::2]) / 2 / (1 - leverage).clamp(min=0.05)
        moved = (by[:, 0::2] - by[:, 1::2]).T  # of a pair, K/2 x P
        return (apart**2 @ moved**2).sqrt()


@lru_cache(maxsize=64)
def shapley_design(players: int, evaluations: int, seed: int = 0) -> Design:
    """Choose the sets for `players` regions.

    Raises:
        DataError: fewer evaluations than two for each player.

    >>> shapley_design(3, 100).sets.int().tolist()
    [[1, 0, 0], [0, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 1], [1, 1, 0]]
    """
    if players == 1:
        return Design(torch.zeros(0, 1, dtype=torch.bool), torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64), 0)
    budget = 2**players - 2 if 2**players <= max(evaluations, EXACT) else evaluations
    if budget < 2 * players and budget < 2**players - 2:
        raise DataError(
            f"{evaluations} evaluations for {players} regions: at least {2 * players} are needed. Raise evaluations, or use larger regions."
        )
    half = players // 2
    mass = {s: (1 if 2 * s == players else 2) * (players - 1) / (s * (players - s)) for s in range(1, half + 1)}
    rows: list[Tensor] = []
    weights: list[float] = []
    for size in range(1, half + 1):
        count = math.comb(players, size) * (1 if 2 * size == players else 2)
        share = mass[size] / sum(mass[s] for s in range(size, half + 1))
        if count > budget - len(rows) or count > (budget - len(rows)) * share + 1e-9:
            break
        for chosen in itertools.combinations(range(players), size):
            one = torch.zeros(players, dtype=torch.bool)
            one[list(chosen)] = True
            if 2 * size < players or one[0]:  # of half the players, a complement is a set of the same size
                rows += [one, ~one]
        weights += [mass[size] / count] * count
        del mass[size]
    drawn = 0
    if mass:
        drawn = (budget - len(rows)) // 2 * 2
        rows += _drawn(players, drawn // 2, mass, seed)
        weights += [sum(mass.values()) / drawn] * drawn
    return _solved(torch.stack(rows), torch.tensor(weights, dtype=torch.float64), drawn)


def _drawn(players: int, pairs: int, mass: dict[int, float], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(list(mass))[torch.multinomial(torch.tensor(list(mass.values())), pairs, replacement=True, generator=generator)]
    rows = []
    for size in sizes.tolist():
        one = torch.zeros(players, dtype=torch.bool)
        one[torch.randperm(players, generator=generator)[:size]] = True
        rows += [one, ~one]
    return rows


def _solved(sets: Tensor, weights: Tensor, drawn: int) -> Design:
    """Solve the least squares for any outputs; the last player's value is what the others leave of the total."""
    z = sets.double()
    x = z[:, :-1] - z[:, -1:]
    weighted = x.T * weights
    solve = torch.linalg.pinv(weighted @ x, hermitian=True) @ weighted
    others = -(solve @ z[:, -1])
    by_output, by_total = torch.cat([solve, -solve.sum(0, keepdim=True)]), torch.cat([others, 1 - others.sum(0, keepdim=True)])
    return Design(sets, by_output, by_total, drawn)


@attribution_method("kernel_shap", "KernelSHAP", needs="outputs", source="arXiv:1705.07874")
def kernel_shap(
    cases: Cases, work: Work, *, evaluations: int = 512, absent: Literal["baseline", "background"] | None = None, fill_rows: int = 16,
) -> Attribution:  # fmt: skip
    """Return Shapley values of the regions; a region's value is divided evenly among its features.

    `errors` has the standard error of each value from drawing sets at random, 0 where all sets were evaluated. Facts: `difference`,
    f(x) - f(absent), which the values sum to; `standard_error`, the largest of a region.

    Args:
        cases: the examples.
        work: how to compute.
        evaluations: sets of each example; up to 11 regions all are evaluated.
        absent: what an absent region shows: its baseline, or in turn rows of the background (the output is the mean). None: the background
            for tables that have one, else the baseline.
        fill_rows: rows of the background, drawn once; evaluations are multiplied by it.

    >>> from torch import nn
    >>> model = nn.Linear(3, 2)
    >>> x = torch.ones(1, 3)
    >>> cases = Cases(model, x, lambda x, rows: model(x), torch.tensor([1]), torch.zeros(1, 3), torch.arange(3), (3,))
    >>> torch.allclose(kernel_shap(cases, Work()).values[0], model.weight[1], atol=1e-5)
    True
    """
    use_background = absent == "background" or (absent is None and cases.kind == "table" and cases.background is not None)
    if use_background and cases.background is None:
        raise DataError("absent='background' needs cases with a background: give training examples, or use absent='baseline'")
    fills = _fills(cases, work, fill_rows) if use_background else None
    players, present_NR = _players(cases)
    n, device = len(cases), cases.inputs.device
    with untouched(cases.model):
        every = torch.arange(n, device=device)
        scores = scores_of(cases, cases.inputs, every, replace(work, progress=None))
        empty = torch.ones(n, cases.n_features, dtype=torch.bool, device=device) & ~present_NR[:, players]
        nothing = _means(cases, replace(work, progress=None), lambda pairs: empty[pairs], every, fills)
        designs = {int(p): shapley_design(int(p), evaluations, work.seed) for p in present_NR.sum(1).unique() if p}
        counts = torch.tensor([len(designs[int(p)].sets) if p else 0 for p in present_NR.sum(1)])
        rows = torch.arange(n).repeat_interleave(counts)
        nth = torch.arange(len(rows)) - (counts.cumsum(0) - counts).repeat_interleave(counts)

        def kept(pairs: Tensor) -> Tensor:
            shown = torch.ones(len(pairs), present_NR.shape[1], dtype=torch.bool, device=device)
            for i, pair in enumerate(pairs.tolist()):
                row = int(rows[pair])
                shown[i, present_NR[row]] = designs[int(present_NR[row].sum())].sets[nth[pair]].to(device)
            return shown[:, players]

        outputs = _means(cases, work, kept, rows.to(device), fills)
    values, errors = torch.zeros(2, n, present_NR.shape[1], dtype=torch.float64).unbind(0)
    total = (scores - nothing).cpu()
    for row, part in enumerate(outputs.cpu().split(counts.tolist())):
        if counts[row] or present_NR[row].any():
            design, there = designs[int(present_NR[row].sum())], present_NR[row].cpu()
            found = design.values((part - nothing[row].cpu()).unsqueeze(0), total[row : row + 1])
            values[row, there] = found[0]
            errors[row, there] = design.standard_errors((part - nothing[row].cpu()).unsqueeze(0), found)[0]
    fact = {"difference": total.float(), "standard_error": errors.amax(1).float()}
    note = f"{int(counts.max()) if n else 0} sets of {int(present_NR.sum(1).max()) if n else 0} regions, {'background' if use_background else 'baseline'}"
    return Attribution(
        "kernel_shap", _shared(cases, players, values), scores, errors=_shared(cases, players, errors), facts=fact, note=note
    )


def _players(cases: Cases) -> tuple[Tensor, Tensor]:
    """Return (region of each feature F, whether a region has a feature in an example NR)."""
    regions = cases.region_of.to(cases.inputs.device)
    count = int(regions.max()) + 1
    if cases.valid is None:
        return regions, torch.ones(len(cases), count, dtype=torch.bool, device=regions.device)
    there = torch.zeros(len(cases), count, device=regions.device).index_add_(1, regions, cases.valid.to(regions.device).float())
    return regions, there > 0


def _fills(cases: Cases, work: Work, count: int) -> Tensor:
    assert cases.background is not None
    chosen = torch.randperm(len(cases.background), generator=work.generator())[:count]
    return cases.background[chosen.to(cases.background.device)]


def _means(cases: Cases, work: Work, kept: object, rows: Tensor, fills: Tensor | None) -> Tensor:
    """Return the output of each (example, set) pair; with several fills, the mean over them."""
    assert callable(kept)
    each = 1 if fills is None else len(fills)
    found = torch.zeros(len(rows), device=rows.device)
    with torch.no_grad():
        for part in work.chunks(len(rows) * each):
            at = torch.arange(part.start, part.stop, device=rows.device)
            pairs = at // each
            x = cases.masked(kept(pairs), rows[pairs], None if fills is None else fills[at % each])
            found.index_add_(0, pairs, cases.score(x, rows[pairs]).float() / each)
    return found


def _shared(cases: Cases, players: Tensor, values_NR: Tensor) -> Tensor:
    """Divide each region's value among its features, NF."""
    there = torch.ones(len(cases), cases.n_features) if cases.valid is None else cases.valid.cpu().float()
    to = players.cpu()
    size = torch.zeros(len(there), values_NR.shape[1]).index_add_(1, to, there).clamp(min=1)
    return ((values_NR / size)[:, to] * there).float().to(cases.inputs.device)
