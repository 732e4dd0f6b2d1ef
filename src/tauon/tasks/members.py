"""Losses of models that are ensembles trained as one: in training they return BKC, the outputs of K members, and each member's loss counts alike.

Shapes: B batch, K members, C outputs.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["mean_of_members", "members_as_examples"]


def members_as_examples(out: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return (outputs BK x C, targets BK...) of outputs BKC, each member an example of its own; outputs BC as they are."""
    if out.ndim < 3:
        return out, targets
    return out.flatten(0, 1), targets.repeat_interleave(out.shape[1], 0)


def mean_of_members(loss: Tensor, examples: int) -> Tensor:
    """Return the loss of each example, B: the mean over its members of the losses BK.

    >>> import torch
    >>> mean_of_members(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2)
    tensor([2., 5.])
    """
    return loss if len(loss) == examples else loss.view(examples, -1).mean(1)
