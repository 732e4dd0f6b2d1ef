"""Linear cross-entropy: the loss of `softmax(h W^T)` without storing the logits of all rows, unless they are at most 128 MiB (`KEPT`).

Chunk by chunk of rows, the logits are computed, turned into their own gradient, and multiplied back at once, so that the
peak memory is one chunk, or `KEPT`, and the backward pass only scales stored gradients (Wijmans et al. 2024, arXiv:2411.09009; Liger
kernel, Hsu et al. 2024, arXiv:2410.10989). torch's own chunked `F.linear_cross_entropy` computes bf16 in fp32 on a CPU,
which costs the speed of bf16 hardware, and returns the loss rounded to bf16: hence this one.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.distributed.pieces import is_dtensor, local_slices

__all__ = ["chunk_rows", "linear_cross_entropy", "softmax_and_nll", "token_nll"]


KEPT = 2**27
"""Bytes of gradients of logits that are kept for one product, if the weight needs a gradient. The fewer groups of rows, the fewer sums of V x D."""


def chunk_rows(rows: int, vocab: int, device: torch.device) -> int:
    """Return the number of rows of logits that exist at once: 16 MiB of fp32 on a CPU (stays in cache), more up to 128 rows and 256 MiB,
    because each chunk reads all of the weights; 512 MiB on a GPU. A function of shapes alone.
    """
    if device.type == "cpu":
        return max(1, min(rows, max(2**22 // vocab, min(128, 2**26 // vocab))))
    fits = 2**27 // vocab
    return max(1, min(rows, fits - fits % 128 or fits))  # whole tiles of a GPU's matrix product


def softmax_and_nll(z_NV: Tensor, at_N1: Tensor, h_ND: Tensor, w_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Return (probabilities, -log p of `at`: N1) of logits z = h w^T, which they overwrite on a CPU; if p is too small for its log, z is recomputed."""
    if z_NV.device.type != "cpu":
        top, of_target = z_NV.amax(1, keepdim=True), z_NV.gather(1, at_N1)
        p_NV = z_NV.softmax(1)
        return p_NV, top - p_NV.amax(1, keepdim=True).log() - of_target
    torch.softmax(z_NV, 1, out=z_NV)
    p_N1 = z_NV.gather(1, at_N1)
    nll_N1 = -p_N1.log()
    tiny = p_N1[:, 0] < 1e-30
    if tiny.any():
        nll_N1[tiny, 0] = F.cross_entropy((h_ND[tiny] @ w_VD.t()).float(), at_N1[tiny, 0], reduction="none")
    return z_NV, nll_N1


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, token_weight_N: Tensor) -> Tensor:
        N, V = hidden_ND.shape[0], weight_VD.shape[0]
        step = chunk_rows(N, V, hidden_ND.device)
        w = weight_VD.to(hidden_ND.dtype)
        want_h, want_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        grad_h = torch.empty_like(hidden_ND) if want_h else None
        sum_w = _SumOfProducts() if want_w else None
        rows_kept = min(N, step * max(1, KEPT // (V * step * w.itemsize))) if want_w else min(N, step)
        kept = hidden_ND.new_empty(rows_kept, V)  # gradients of the logits, until their product with h is added to that of W
        memory = None if w.dtype == torch.float32 else hidden_ND.new_empty((min(N, step), V), dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        for first in range(0, N, rows_kept):
            for start in range(first, min(N, first + rows_kept), step):
                rows = slice(start, min(N, first + rows_kept, start + step))
                z = kept[start - first : rows.stop - first]
                g = token_weight_N[rows, None]
                torch.mm(hidden_ND[rows], w.t(), out=z)
                total += (_into_gradient(z, memory, target_N[rows, None], hidden_ND[rows], w) * g).sum()
                if grad_h is not None:
                    torch.mm(z, w, out=grad_h[rows]).mul_(g)  # scale rows of D numbers instead of V
            if sum_w is not None:
                rows = slice(first, min(N, first + rows_kept))
                sum_w.add(kept[: rows.stop - first], (hidden_ND[rows] * token_weight_N[rows, None]).to(hidden_ND.dtype))
        ctx.save_for_backward(grad_h, None if sum_w is None else sum_w.total)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        grad_h, grad_w = ctx.saved_tensors
        return (
            None if grad_h is None else grad_h * grad.to(grad_h.dtype),
            None if grad_w is None else (grad_w.float() * grad).to(ctx.weight_dtype),
            None,
            None,
        )


def _into_gradient(z_NV: Tensor, memory: Tensor | None, at_N1: Tensor, h_ND: Tensor, w_VD: Tensor) -> Tensor:
    """Overwrite logits z = h w^T with softmax minus one at the target; return -log p of the targets, N1 in fp32. `memory`: for z in fp32."""
    exact = z_NV if memory is None else memory[: len(z_NV)].copy_(z_NV)
    p_NV, nll_N1 = softmax_and_nll(exact, at_N1, h_ND, w_VD)
    p_NV.scatter_add_(1, at_N1, torch.full_like(nll_N1, -1.0))
    if p_NV is not z_NV:
        z_NV.copy_(p_NV)
    return nll_N1


class _SumOfProducts:
    """sum of P^T H over groups of rows; in fp32 if there are several groups, else in the dtype of the product."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.memory: Tensor | None = None

    def add(self, p_NV: Tensor, h_ND: Tensor) -> None:
        if self.total is None:
            self.total = torch.mm(p_NV.t(), h_ND)
            return
        if h_ND.dtype == torch.float32:
            self.total.addmm_(p_NV.t(), h_ND)
            return
        self.total = self.total.float()
        self.memory = torch.mm(p_NV.t(), h_ND, out=torch.empty_like(self.total, dtype=h_ND.dtype) if self.memory is None else self.memory)
        self.total += self.memory


class _VocabularyParallel(torch.autograd.Function):
    """The same if each process has some rows of W (Megatron-LM, arXiv:1909.08053 section 3): the softmax's normaliser and the
    target's logit are summed over processes, N numbers each, and so is the gradient of `hidden_ND`.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden_ND: Tensor, mine_VD: Tensor, target_N: Tensor, token_weight_N: Tensor, first: int, group: Any
    ) -> Tensor:
        N, V = hidden_ND.shape[0], mine_VD.shape[0]
        step = chunk_rows(N, max(1, V), hidden_ND.device)
        w = mine_VD.to(hidden_ND.dtype)
        want = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_h = torch.empty_like(hidden_ND) if want else None
        grad_w = torch.zeros(mine_VD.shape, dtype=torch.float32, device=mine_VD.device) if want else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, N, step):
            h, g = hidden_ND[start : start + step], token_weight_N[start : start + step, None]
            logits = (h @ w.t()).float()
            top = logits.amax(1) if V else logits.new_full((len(h),), -torch.inf)
            dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
            at = target_N[start : start + step] - first
            here = (at >= 0) & (at < V)
            at = at.clamp(0, max(0, V - 1))[:, None]
            logits -= top[:, None]
            of_target = logits.gather(1, at)[:, 0] * here if V else torch.zeros_like(top)
            sums = torch.stack([logits.exp().sum(1), of_target])
            dist.all_reduce(sums, group=group)
            log_z = sums[0].log()
            total += ((log_z - sums[1]) * g[:, 0]).sum()
            if grad_h is None or grad_w is None:
                continue
            dlogits = (logits - log_z[:, None]).exp_()
            if V:
                dlogits.scatter_add_(1, at, -here[:, None].float())
            dlogits = dlogits.mul_(g).to(h.dtype)
            torch.mm(dlogits, w, out=grad_h[start : start + step])
            grad_w += dlogits.t() @ h
        if grad_h is not None:
            dist.all_reduce(grad_h, group=group)
        ctx.save_for_backward(grad_h, grad_w)
        ctx.weight_dtype = mine_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:  # type: ignore[override]
        grad_h, grad_w = ctx.saved_tensors
        return grad_h * grad.to(grad_h.dtype), (grad_w * grad).to(ctx.weight_dtype), None, None, None, None


def _in_autocast_dtype(hidden_ND: Tensor) -> Tensor:
    """Return hidden states in the dtype of autocast's matrix products: a final norm in float32 leaves them in float32."""
    device = hidden_ND.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return hidden_ND.to(torch.get_autocast_dtype(device)) if on else hidden_ND


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, token_weight_N: Tensor) -> Tensor:
    """sum_n weight_n * -log softmax(h_n W^T)[target_n], in nats, fp32 scalar.

    Matrix products run in the dtype of `hidden_ND`, or of autocast; sums and the softmax in fp32. Gradients flow to
    `hidden_ND` and `weight_VD`, once (no second derivatives). A weight that is a DTensor sharded along V is never gathered.
    """
    hidden_ND = _in_autocast_dtype(hidden_ND)
    if (tapped := getattr(weight_VD, "tapped", None)) is not None:  # clipped by example: see tauon.privacy.clipped
        out: Tensor = tapped.linear_cross_entropy(hidden_ND, target_N, token_weight_N)
        return out
    if is_dtensor(weight_VD):
        first = local_slices(weight_VD)[0].start
        group = weight_VD.device_mesh.get_group()
        split: Tensor = _VocabularyParallel.apply(hidden_ND, weight_VD.to_local(), target_N, token_weight_N, first, group)
        return split
    out = _LinearCrossEntropy.apply(hidden_ND, weight_VD, target_N, token_weight_N)
    return out


