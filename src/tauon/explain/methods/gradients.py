"""Methods of one gradient: saliency (Simonyan et al. 2013, arXiv:1312.6034) and gradient times input (Shrikumar et al. 2016, arXiv:1605.01713)."""

from __future__ import annotations

import torch
from torch import Tensor

from tauon.explain.base import Attribution, Cases, Work, attribution_method, gradients_of, untouched

__all__ = ["gradient_times_input", "saliency"]


@attribution_method("saliency", "Saliency", needs="gradients", source="arXiv:1312.6034")
def saliency(cases: Cases, work: Work) -> Attribution:
    """Return |d score / d input|, and for a feature of several numbers their sum.

    >>> from torch import nn
    >>> model = nn.Linear(3, 2)
    >>> x = torch.zeros(1, 3)
    >>> cases = Cases(model, x, lambda x, rows: model(x), torch.tensor([1]), torch.zeros(1, 3), torch.arange(3), (3,))
    >>> torch.equal(saliency(cases, Work()).values[0], model.weight[1].abs())
    True
    """
    scores, gradient = _plain_gradient(cases, work)
    raw = gradient.abs_()
    return Attribution("saliency", cases.per_feature(raw), scores, signed=False, raw=raw)


@attribution_method("gradient_times_input", "Gradient x input", needs="gradients", source="arXiv:1605.01713")
def gradient_times_input(cases: Cases, work: Work) -> Attribution:
    """Return the gradient times the input's difference from 0, summed over the numbers of a feature."""
    scores, gradient = _plain_gradient(cases, work)
    raw = gradient.mul_(cases.inputs)
    return Attribution("gradient_times_input", cases.per_feature(raw), scores, raw=raw)


def _plain_gradient(cases: Cases, work: Work) -> tuple[Tensor, Tensor]:
    scores, gradient = torch.zeros(len(cases), device=cases.inputs.device), torch.zeros_like(cases.inputs)
    with untouched(cases.model):
        for part in work.chunks(len(cases)):
            rows = torch.arange(part.start, part.stop, device=scores.device)
            scores[part], gradient[part] = gradients_of(cases, cases.inputs[part], rows)
    return scores, gradient
