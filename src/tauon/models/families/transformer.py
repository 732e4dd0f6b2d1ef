"""The parts of a causal transformer: norm, block, attention, MLP, rotary positions, document masks. Plain single-device code.

Attention keeps all that mixes positions in one method, `attend`, so that it can be wrapped from outside (docs/decisions/010).

Shapes: B batch, T time, D width, H heads, G key-value heads, K head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Config, Count
from tauon.models.attention import attend_heads
from tauon.models.kv_cache import KVCache, RowCache
from tauon.models.randomness import dropout

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "RMSNorm",
    "RopeScaling",
    "apply_rope",
    "as_bias",
    "document_mask",
    "positions_in_segments",
    "rope_frequencies",
    "window_mask",
]


class RopeScaling(Config):
    """Slower rotary frequencies for sequences longer than the model was first trained for, as in Llama 3.1 (arXiv:2407.21783).

    With n turns within that length: below `low` turns a frequency is divided by `factor`, above `high` it stays, between them both
    are mixed.
    """

    factor: float = Field(8.0, ge=1)
    """How much slower the slow frequencies become."""
    low: float = Field(1.0, gt=0)
    """Frequencies with fewer turns are slowed down in full."""
    high: float = Field(4.0, gt=0)
    """Frequencies with more turns stay as they are."""
    trained_for: Count = Field(8192, ge=1)
    """Length in tokens of the sequences that the model was first trained on."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("high") <= self.raw_value("low"):
            yield "high", f"{self.raw_value('high')} is not above low={self.raw_value('low')}. Llama 3.1 has low 1, high 4."


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv:1910.07467), in the dtype of x: torch's own falls off its fused path
    when autocast gives it bf16 activations and fp32 weights.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, norms: tuple[nn.Module, nn.Module], attention: Attention, mlp: MLP, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = norms
        self.attention = attention
        self.mlp = mlp
        self.dropout = dropout

    def forward(
        self, x_BTD: Tensor, rotate: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: tuple[KVCache | RowCache, int] | None = None
    ) -> Tensor:
        x_BTD = x_BTD + dropout(self.attention(self.attention_norm(x_BTD), rotate, mask, cache), self.dropout, self.training)
        return x_BTD + dropout(self.mlp(self.mlp_norm(x_BTD)), self.dropout, self.training)


class Attention(nn.Module):
    """Causal self-attention; G key-value heads serve H query heads."""

    kernel = "fused"
    """How `attend` computes: one of `tauon.models.attention.KERNELS`."""

    def __init__(
        self, width: int, heads: int, kv_heads: int, *, bias: bool, qk_norm: bool, head_size: int | None = None, out_bias: bool | None = None,
        eps: float = 1e-6,
    ) -> None:  # fmt: skip
        """`bias`: of queries, keys and values, and of the output too unless `out_bias` says otherwise; `eps`: of the QK-norms."""
        super().__init__()
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, head_size or width // heads
        self.q = nn.Linear(width, heads * self.head_size, bias=bias)
        self.k = nn.Linear(width, kv_heads * self.head_size, bias=bias)
        self.v = nn.Linear(width, kv_heads * self.head_size, bias=bias)
        self.out = nn.Linear(heads * self.head_size, width, bias=bias if out_bias is None else out_bias)
        self.q_norm = RMSNorm(self.head_size, eps) if qk_norm else None
        self.k_norm = RMSNorm(self.head_size, eps) if qk_norm else None

    def forward(
        self, x_BTD: Tensor, rotate: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: tuple[KVCache | RowCache, int] | None = None
    ) -> Tensor:
        B, T, _ = x_BTD.shape
        # -1: a process may hold some of the heads only (tensor parallelism)
        q_BTHK = self.q(x_BTD).view(B, T, -1, self.head_size)
        k_BTGK = self.k(x_BTD).view(B, T, -1, self.head_size)
        v_BTGK = self.v(x_BTD).view(B, T, -1, self.head_size)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        y_BTHK = self.attend(q_BTHK, k_BTGK, v_BTGK, rotate, mask, cache)
        out: Tensor = self.out(y_BTHK.reshape(B, T, -1))
        return out

    def attend(
        self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, rotate: tuple[Tensor, Tensor] | None, mask: Tensor | None,
        cache: tuple[KVCache | RowCache, int] | None = None,
    ) -> Tensor:  # fmt: skip
        """The one part that mixes positions: BTHK out. Works on any number of heads."""
        T = q_BTHK.shape[1]
        if rotate is not None:
            q_BTHK, k_BTGK = apply_rope(q_BTHK, *rotate), apply_rope(k_BTGK, *rotate)
        q, k, v = q_BTHK.transpose(1, 2), k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2).to(q_BTHK.dtype)
        causal = mask is None
        if cache is not None:
            store, layer = cache
            if isinstance(store, RowCache):
                return store.attend(layer, q_BTHK[0], k_BTGK[0], v_BTGK[0])[None]
            k, v = store.append(layer, k, v)
            if mask is None and T > 1 and k.shape[2] > T:  # several new tokens behind old ones: the mask is not square
                mask, causal = torch.ones(T, k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - T), False
            causal = causal and T > 1  # one new token sees everything before it
        if k.shape[1] != q.shape[1]:
            k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
        return attend_heads(q, k, v, mask, causal=causal, kernel=self.kernel).transpose(1, 2)


