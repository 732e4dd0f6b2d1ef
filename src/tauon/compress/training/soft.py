"""Losses of a student against its teacher: divergences at a temperature T times T^2 (Hinton, Vinyals & Dean 2015, arXiv:1503.02531), and squared
differences of numbers.

For language models, `linear_distillation` is chunked like `tauon.tasks.losses.linear_cross_entropy`: of both models only one chunk of logits exists,
and the chunk of the student is turned into its own gradient at once.

Shapes: N tokens, D width of the student, E width of the teacher, V vocabulary; B batch, C classes, K labels or targets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, logsigmoid

from tauon.errors import Problem, RecipeError
from tauon.tasks.losses import chunk_rows

__all__ = ["FAMILIES", "divergence", "linear_distillation"]


class _LinearDistillation(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, teacher: tuple[Tensor, Tensor], target_N: Tensor, token_weight_N: Tensor,
        shares: tuple[float, float], temperature: float,
    ) -> Tensor:  # fmt: skip
        (hard, soft), T = shares, temperature
        teacher_NE, teacher_weight_VE = teacher
        N, V = hidden_ND.shape[0], weight_VD.shape[0]
        step = max(1, chunk_rows(N, V, hidden_ND.device) // 2)  # two chunks exist: of student and teacher
        w, w_teacher = weight_VD.to(hidden_ND.dtype), teacher_weight_VE.to(teacher_NE.dtype)
        grad_h = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        grad_w = torch.zeros(weight_VD.shape, dtype=torch.float32, device=weight_VD.device) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, N, step):
            rows = slice(start, min(N, start + step))
            h, g = hidden_ND[rows], token_weight_N[rows, None]
            z = (h @ w.t()).float()
            t = (teacher_NE[rows] @ w_teacher.t()).float()
            loss_N1, gradient = _mixed(z, t, target_N[rows, None], (hard, soft), T)
            total += (loss_N1 * g).sum()
            gradient = gradient.to(h.dtype)
            if grad_h is not None:
                torch.mm(gradient, w, out=grad_h[rows]).mul_(g)  # scale rows of D numbers instead of V
            if grad_w is not None:
                scaled = (h * g).to(h.dtype)
                if h.dtype == torch.float32:
                    grad_w.addmm_(gradient.t(), scaled)
                else:
                    grad_w += gradient.t() @ scaled
        ctx.save_for_backward(grad_h, grad_w)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_h, grad_w = ctx.saved_tensors
        return (
            None if grad_h is None else grad_h * grad.to(grad_h.dtype),
            None if grad_w is None else (grad_w * grad).to(ctx.weight_dtype),
            None, None, None, None, None,
        )  # fmt: skip


def _mixed(z_NV: Tensor, t_NV: Tensor, at_N1: Tensor, shares: tuple[float, float], T: float) -> tuple[Tensor, Tensor]:
    """Return (hard * -log softmax(z)[at] + soft * T^2 KL(softmax(t / T) || softmax(z / T)), N1; its gradient by z, NV). z and t are overwritten."""
    hard, soft = shares
    if T == 1:
        log_s = log_softmax(z_NV, 1)
    else:
        log_s = log_softmax(z_NV / T, 1)
        t_NV.div_(T)
    log_t = log_softmax(t_NV, 1)
    q_NV = torch.exp(log_t, out=t_NV)
    loss_N1 = soft * T * T * torch.linalg.vecdot(q_NV, log_t.sub_(log_s))[:, None]  # exactly 0 for equal logits
    if T == 1:  # one softmax of the student serves both parts
        loss_N1 -= hard * log_s.gather(1, at_N1)
        gradient = log_s.exp_().mul_(soft + hard) if soft + hard != 1 else log_s.exp_()
        gradient.sub_(q_NV, alpha=soft)
    else:
        gradient = log_s.exp_().sub_(q_NV).mul_(soft * T)
        if hard:
            log_z = log_softmax(z_NV, 1)
            loss_N1 -= hard * log_z.gather(1, at_N1)
            gradient.add_(log_z.exp_(), alpha=hard)
    return loss_N1, gradient.scatter_add_(1, at_N1, torch.full_like(loss_N1, -hard))


def linear_distillation(
    hidden_ND: Tensor, weight_VD: Tensor, teacher: tuple[Tensor, Tensor], target_N: Tensor, token_weight_N: Tensor, *,
    weight: float, temperature: float, hard: float | None = None,
) -> Tensor:  # fmt: skip
    """sum_n g_n [ (1 - a) * -log softmax(z_n)[target_n] + a T^2 KL(softmax(t_n / T) || softmax(z_n / T)) ], z = h W^T, t the teacher's, fp32 scalar.

    Args:
        hidden_ND: last hidden states of the student; products run in their dtype, sums and the softmax in fp32.
        weight_VD: its head.
        teacher: (hidden states NE, head VE) of the teacher; no gradient flows to them.
        target_N: the right tokens.
        token_weight_N: g: zero leaves a token out.
        weight: a.
        temperature: T.
        hard: share of the cross-entropy instead of 1 - a.

    >>> h, w = torch.randn(3, 4), torch.randn(7, 4)
    >>> float(linear_distillation(h, w, (h, w), torch.zeros(3, dtype=torch.int64), torch.ones(3), weight=1.0, temperature=2.0))
    0.0
    """
    shares = (1 - weight if hard is None else hard, weight)
    out: Tensor = _LinearDistillation.apply(hidden_ND, weight_VD, teacher, target_N, token_weight_N, shares, temperature)
    return out


def _softmax(student_BC: Tensor, teacher_BC: Tensor, T: float) -> Tensor:
    s, t = log_softmax(student_BC / T, -1), log_softmax(teacher_BC / T, -1)
    return kl_div(s, t, reduction="none", log_target=True).sum(-1) * T * T


def _sigmoid(student_BK: Tensor, teacher_BK: Tensor, T: float) -> Tensor:
    s, t = student_BK / T, teacher_BK / T
    on, off = t.sigmoid(), (-t).sigmoid()
    return (on * (logsigmoid(t) - logsigmoid(s)) + off * (logsigmoid(-t) - logsigmoid(-s))).mean(-1) * T * T


def _squared_sum(student_BK: Tensor, teacher_BK: Tensor, T: float) -> Tensor:
    return (student_BK - teacher_BK).square().flatten(1).sum(1)


def _squared_mean(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    return (student - teacher).square().flatten(1).mean(1)


_OUTPUTS = {
    "classification": _softmax, "ordinal": _softmax, "multi-label": _sigmoid, "regression": _squared_sum,
    "quantile-regression": _squared_mean, "forecasting": _squared_mean,
}  # fmt: skip
FAMILIES = (*_OUTPUTS, "language-modelling", "masked-language-modelling")
"""Families of tasks (`Task.family`) that can be distilled."""


def divergence(family: str, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return how far the student's outputs are from the teacher's, B in fp32: T^2 KL of classes or of each label, or the squared difference of numbers.

    >>> divergence("classification", torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]), 2.0)
    tensor([0.])
    """
    if student.shape != teacher.shape:
        message = (
            f"outputs {tuple(teacher.shape[1:])} for each example, the student {tuple(student.shape[1:])}. Both need the same targets."
        )
        raise RecipeError([Problem("distil.teacher", message)])
    return _OUTPUTS[family](student.float(), teacher.float(), temperature)
