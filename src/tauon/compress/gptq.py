"""Better roundings of a weight than to nearest: GPTQ and AWQ. Pure functions of a weight and of what its inputs look like.

Both lower the error of the layer's output on calibration data, tr((W - Q) H (W - Q)^T) with H = X^T X / M, not that of the weight.

Shapes: M rows, K inputs, N outputs, G groups of inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tauon.compress.quantized.numbers import dequantize_groups, group_scales, quantize_groups

__all__ = ["awq_scales", "gptq_round", "output_error"]


def output_error(weight_NK: Tensor, approximate_NK: Tensor, moments_KK: Tensor) -> float:
    """Return the mean squared error of the outputs: tr((W - Q) H (W - Q)^T) / N."""
    d = (weight_NK - approximate_NK).double()
    return float(((d @ moments_KK.double()) * d).sum() / len(d))


def gptq_round(weight_NK: Tensor, moments_KK: Tensor, group: int, *, bits: int = 4, damp: float = 0.01) -> tuple[Tensor, Tensor]:
    """Return (integers NK, int8; scales NG) by GPTQ (Frantar et al. 2023, arXiv:2210.17323): inputs are rounded one after another, and each one's
    error is made up for by those that are still to come, along the inverse of H.

    Args:
        weight_NK: the weight.
        moments_KK: H, the second moments of its inputs.
        group: inputs that share a scale, which is set when the first of them is rounded.
        bits: of an integer.
        damp: share of H's mean diagonal that is added to it.
    """
    N, K = weight_NK.shape
    W, H = weight_NK.double().clone(), moments_KK.double().clone()
    dead = H.diagonal() == 0
    H.diagonal()[dead] = 1.0
    W[:, dead] = 0.0
    H.diagonal().add_(damp * H.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    top = 2 ** (bits - 1) - 1
    q = torch.zeros(N, K, dtype=torch.int8, device=W.device)
    scales = torch.zeros(N, -(-K // group), device=W.device)
    for k in range(K):
        g, within = divmod(k, group)
        if within == 0:
            scales[:, g] = group_scales(W[:, k : k + group], group, bits)[:, 0]
        s = scales[:, g].double()
        rounded = (W[:, k] / s).round().clamp_(-top - 1, top)
        q[:, k] = rounded.to(torch.int8)
        error = (W[:, k] - rounded * s) / upper[k, k]
        W[:, k + 1 :] -= error[:, None] * upper[k, k + 1 :]
    return q, scales


def awq_scales(weight_NK: Tensor, moments_KK: Tensor, group: int, *, bits: int = 4, tries: int = 20) -> Tensor:
    """Return s, K: the weight of an input is multiplied by it before rounding, and the input divided (AWQ, Lin et al. 2023, arXiv:2306.00978).

    s = rms(x)^a, normalised, with the a of [0, 1) whose rounding has the least error of outputs; a = 0 is rounding to nearest.
    """
    size_K = moments_KK.diagonal().clamp_min(1e-12).sqrt().float()
    best, least = torch.ones_like(size_K), float("inf")
    for i in range(tries):
        s = size_K ** (i / tries)
        s = s / (s.max() * s.min()).sqrt()
        q, scales = quantize_groups(weight_NK * s, group, bits)
        error = output_error(weight_NK, dequantize_groups(q, scales, group) / s, moments_KK)
        if error < least:
            best, least = s, error
    return best
