"""Keys and values of many texts in blocks, and attention that reads them where they are.

All texts of a step are one batch of rows, one row a token: prompts that are read and answers that are written need no separate pass. A gather of
every text's keys into one padded tensor would copy the whole cache in each layer. Here the scores are a sampled product (only the pairs of
query and key that see each other, `torch.sparse.sampled_addmm`), and the weighted sum of values is `embedding_bag`: both read the blocks in place,
and both compute each row by itself, so that the result does not depend on the rest of the batch to the last bit.

Shapes: N rows, S positions that a row sees, H heads, G key-value heads, K head size.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tauon.models.kv_cache import RowCache

__all__ = ["PagedCache", "RowGroup", "bytes_per_token", "row_groups"]

_LANES = 16
"""S is a multiple of this: a longer padding then adds zeros only, in the same lanes of the softmax's sum."""


def bytes_per_token(model: Any) -> int:
    """Return the memory of one token's keys and values, in float32."""
    return sum(2 * 4 * layer.attention.kv_heads * layer.attention.head_size for layer in model.layers)


@dataclass(frozen=True)
class RowGroup:
    """Rows of a step that see about as many positions."""

    rows: Tensor | slice
    slots_NS: Tensor
    """Places in the cache of the positions that each row sees; 0, a place that stays empty, where it sees fewer than S."""
    hidden_NS: Tensor
    """0, or -inf where a row sees fewer than S."""


def row_groups(tables: Tensor, sequence_N: Tensor, position_N: Tensor, bounds: Sequence[int], window: int | None) -> list[RowGroup]:
    """Cut the rows of a step into groups.

    Args:
        tables: place in the cache of each position (columns) of each text (rows).
        sequence_N: row of `tables` that a row of the batch belongs to.
        position_N: position of each row in its text.
        bounds: ends of the groups; each group's S is that of its longest row.
        window: a row sees this many positions at most, itself included.
    """
    groups, start = [], 0
    for end in bounds:
        rows = slice(start, end)
        last_N = position_N[rows]
        first_N = torch.zeros_like(last_N) if window is None else (last_N - window + 1).clamp_(min=0)
        most = int((last_N - first_N).max()) + 1
        at_NS = first_N[:, None] + torch.arange(-(-most // _LANES) * _LANES, device=tables.device)
        beyond = at_NS > last_N[:, None]
        slots_NS = tables[sequence_N[rows, None], at_NS.clamp_(max=tables.shape[1] - 1)].masked_fill_(beyond, 0)
        hidden_NS = torch.zeros(slots_NS.shape, device=tables.device).masked_fill_(beyond, -torch.inf)
        groups.append(RowGroup(rows, slots_NS, hidden_NS))
        start = end
    return groups


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return zeros. On the CPU the system gives each page when it is first written, so that a large cache costs no time at the start."""
    return torch.from_numpy(np.zeros(shape, np.float32)) if device.type == "cpu" else torch.zeros(shape, device=device)


class PagedCache(RowCache):
    """Keys and values of all blocks, float32, one pair of tensors (places, G, K) a layer. Place = block x block_size + offset."""

    def __init__(self, model: Any, blocks: int, block_size: int) -> None:
        """`blocks`: that can be used; block 0, which stays empty, is one more."""
        device = model.embed.weight.device
        self.block_size = block_size
        self.keys, self.values = [], []
        for layer in model.layers:
            shape = ((blocks + 1) * block_size, layer.attention.kv_heads, layer.attention.head_size)
            self.keys.append(_zeros(shape, device))
            self.values.append(_zeros(shape, device))
        self._write_N = torch.empty(0, dtype=torch.int64)
        self._groups: list[RowGroup] = []
        self._patterns: list[tuple[RowGroup, Tensor, Tensor]] = []

    def copy_block(self, source: int, target: int) -> None:
        """Copy all layers of a block, so that two texts can continue differently from its middle."""
        a, b = (slice(block * self.block_size, (block + 1) * self.block_size) for block in (source, target))
        for t in (*self.keys, *self.values):
            t[b] = t[a]

    def start_step(self, write_N: Tensor, groups: list[RowGroup], heads: int) -> None:
        """Prepare a forward pass: the place of each row's own key and value, and what each row sees."""
        self._write_N, self._groups = write_N, groups
        places, kv_heads, _ = self.keys[0].shape
        head_H = torch.arange(heads, device=write_N.device)
        self._patterns = []
        for g in groups:
            N, S = g.slots_NS.shape
            columns = (g.slots_NS[:, None, :] * kv_heads + (head_H * kv_heads // heads)[None, :, None]).view(N * heads, S)
            bias = g.hidden_NS[:, None, :].expand(N, heads, S).reshape(-1)
            self._patterns.append((g, columns, _sparse(columns, bias, places * kv_heads)))

    def attend(self, layer: int, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor) -> Tensor:
        """Write the rows' keys and values, and return attention, NHK. Rows beyond those of `start_step` are padding: zeros."""
        keys, values = self.keys[layer], self.values[layer]
        n = len(self._write_N)
        keys.index_copy_(0, self._write_N, k_NGK[:n].to(keys.dtype))
        values.index_copy_(0, self._write_N, v_NGK[:n].to(values.dtype))
        K, heads = q_NHK.shape[2], q_NHK.shape[1]
        flat_keys, flat_values = keys.view(-1, K), values.view(-1, K)
        out = torch.zeros_like(q_NHK)
        for g, columns, pattern in self._patterns:
            q = q_NHK[g.rows].reshape(-1, K).to(keys.dtype)
            scores = torch.sparse.sampled_addmm(pattern, q, flat_keys.t(), alpha=K**-0.5).values().view(columns.shape)
            y = F.embedding_bag(columns, flat_values, mode="sum", per_sample_weights=scores.softmax(-1))
            out[g.rows] = y.view(-1, heads, K).to(out.dtype)
        return out


def _sparse(columns: Tensor, values: Tensor, width: int) -> Tensor:
    """CSR matrix whose rows have the columns `columns`, in the order given."""
    rows, each = columns.shape
    starts = torch.arange(0, rows * each + 1, each, device=columns.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns.reshape(-1), values, (rows, width), check_invariants=False)
