"""TracIn: how much a step on one example lowered the loss of another, summed over checkpoints (Pruthi et al. 2020, arXiv:2002.08484).

    score(q, i) = sum over checkpoints c of rate_c * <gradient of the loss of q, gradient of the loss of i>, both at c

Exact where a linear layer sees each example once: the gradient is an outer product g a^T, and <g a^T, g' a'^T> = (a . a')(g . g'), from the
factors (paper, section 4). Other matrices are projected (`projection`), with `columns` numbers for each; vectors up to that length are exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.explain.influence.encoder import Block, Progress
from tauon.explain.influence.gradients import ExampleGradients, loss_value
from tauon.explain.influence.projection import Projection
from tauon.privacy.clipped import Outer, Term
from tauon.tasks import Task
from tauon.types import Batch, Dataset

__all__ = ["TracIn", "TracInEncoder"]

MEANING = (
    "Positive: steps on this training example lowered the query's loss (it helped); negative: they raised it. The size is the change of the "
    "loss, to first order, of the steps at the checkpoints, in the loss's unit."
)


@dataclass(frozen=True)
class TracIn:
    """Settings of TracIn; give the models of the checkpoints, in any order."""

    rates: tuple[float, ...] = ()
    """Learning rate at each checkpoint, times the number of steps that it stands for if they differ. Empty: 1 for each, which leaves the unit open."""
    columns: int = 512
    """Numbers for each matrix that is projected."""
    parameters: tuple[str, ...] = ("*",)
    """Patterns of parameter names; others are left out, and `facts` says so."""
    seed: int = 0
    """Of the projections."""
    kind = "tracin"

    def fit(self, models: Sequence[nn.Module], task: Task, data: Dataset, progress: Progress | None = None) -> TracInEncoder:
        """Lay out the columns; nothing is computed of the data."""
        sample = data.batch(np.arange(min(2, len(data)), dtype=np.int64))
        layout: dict[str, Any] = {}
        with ExampleGradients(models[0], self.parameters).of(loss_value(task), sample) as terms:
            for name, found in terms.items():
                pair = _is_pair(found)
                layout[name] = [found[0].a.shape[2], found[0].g.shape[2]] if pair else []  # type: ignore[attr-defined]
        return self.restore(models, task, {"layout": layout}, {})

    def restore(self, models: Sequence[nn.Module], task: Task, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TracInEncoder:
        """See `Method`."""
        return TracInEncoder(self, models, task, dict(facts["layout"]))


def _is_pair(terms: Sequence[Term]) -> bool:
    """One use, one position, a matrix: the gradient is one outer product."""
    return len(terms) == 1 and isinstance(terms[0], Outer) and terms[0].a.shape[1] == 1 and terms[0].shape is None


class TracInEncoder:
    """Rows: for each checkpoint, the factors or the projected gradient of each parameter."""

    weighted = False

    def __init__(self, config: TracIn, models: Sequence[nn.Module], task: Task, layout: dict[str, Any]) -> None:
        rates = config.rates or (1.0,) * len(models)
        if len(rates) != len(models):
            raise RecipeError(f"got {len(rates)} learning rates for {len(models)} checkpoints. Give one for each.")
        self.task, self.rates, self.layout = task, rates, layout
        self.gradients = [ExampleGradients(m, config.parameters) for m in models]
        shapes = {name: tuple(p.shape) for name, p in models[0].named_parameters()}
        self.projections = {
            name: Projection(name, shapes[name], columns=config.columns, seed=config.seed) for name, pair in layout.items() if not pair
        }
        self.blocks: list[Block] = []
        at = 0
        for _ in models:
            for name, pair in layout.items():
                block = Block(at, *pair) if pair else Block(at, self.projections[name].columns)
                self.blocks.append(block)
                at = block.stop
        self.columns = at
        projected = [name for name, p in self.projections.items() if not p.identity]
        self.facts: dict[str, Any] = {
            "method": "tracin", "meaning": MEANING, "rates": list(rates), "columns": config.columns, "seed": config.seed,
            "parameters": list(config.parameters), "layout": layout, "exact": not projected, "projected": projected,
            "left_out": left_out(models[0], list(layout)),
        }  # fmt: skip

    def encode(self, batch: Batch) -> Tensor:
        """See `Encoder`."""
        rows: list[Tensor] = []
        for gradients, rate in zip(self.gradients, self.rates, strict=True):
            scale = math.sqrt(rate)
            with gradients.of(loss_value(self.task), batch) as terms:
                for name, pair in self.layout.items():
                    found = terms.get(name)
                    if found is None:
                        width = sum(pair) if pair else self.projections[name].columns
                        rows.append(torch.zeros(len(batch), width))
                    elif pair:
                        if not _is_pair(found):
                            raise RecipeError(f"{name} is used in another way than when the index was built. Build the index again.")
                        rows += [found[0].a[:, 0].float() * scale, found[0].g[:, 0].float()]  # type: ignore[attr-defined]
                    else:
                        rows.append(self.projections[name](found) * scale)
        return torch.cat([r.detach().cpu() for r in rows], 1)

    def importance(self, batch: Batch) -> Tensor:
        """See `Encoder`."""
        return torch.ones(len(batch))

    def tensors(self) -> dict[str, Tensor]:
        """See `Encoder`."""
        return {}


def left_out(model: nn.Module, used: Sequence[str]) -> list[str]:
    """Return the names of parameters that take no part."""
    return [name for name, _ in model.named_parameters() if name not in set(used)]
