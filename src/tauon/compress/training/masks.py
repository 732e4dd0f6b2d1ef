"""Weights that stay zero while a sparse model trains: neither gradient, momentum nor weight decay revives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tauon.distributed import local_part, local_slices
from tauon.errors import CheckpointError
from tauon.train import TrainJob

__all__ = ["hold_masks", "masks_of_zeros"]


def hold_masks(job: TrainJob, masks: Mapping[str, Tensor]) -> TrainJob:
    """Return the same job, in which masked weights stay zero: their gradients are removed before clipping, so that the norm is that of what
    trains, and the weights are set to zero after each update, whatever the optimizer's state.

    Args:
        job: not sharded along tensor-parallel processes only; shards of FSDP take their part of a mask.
        masks: parameter name to a mask of its shape (bool, true: trains).

    Raises:
        CheckpointError: a mask belongs to no parameter, or has another shape.
    """
    parameters = dict(job.model.named_parameters())
    wrong = [n for n, m in masks.items() if n not in parameters or tuple(m.shape) != tuple(parameters[n].shape)]
    if wrong:
        raise CheckpointError(f"masks of sparse weights do not belong to this model: {', '.join(wrong[:3])}. Compress it again.")
    pairs = [(parameters[n], m[local_slices(parameters[n])].to(job.policy.device)) for n, m in masks.items()]
    exchange, update = job.functions.exchange, job.functions.update

    @torch.no_grad()
    def masked_exchange(job: TrainJob) -> None:
        exchange(job)
        for p, mask in pairs:
            if p.grad is not None:
                local_part(p.grad).mul_(mask)

    def masked_update(job: TrainJob) -> None:
        update(job)
        _zero(pairs)

    _zero(pairs)
    job.functions = replace(job.functions, exchange=masked_exchange, update=masked_update)
    return job


@torch.no_grad()
def _zero(pairs: list[tuple[nn.Parameter, Tensor]]) -> None:
    for p, mask in pairs:
        local_part(p).mul_(mask)


def masks_of_zeros(weights: Mapping[str, Any], layers: list[str]) -> dict[str, Tensor]:
    """Return the mask of each named layer's weight: where it is not zero. `weights`: tensors, or what reads them (`read`)."""
    masks = {}
    for name in (f"{layer}.weight" for layer in layers):
        if name in weights:
            source = weights[name]
            masks[name] = (source if isinstance(source, Tensor) else source.read()) != 0
    return masks
