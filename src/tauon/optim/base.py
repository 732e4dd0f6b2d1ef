"""Base of all optimizers: learning rate, schedule, clipping, and which parameters decay. Independent of model families."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from tauon.config import Registered
from tauon.distributed import is_dtensor
from tauon.errors import Problem, RecipeError
from tauon.optim.schedule import Cosine, ScheduleConfig

__all__ = ["AveragedWeights", "Decay", "OptimConfig", "decay_groups", "refuse_pieces"]

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Decay of a running mean per step."""


class AveragedWeights(Protocol):
    """Averaged weights that are validated and saved as the model's, instead of the ones being trained."""

    @property
    def anchor(self) -> Mapping[str, Tensor]:
        """By parameter name."""
        ...

    def swapped_in(self) -> AbstractContextManager[None]:
        """Context in which the model has the averaged weights."""
        ...


class OptimConfig(Registered, family="optim", default="adamw"):
    """An optimizer with its learning-rate schedule and gradient clipping."""

    default_lr: ClassVar[float] = 1e-3
    elementwise: ClassVar[bool] = False
    """Whether each weight is updated from its own gradient and state only, so that a tensor may be split anywhere."""
    full_batch: ClassVar[bool] = False
    """Whether every step uses the full training set."""
    for_noise: ClassVar[bool] = False
    """Whether it needs the noise level of the gradients, which only private training sets."""

    lr: float | None = Field(None, gt=0)
    """Peak learning rate, reached after the warm-up. Default: the optimizer's usual one."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay per step, times the learning rate if decoupled; matrices and convolutions only, not
    embeddings, biases and norms."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Learning rate of each layer relative to the next one; 0.75 is usual for fine-tuning a complete encoder. Default: the same for all."""
    lr_scale: dict[str, float] = Field(default_factory=dict)
    """Learning rates of parameters by name, as a factor: {"embed.*": 0.1, "head.*": 10}; of several patterns that match, the last
    counts."""
    schedule: ScheduleConfig = Cosine()
    """Learning-rate schedule."""
    clip_norm: float | None = Field(None, gt=0)
    """Scale the gradient so that its global L2 norm is at most this (Pascanu et al. 2013). Default: no clipping by norm."""
    clip_value: float | None = Field(None, gt=0)
    """Clamp each element of the gradient to [-c, c], before any other clipping. Default: no clipping by value."""
    clip_layer: float | None = Field(None, gt=0)
    """Scale each parameter's gradient separately, so that its L2 norm is at most this. Default: no clipping by layer."""
    clip_adaptive: float | None = Field(None, gt=0)
    """Scale each unit's gradient down to this share of the norm of its weights (AGC, arXiv:2102.06171; 0.01 is usual). Default: none."""

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        return self.lr if self.lr is not None else self.default_lr

    def problems(self) -> Iterator[tuple[str, str]]:
        for pattern, factor in self.raw_value("lr_scale").items():
            if not factor > 0:
                yield "lr_scale", f"{pattern!r} has factor {factor:g}: expected a number above 0. To freeze parameters, set train.freeze."

    def refuse_model(self, model: nn.Module) -> None:
        """Raise `RecipeError` if a setting names something that the model does not have. `model`: the complete one, not a pipeline stage."""
        names = [n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]  # a tied weight by either name
        for pattern in self.lr_scale:
            if not any(fnmatch.fnmatchcase(n, pattern) for n in names):
                message = f"{pattern!r} matches no trainable parameter. The model has: {', '.join(names[:8])}."
                raise RecipeError([Problem("optim.lr_scale", message)])

    def build(self, model: nn.Module) -> Optimizer:
        """The optimizer over the model's trainable parameters. Each group has `peak_lr`; the loop sets `lr` from it."""
        raise NotImplementedError

    def averaged_weights(self, model: nn.Module, optimizer: Optimizer) -> AveragedWeights | None:
        """Averaged weights to validate and save; None: the trained ones."""
        return None


def refuse_pieces(model: nn.Module, config: OptimConfig, why: str) -> None:
    """Raise `RecipeError` if the model's weights are sharded, which this optimizer does not support."""
    if any(is_dtensor(p) for p in model.parameters()):
        asked = f"{config.kind_} {why}, so it does not support sharded weights (parallel.shard, parallel.tensor). Set adamw or muon, or use parallel.replicate."
        raise RecipeError([Problem("optim.kind", asked)])


def decay_groups(named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups, with and without weight decay, in a fixed order, without empty groups.

    Biases, norms (one dimension) and embeddings do not decay.
    """
    named = [(n, p) for n, p in named if p.requires_grad]
    decays = {n for n, p in named if p.ndim >= 2 and not n.startswith(("embed.", "positions."))}
    groups = [
        {"params": [p for n, p in named if n in decays], "weight_decay": weight_decay},
        {"params": [p for n, p in named if n not in decays], "weight_decay": 0.0},
    ]
    return [g | {"lr": lr, "peak_lr": lr} for g in groups if g["params"]]
