"""Cache of the attention keys and values of earlier tokens, for generation."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

__all__ = ["KVCache", "RowCache"]


class KVCache:
    """Keys and values of the tokens so far, one pair per layer: B G T K, allocated once for `max_len` tokens."""

    def __init__(self, model: Any, batch: int, max_len: int, dtype: torch.dtype | None = None) -> None:
        """`model`: a `GPT`, whose attentions say how many heads there are, and how wide."""
        first = model.layers[0].attention
        shape = (batch, first.kv_heads, max_len, first.head_size)
        device = model.embed.weight.device
        dtype = dtype or model.embed.weight.dtype
        self.layers = [
            (torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype)) for _ in model.blocks
        ]
        self.length = 0

    def copy(self) -> KVCache:
        """Return an independent copy, so that several texts can continue from one prompt."""
        twin = copy.copy(self)
        twin.layers = [(k.clone(), v.clone()) for k, v in self.layers]
        return twin

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values and return all of them. `length` changes when the last layer has written."""
        keys, values = self.layers[layer]
        end = self.length + k_BGTK.shape[2]
        keys[:, :, self.length : end] = k_BGTK
        values[:, :, self.length : end] = v_BGTK
        if layer == len(self.layers) - 1:
            self.length = end
        return keys[:, :, :end].to(k_BGTK.dtype), values[:, :, :end].to(v_BGTK.dtype)


class RowCache(ABC):
    """A cache that does the attention itself, over a batch whose rows are tokens of many texts (`tauon.generate.paged_cache`)."""

    @abstractmethod
    def attend(self, layer: int, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor) -> Tensor:
        """Keep the rows' keys and values, and return attention, NHK, of each row to its own text."""
