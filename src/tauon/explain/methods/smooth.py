"""Gradients averaged over random neighbours: SmoothGrad (Smilkov et al. 2017, arXiv:1706.03825) and GradientSHAP (Lundberg & Lee 2017,
arXiv:1705.07874, in the form of Captum and shap: expected gradients, Erion et al. 2021, arXiv:1906.10670).

Sample s draws the same numbers for every example: an explanation does not depend on which other examples are explained with it, nor on how
many rows are computed at once. Shapes as in `base.py`; S samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from tauon.errors import DataError
from tauon.explain.base import Attribution, Cases, Work, attribution_method, gradients_of, scores_of, untouched

__all__ = ["gradient_shap", "smoothgrad"]


@attribution_method("smoothgrad", "SmoothGrad", needs="gradients", source="arXiv:1706.03825")
def smoothgrad(
    cases: Cases, work: Work, *, samples: int = 50, noise: float = 0.15, of: Literal["saliency", "gradient_times_input"] = "saliency"
) -> Attribution:
    """Return the mean of saliency, or of gradient times input, over noisy copies of each example.

    Args:
        cases: the examples.
        work: how to compute.
        samples: copies of each example.
        noise: standard deviation of the noise, as a share of the example's range (largest minus smallest number).
        of: the method that is averaged.
    """
    if of not in ("saliency", "gradient_times_input"):
        raise DataError(f"{of!r} cannot be smoothed. Choose from: saliency, gradient_times_input.")
    flat = cases.inputs.flatten(1)
    deviation = noise * (flat.amax(1) - flat.amin(1)).view(-1, *(1,) * (cases.inputs.ndim - 1))
    raw = torch.zeros_like(cases.inputs)
    with untouched(cases.model):
        for rows, sample in _pairs(cases, work, samples):
            x = _noise(cases, work, sample).mul_(deviation[rows]).add_(cases.inputs[rows])
            grad = gradients_of(cases, x, rows)[1]
            raw.index_add_(0, rows, (grad.abs_() if of == "saliency" else grad.mul_(x)).div_(samples))
        scores = scores_of(cases, cases.inputs, torch.arange(len(cases), device=raw.device), replace(work, progress=None))
    note = f"mean of {samples} copies with noise of {noise:g} of the range"
    return Attribution("smoothgrad", cases.per_feature(raw), scores, signed=of != "saliency", raw=raw, note=note)


@attribution_method("gradient_shap", "GradientSHAP", needs="gradients", source="arXiv:1705.07874")
def gradient_shap(cases: Cases, work: Work, *, samples: int = 64, noise: float = 0.0) -> Attribution:
    """Return the mean of gradient x (input - baseline) at random points between the input and random baselines.

    Baselines are drawn from `cases.background`, or are those of the cases. Facts: `completeness_error`,
    |sum of values - (f(x) - mean f(baseline))| / |f(x) - mean f(baseline)| over the baselines that were drawn; `difference`, its denominator.

    Args:
        cases: the examples.
        work: how to compute.
        samples: points of each example.
        noise: standard deviation of noise on the input, in its own units.
    """
    generator, pool = work.generator(), cases.background
    along = torch.rand(samples, generator=generator).to(cases.inputs)
    drawn = torch.randint(1 if pool is None else len(pool), (samples,), generator=generator).to(cases.inputs.device)
    raw, ends = torch.zeros_like(cases.inputs), torch.zeros(len(cases), device=cases.inputs.device)
    with untouched(cases.model):
        for rows, sample in _pairs(cases, work, samples):
            base = cases.baseline(rows) if pool is None else pool[drawn[sample]]
            x = cases.inputs[rows]
            if noise:
                x = x + _noise(cases, work, sample).mul_(noise)
            grad = gradients_of(cases, torch.lerp(base, x, along[sample].view(-1, *(1,) * (x.ndim - 1))), rows)[1]
            raw.index_add_(0, rows, grad.mul_(x - base).div_(samples))
            with torch.no_grad():
                ends.index_add_(0, rows, cases.score(base, rows).float() / samples)
        scores = scores_of(cases, cases.inputs, torch.arange(len(cases), device=raw.device), replace(work, progress=None))
    values, difference = cases.per_feature(raw), scores - ends
    scale = torch.maximum(difference.abs(), 1e-4 * torch.maximum(scores.abs(), ends.abs())).clamp(min=1e-12)
    facts = {"completeness_error": (values.sum(1) - difference).abs() / scale, "difference": difference}
    note = f"{samples} points, baselines {'of the cases' if pool is None else f'drawn from {len(pool)} training examples'}"
    return Attribution("gradient_shap", values, scores, raw=raw, facts=facts, note=note)


def _pairs(cases: Cases, work: Work, samples: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (rows M, samples M): every example in the first sample, then in the second."""
    if samples < 1:
        raise DataError(f"{samples} samples: at least 1 is needed")
    for part in work.chunks(len(cases) * samples):
        pair = torch.arange(part.start, part.stop, device=cases.inputs.device)
        yield pair % len(cases), pair // len(cases)


def _noise(cases: Cases, work: Work, sample: Tensor) -> Tensor:
    """Return standard normal numbers, M *E: those of a sample do not depend on the others."""
    first, last = int(sample[0]), int(sample[-1])
    shape = cases.inputs.shape[1:]
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(work.seed * 1_000_003 + s)) for s in range(first, last + 1)]
    return torch.stack(drawn).to(cases.inputs)[sample - first]
