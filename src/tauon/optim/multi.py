"""One optimizer made of several over disjoint parameters, so that the training loop and checkpoints need no special case; and the
selection of matrices inside the blocks, for optimizers of matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

__all__ = ["MultiOptimizer", "inner_matrices"]

OUTER = ("embed.", "positions.", "head.", "layers.0.")
"""Names of input and output matrices."""


def inner_matrices(model: nn.Module) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """Split trainable parameters into (matrices inside the blocks, the others)."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inner = {n for n, p in named if p.ndim == 2 and not n.startswith(OUTER) and p.shape[0] > 1}
    return [(n, p) for n, p in named if n in inner], [(n, p) for n, p in named if n not in inner]


class MultiOptimizer(Optimizer):
    """Several optimizers over disjoint parameters, as one. Parameter groups are shared with the parts."""

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts
        super().__init__([g for part in parts for g in part.param_groups], {})

    @property  # type: ignore[override]
    def state(self) -> dict[Any, Any]:
        """State by parameter, of all parts (a copy: modify the state of a part)."""
        return {p: s for part in self.parts for p, s in part.state.items()}

    @state.setter
    def state(self, value: dict[Any, Any]) -> None:
        pass  # torch's constructor sets an empty state; the parts have their own

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
