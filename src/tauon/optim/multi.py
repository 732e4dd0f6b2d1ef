"""Several optimizers over disjoint parameters that act as one, so that the loop and the checkpoint know no special case; and which
parameters are matrices inside the blocks, for those that take matrices alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

__all__ = ["MultiOptimizer", "inner_matrices"]

OUTER = ("embed.", "positions.", "head.", "layers.0.")
"""Names of matrices that face the input or the output."""


def inner_matrices(model: nn.Module) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """(matrices inside the blocks, the rest) of what trains."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inner = {n for n, p in named if p.ndim == 2 and not n.startswith(OUTER) and p.shape[0] > 1}
    return [(n, p) for n, p in named if n in inner], [(n, p) for n, p in named if n not in inner]


class MultiOptimizer(Optimizer):
    """Several optimizers over disjoint parameters, as one. Groups are the parts' own, so a learning rate set here is theirs."""

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts
        super().__init__([g for part in parts for g in part.param_groups], {})

    @property  # type: ignore[override]
    def state(self) -> dict[Any, Any]:
        """State by parameter, of all parts (a copy: write to a part's own)."""
        return {p: s for part in self.parts for p, s in part.state.items()}

    @state.setter
    def state(self, value: dict[Any, Any]) -> None:
        pass  # torch's constructor sets an empty one; the parts keep theirs

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [g for part in self.parts for g in part.param_groups]  # loading replaced them
