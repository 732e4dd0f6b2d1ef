"""Attention as batched matrix products, for short sequences on a CPU, where torch's fused kernel is slower.

softmax(q k^T / sqrt(K) + mask) v, a few examples at a time, so that their scores stay in the cache. The probabilities are kept for the backward
pass, T^2 numbers a head, which the fused kernel computes again: hence only for T <= 1,024. `tauon.plan` measures both and chooses.

The probabilities have the dtype of `q`, as in eager attention of Hugging Face. In bfloat16 the scores are rounded, too: the result differs from
float32 by about 1.7 times as much as that of the fused kernel.

Shapes: B batch, H heads, T time, K head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["KERNELS", "LONGEST", "attend_heads", "can_choose", "set_attention"]

KERNELS = ("fused", "products")
"""`fused`: `F.scaled_dot_product_attention`; `products`: this file."""
LONGEST = 1024
"""Longest sequence for `products`."""
_CACHED = 2**21
"""Scores that exist at once: 4 MiB in bfloat16."""


def attend_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, kernel: str = "fused") -> Tensor:
    """Return attention, BHTK. Like `F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)`.

    Args:
        q: queries, BHTK.
        k: keys, BHTK.
        v: values, BHTK.
        mask: true (or 0) where a query sees a key, else false (or -inf); broadcasts to BHTT.
        causal: a query sees the keys up to its own position. Not together with `mask`.
        kernel: one of `KERNELS`. Where `products` does not apply (other lengths of queries and keys, long sequences, other devices), `fused` is taken.

    >>> q, k, v = torch.randn(3, 2, 4, 16, 8)
    >>> torch.allclose(attend_heads(q, k, v, causal=True, kernel="products"), attend_heads(q, k, v, causal=True), atol=1e-6)
    True
    """
    T = q.shape[2]
    if kernel == "fused" or k.shape != q.shape or v.shape != q.shape or T > LONGEST or T < 2 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if causal:
        mask = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    keep = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    out: Tensor = _attention(q, k, v, mask, keep)[0]
    return out


def can_choose(module: nn.Module) -> bool:
    """Return whether `module` is an attention that takes a kernel, as its attribute `kernel`."""
    return hasattr(module, "kernel") and hasattr(module, "attend")


def set_attention(model: nn.Module, kernel: str) -> None:
    """Set the kernel of every attention in `model` that can choose.

    Raises `ValueError` for an unknown name.
    """
    if kernel not in KERNELS:
        raise ValueError(f"{kernel!r} is no attention kernel. Choose from: {', '.join(KERNELS)}.")
    for module in model.modules():
        if can_choose(module):
            module.kernel = kernel  # type: ignore[assignment]


@torch.library.custom_op("tauon::attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
    """Return attention BHTK and, if `keep`, the probabilities, BHT x T; else no numbers."""
    B, H, T, K = q.shape
    bias = None if mask is None else _as_bias(mask, q.dtype)
    scaled, keys, values = (q / math.sqrt(K)).reshape(B * H, T, K), k.reshape(B * H, T, K), v.reshape(B * H, T, K)
    many = _examples_at_once(H, T)
    seen = q.new_empty(B * H if keep else min(B, many) * H, T, T)
    out = q.new_empty(B * H, T, K)
    for b in range(0, B, many):
        rows = slice(b * H, min(B, b + many) * H)
        p = seen[rows] if keep else seen[: rows.stop - rows.start]
        torch.bmm(scaled[rows], keys[rows].mT, out=p)
        if bias is not None:
            p.view(-1, H, T, T).add_(bias if len(bias) == 1 else bias[b : b + many])
        torch.softmax(p, -1, out=p)
        torch.bmm(p, values[rows], out=out[rows])
    return out.view(B, H, T, K), seen if keep else q.new_empty(0)


@torch.library.custom_op("tauon::attention_backward", mutates_args=())
def _attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    B, H, T, K = q.shape
    grad, queries, keys, values = (x.reshape(B * H, T, K) for x in (grad, q, k, v))
    grads = grad_q, grad_k, grad_v = [torch.empty_like(grad) for _ in range(3)]
    many = _examples_at_once(H, T)
    memory = q.new_empty(min(B, many) * H, T, T)
    for b in range(0, B, many):
        rows = slice(b * H, min(B, b + many) * H)
        p, g = seen[rows], grad[rows]
        scores = torch.bmm(g, values[rows].mT, out=memory[: len(p)])
        torch.ops.aten._softmax_backward_data.out(scores, p, -1, q.dtype, grad_input=scores)
        torch.bmm(scores, keys[rows], out=grad_q[rows])
        torch.bmm(scores.mT, queries[rows], out=grad_k[rows])
        torch.bmm(p.mT, g, out=grad_v[rows])
    scale = 1 / math.sqrt(K)
    grad_q.mul_(scale)
    grad_k.mul_(scale)
    dq, dk, dv = (x.view(B, H, T, K) for x in grads)
    return dq, dk, dv


def _examples_at_once(heads: int, length: int) -> int:
    return max(1, _CACHED // (heads * length * length))


def _as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores, 1 or B x 1 or H x T x T."""
    mask = mask.view(*(1,) * (4 - mask.ndim), *mask.shape)
    return mask.to(dtype) if mask.dtype != torch.bool else torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
    B, H, T, K = q.shape
    return q.new_empty(B, H, T, K), q.new_empty((B * H, T, T) if keep else (0,))


@_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(q.new_empty(q.shape) for _ in range(3))  # type: ignore[return-value]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, _, _ = inputs
    ctx.save_for_backward(q, k, v, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_attention_backward(grad, *ctx.saved_tensors), None, None


_attention.register_autograd(_gradients, setup_context=_keep_for_backward)