class MLP(nn.Module):
    """down(act(up x)); `swiglu` gates: down(silu(gate x) * up x)."""

    def __init__(self, width: int, hidden: int, kind: Literal["swiglu", "relu2", "gelu", "gelu-exact"], *, bias: bool) -> None:
        super().__init__()
        self.kind = kind
        self.up = nn.Linear(width, hidden, bias=bias)
        self.gate = nn.Linear(width, hidden, bias=bias) if kind == "swiglu" else None
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h = self.up(x_BTD)
        if self.gate is not None:
            h = F.silu(self.gate(x_BTD)) * h
        elif self.kind == "relu2":
            h = F.relu(h).square()
        else:
            h = F.gelu(h, approximate="none" if self.kind == "gelu-exact" else "tanh")
        out: Tensor = self.down(h)
        return out


def apply_rope(x_BTHK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotate the pairs (k, k + K/2) of each head by the angle of position t (Su et al. 2021; Llama's pairing)."""
    cos, sin = cos_TK[None, :, None, :].to(x_BTHK.dtype), sin_TK[None, :, None, :].to(x_BTHK.dtype)
    a, b = x_BTHK.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rope_frequencies(size: int, base: float, scaling: RopeScaling | None = None) -> Tensor:
    """K/2 angles a position, float64: base^(-2k/K), slowed down where `scaling` says so."""
    freq_K = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    if scaling is None:
        return freq_K
    turns_K = scaling.trained_for * freq_K / (2 * math.pi)  # whole turns within the length that the model was first trained for
    keep_K = ((turns_K - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return freq_K * (keep_K + (1 - keep_K) / scaling.factor)


def document_mask(segments_BT: Tensor) -> Tensor:
    """B1TT, true where query t may see key s: s <= t and both in one document. Resetting positions alone does not hide a neighbour."""
    T = segments_BT.shape[1]
    same = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
    return same & torch.ones(T, T, dtype=torch.bool, device=segments_BT.device).tril()


def window_mask(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """TS, true where a query sees a key: not behind it, and less than `window` positions before it (arXiv:1904.10509). The queries are
    the last of the keys' positions.
    """
    at_T = torch.arange(keys - queries, keys, device=device)[:, None]
    far_TS = at_T - torch.arange(keys, device=device)
    return (far_TS >= 0) & (far_TS < window)


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the mask is true, else -inf, to be added to attention's logits. Made once for all layers: of a mask of truth values, the
    kernels of a GPU compute such a bias themselves, again in every layer, and keep each for the backward pass.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def positions_in_segments(segments_BT: Tensor) -> Tensor:
    """BT: the distance of each token from the start of its own document in this row."""
    T = segments_BT.shape[1]
    at_BT = torch.arange(T, device=segments_BT.device).expand_as(segments_BT)
    new = torch.ones_like(segments_BT, dtype=torch.bool)
    new[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return at_BT - torch.where(new, at_BT, 0).cummax(dim=1).values
