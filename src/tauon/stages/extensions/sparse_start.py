"""A run that starts from a sparse model keeps it sparse: the zeros of its layers stay zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tauon.artifacts import Checkpoint
from tauon.compress.training import hold_masks, masks_of_zeros
from tauon.plan import Derived, Plan
from tauon.stages.extensions.base import TrainExtension
from tauon.train import TrainJob

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["SparseStart", "sparse_start"]


def sparse_start(ctx: Context, checkpoint: Checkpoint | None) -> SparseStart | None:
    """Return the extension if the model that training starts from records sparse layers."""
    start = ctx.start
    return None if start is None or not start.sparse or ctx.recipe.adapt is not None else SparseStart(start.tensors, start.sparse)


class SparseStart(TrainExtension):
    """Holds the masks of sparse layers."""

    def __init__(self, weights: Any, layers: tuple[str, ...]) -> None:
        self.layers = layers
        self.masks = masks_of_zeros(weights, list(layers))

    def plan(self, plan: Plan) -> None:
        total = sum(m.numel() for m in self.masks.values())
        zeros = sum(int((~m).sum()) for m in self.masks.values())
        plan.derived.append(Derived("sparsity", f"{zeros / max(1, total):.1%}", f"of {len(self.masks)} layers stay zero, as in model.from"))

    def wrap(self, job: TrainJob) -> TrainJob:
        return hold_masks(job, self.masks)

    def checkpoint_state(self, step: int, state: dict[str, Any]) -> dict[str, Any]:
        return state | {"sparse": list(self.layers)}
