"""LoRA adapters whose A and B both travel: the mean of the products B A is aggregated, not the product of two means.

The weighted mean of K products of rank R has rank up to K R. The adapter holds its best approximation of rank R (by singular values), written as B' A'
with A' as near as possible to the mean of A: where all A are equal, A' = A and B' is the mean of B, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tauon.federated.updates import Update, weighted_sum

__all__ = ["has_trainable_pairs", "mean_of_products", "nearest_pair"]


def has_trainable_pairs(model: nn.Module) -> bool:
    """Return whether any adapter trains both A and B."""
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    return any(n.removesuffix("lora_a") + "lora_b" in trains for n in trains if n.endswith("lora_a"))


@torch.no_grad()
def mean_of_products(updates: Sequence[Update], sent: Mapping[str, Tensor], *, part: float = 1.0) -> dict[str, Tensor]:
    """Return the combined update: the mean by weight, except for pairs A and B, which become the mean of their product.

    Args:
        updates: of single sites.
        sent: the weights that they started from.
        part: share of the sites in the mean (`Weighting.max_gain`); the rest stays with the weights that were sent.
    """
    total = sum(u.weight for u in updates)
    shares = [part * u.weight / total for u in updates]
    combined = weighted_sum([u.tensors for u in updates], shares)
    for name in sent:
        layer, _, leaf = name.rpartition(".")
        other = f"{layer}.lora_b"
        if leaf != "lora_a" or other not in sent:
            continue
        a, b = (sent[n].double() for n in (name, other))
        pairs = [(a + u.tensors[name].double(), b + u.tensors[other].double()) for u in updates]
        kept = [] if part == 1 else [(a, b)]
        new_a, new_b = nearest_pair([*pairs, *kept], [*shares, *(1 - part for _ in kept)])
        combined[name], combined[other] = (new_a - a).to(combined[name].dtype), (new_b - b).to(combined[other].dtype)
    return combined


def nearest_pair(pairs: Sequence[tuple[Tensor, Tensor]], shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return (A' RI, B' OR) such that B' A' is the best approximation of rank R of the sum of share * B A, in the Frobenius norm, and A' is near the
    mean of A. `pairs`: (A RI, B OR) of each site, float64.
    """
    rank = pairs[0][0].shape[0]
    mean_a = sum((s * a for (a, _), s in zip(pairs, shares, strict=True)), torch.zeros_like(pairs[0][0]))
    stacked_a = torch.cat([a for a, _ in pairs])
    stacked_b = torch.cat([s * b for (_, b), s in zip(pairs, shares, strict=True)], 1)
    q_b, r_b = torch.linalg.qr(stacked_b)  # of K R columns: cheap, the product O I is never formed
    q_a, r_a = torch.linalg.qr(stacked_a.t())
    u, s, vt = torch.linalg.svd(r_b @ r_a.t(), full_matrices=False)
    basis = torch.linalg.qr(mean_a.t())[0] if s[0] == 0 else q_a @ vt[:rank].t()  # I R: orthonormal
    left = q_b @ (u[:, :rank] * s[:rank])  # O R
    if s[0] == 0 or float(s[min(rank, len(s)) - 1]) < 1e-12 * float(s[0]):
        return _pair_of_low_rank(mean_a, left, basis)
    turn = mean_a @ basis  # R R: the mean of A within the row space of the product
    if float(torch.linalg.cond(turn)) > 1e6:
        root = s[:rank].sqrt()
        return root[:, None] * basis.t(), left / root
    return turn @ basis.t(), torch.linalg.solve(turn.t(), left.t()).t()


def _pair_of_low_rank(mean_a: Tensor, left: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """A product of rank below R keeps the mean of A, so that directions which B does not use yet stay trainable: B' solves B' A' = product."""
    product_on_a = left @ (basis.t() @ torch.linalg.pinv(mean_a))
    rest = left @ basis.t() - product_on_a @ mean_a
    if float(rest.norm()) <= 1e-9 * float(left.norm()) + 1e-300:
        return mean_a, product_on_a
    rank = mean_a.shape[0]
    u, s, vt = torch.linalg.svd(left, full_matrices=False)
    used = int((s > 1e-12 * s[0]).sum())
    inside = vt[:used] @ basis.t()  # orthonormal rows that the product uses
    free = mean_a - mean_a @ inside.t() @ inside
    extra = torch.linalg.svd(free, full_matrices=False)[2][: rank - used]
    scale = mean_a.norm() / rank**0.5
    a = torch.cat([inside, extra]) * scale
    b = torch.cat([u[:, :used] * s[:used], torch.zeros(left.shape[0], rank - used, dtype=left.dtype)], 1) / scale
    return a, b
