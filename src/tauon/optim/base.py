"""What every optimizer shares: its learning rate, schedule, clipping; which parameters decay. Knows no model by name."""

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
"""How much of a running mean is kept from step to step."""


class AveragedWeights(Protocol):
    """Weights that stand for a model which holds others while it trains: they are validated, and saved as the model's."""

    @property
    def anchor(self) -> Mapping[str, Tensor]:
        """By parameter name."""
        ...

    def swapped_in(self) -> AbstractContextManager[None]:
        """Inside, the model holds them."""
        ...


class OptimConfig(Registered, family="optim", default="adamw"):
    """An optimizer with its learning-rate schedule and gradient clipping."""

    default_lr: ClassVar[float] = 1e-3
    elementwise: ClassVar[bool] = False
    """Each weight moves by its own gradient and state alone, so that a tensor may be cut anywhere."""
    full_batch: ClassVar[bool] = False
    """Every step takes the whole training set."""
    for_noise: ClassVar[bool] = False
    """Only private training gives it what it needs to know, the noise in its gradients."""

    lr: float | None = Field(None, gt=0)
    """Peak learning rate, reached after the warm-up. Left out: the optimizer's usual one."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of weights a step, times the learning rate where the optimizer decouples it; matrices and convolutions only, not
    embeddings, biases and norms."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """The learning rate of each layer is this times that of the layer behind it; 0.75 is usual when a whole encoder is fine-tuned.
    Left out: the same for all."""
    lr_scale: dict[str, float] = Field(default_factory=dict)
    """Learning rates of parameters by name, as a factor: {"embed.*": 0.1, "head.*": 10}; of several patterns that match, the last
    counts."""
    schedule: ScheduleConfig = Cosine()
    """How the learning rate goes from step to step."""
    clip_norm: float | None = Field(None, gt=0)
    """Scale the whole gradient so that its L2 norm is at most this (Pascanu et al. 2013). Left out: no clipping by norm."""
    clip_value: float | None = Field(None, gt=0)
    """Clamp each element of the gradient to [-c, c], before any other clipping. Left out: no clipping by value."""
    clip_layer: float | None = Field(None, gt=0)
    """Scale each parameter's gradient by itself, so that its L2 norm is at most this. Left out: no clipping by layer."""
    clip_adaptive: float | None = Field(None, gt=0)
    """Scale each unit's gradient down to this share of the norm of its weights (AGC, arXiv:2102.06171; 0.01 is usual). Left out: none."""

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        return self.lr if self.lr is not None else self.default_lr

    def problems(self) -> Iterator[tuple[str, str]]:
        for pattern, factor in self.raw_value("lr_scale").items():
            if not factor > 0:
                yield "lr_scale", f"{pattern!r} has factor {factor:g}. Give one above 0; what must not train at all is train.freeze."

    def refuse_model(self, model: nn.Module) -> None:
        """Raise `RecipeError` where a setting names what the model does not have. `model` is the whole one: a pipeline's stage lacks a lot."""
        names = [n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]  # a tied weight by either name
        for pattern in self.lr_scale:
            if not any(fnmatch.fnmatchcase(n, pattern) for n in names):
                message = f"{pattern!r} names no parameter that trains. There are: {', '.join(names[:8])}."
                raise RecipeError([Problem("optim.lr_scale", message)])

    def build(self, model: nn.Module) -> Optimizer:
        """The optimizer over the model's trainable parameters. Each group has `peak_lr`; the loop sets `lr` from it."""
        raise NotImplementedError

    def averaged_weights(self, model: nn.Module, optimizer: Optimizer) -> AveragedWeights | None:
        """What is to be validated and saved instead of the weights that train; None: those themselves."""
        return None


def refuse_pieces(model: nn.Module, config: OptimConfig, why: str) -> None:
    """Raise `RecipeError` where the model's weights lie in pieces over processes: this optimizer cannot work on pieces."""
    if any(is_dtensor(p) for p in model.parameters()):
        asked = (
            f"{config.kind_} {why}, and this layout (shard, tensor) leaves each process a piece. Take adamw or muon, or parallel.replicate."
        )
        raise RecipeError([Problem("optim.kind", asked)])


def decay_groups(named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups, with and without weight decay, in a fixed order; empty groups are left out.

    Biases, norms (one dimension) and embeddings do not decay.
    """
    named = [(n, p) for n, p in named if p.requires_grad]
    decays = {n for n, p in named if p.ndim >= 2 and not n.startswith(("embed.", "positions."))}
    groups = [
        {"params": [p for n, p in named if n in decays], "weight_decay": weight_decay},
        {"params": [p for n, p in named if n not in decays], "weight_decay": 0.0},
    ]
    return [g | {"lr": lr, "peak_lr": lr} for g in groups if g["params"]]
