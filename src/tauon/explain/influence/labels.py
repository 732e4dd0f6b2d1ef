"""Labels sampled from the model's own distribution: the Fisher matrix is an average over them, not over the labels of the data, with which it
would be another matrix, the "empirical Fisher" (Kunstner et al. 2019, arXiv:1905.12558).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.explain.influence.gradients import on_device_of, untouched
from tauon.tasks import Task
from tauon.types import Batch

__all__ = ["sample_labels"]


def sample_labels(model: nn.Module, task: Task, batch: Batch, generator: torch.Generator) -> Batch:
    """Return the batch with targets drawn from what the model predicts, the loss read as a negative log-likelihood.

    Raises `RecipeError` for a task whose loss is not one (CTC, preferences, quantiles), or that is not known here.
    """
    batch = on_device_of(model, batch)
    with untouched(model), torch.no_grad():
        if task.family in ("language-modelling", "masked-language-modelling"):
            return replace(batch, targets=_tokens(model, batch, generator))
        outputs = task.predict(model, batch)
    if task.family == "classification" and batch.targets.ndim == 1:
        drawn = torch.multinomial(outputs["scores"].float().cpu(), 1, generator=generator)[:, 0]
    elif task.family == "multi-label":
        scores = outputs["scores"].float().cpu()
        drawn = (torch.rand(scores.shape, generator=generator) < scores).to(batch.targets.dtype)
    elif task.family == "regression" and getattr(task, "loss_kind", None) == "mse":
        # exp(-(y - mean)^2) is a normal distribution of variance 1/2
        mean = outputs["predictions"].float().cpu()
        drawn = (mean + torch.randn(mean.shape, generator=generator) * 0.5**0.5).view(batch.targets.shape)
    else:
        raise RecipeError(
            f"EK-FAC needs labels sampled from the model, and it is not known how for task {type(task).__name__} with targets of shape "
            f"{tuple(batch.targets.shape)}. Use tracin."
        )
    return replace(batch, targets=drawn.to(batch.targets))


def _tokens(model: Any, batch: Batch, generator: torch.Generator) -> Tensor:
    if not isinstance(getattr(model, "head", None), nn.Linear):
        raise RecipeError(f"EK-FAC needs the logits of {type(model).__name__}, and it has no linear layer `head`. Use tracin.")
    hidden = model(batch.inputs, batch.segments)
    logits = torch.nn.functional.linear(hidden, model.head.weight, model.head.bias).float().cpu()
    drawn = torch.multinomial(logits.flatten(0, -2).softmax(-1), 1, generator=generator).view(batch.targets.shape)
    return torch.where(batch.targets.cpu() >= 0, drawn, batch.targets.cpu()).to(batch.targets.device)
