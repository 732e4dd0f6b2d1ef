"""Batch norms behind convolutions become part of them: W' = W g / sqrt(var + eps), b' = beta - mean g / sqrt(var + eps)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from tauon.compress.rebuild import set_module
from tauon.models import BatchNorm

__all__ = ["fold_batch_norms"]


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> list[str]:
    """Fold each batch norm into the convolution that is registered right before it in the same module, in place; return the convolutions' names.

    The model has to be in evaluation mode; the norm's place is taken by an identity.
    """
    folded = []
    for owner, parent in list(model.named_modules()):
        for (name, conv), (behind, norm) in pairwise(list(parent.named_children())):
            norm_: Any = norm
            if type(conv) is nn.Conv2d and isinstance(norm, BatchNorm | nn.BatchNorm2d) and norm_.weight.numel() == conv.out_channels:
                place = f"{owner}." if owner else ""
                set_module(model, place + name, _folded(conv, norm_))
                set_module(model, place + behind, nn.Identity())
                folded.append(place + name)
    return folded


def _folded(conv: nn.Conv2d, norm: Any) -> nn.Conv2d:
    how: Any = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation, "groups": conv.groups}
    kernel: Any = conv.kernel_size
    device = conv.weight.device
    merged = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, bias=True, device=device, **how).eval()
    gain = (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).to(device)
    bias = 0 if conv.bias is None else conv.bias.double()
    merged.weight.copy_(conv.weight.double() * gain.view(-1, 1, 1, 1))
    assert merged.bias is not None
    merged.bias.copy_((bias - norm.running_mean.double()) * gain + norm.bias.double())
    return merged