def token_nll(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Return -log p of each target, N in fp32 nats, with ordinary autograd; chunked, so only one chunk of logits exists without grad."""
    hidden_ND = _in_autocast_dtype(hidden_ND)
    if (tapped := getattr(weight_VD, "tapped", None)) is not None:
        nll_N: Tensor = tapped.token_nll(hidden_ND, target_N)
        return nll_N
    if is_dtensor(weight_VD):
        weight_VD = weight_VD.full_tensor()
    w = weight_VD.to(hidden_ND.dtype)
    step = chunk_rows(hidden_ND.shape[0], weight_VD.shape[0], hidden_ND.device)
    parts = [
        F.cross_entropy((hidden_ND[i : i + step] @ w.t()).float(), target_N[i : i + step], reduction="none")
        for i in range(0, hidden_ND.shape[0], step)
    ]
    return torch.cat(parts)


def next_token_nll(model: nn.Module, hidden_BTD: Tensor, target_BT: Tensor) -> Tensor:
    """Return -log p of each target, BT in fp32 nats, from the model's last hidden states.

    A model in another runtime (`gives_logits`) returns logits in place of hidden states; a head with quantised weights computes them itself.
    """
    head: Any = getattr(model, "head", None)
    if getattr(model, "gives_logits", False) or not isinstance(getattr(head, "weight", None), Tensor):
        made: Any = model
        parts = [
            F.cross_entropy(made.logits(hidden_TD).float(), target_T, reduction="none")
            for hidden_TD, target_T in zip(hidden_BTD, target_BT, strict=True)
        ]
        return torch.stack(parts)
    return token_nll(hidden_BTD.flatten(0, 1), head.weight, target_BT.flatten()).view(target_BT.shape)
