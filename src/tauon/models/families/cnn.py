"""A small convolutional network for small images: stages of 3x3 convolutions, halving the image, doubling the channels.

Normalises by GroupNorm, never BatchNorm: no example sees another, so the same model trains privately and answers the
same alone as in a batch. Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Fraction, register
from tauon.errors import Problem, RecipeError
from tauon.models.base import Model, ModelConfig, Size
from tauon.models.families.mlp import array_sizes
from tauon.models.norm import StandardisedConv2d, tempered_sigmoid
from tauon.models.randomness import dropout
from tauon.types import DataSpec

__all__ = ["CNN", "CNNConfig"]


@register("cnn")
class CNNConfig(ModelConfig):
    """Stages of convolution, GroupNorm, ReLU, max-pool; then global average and a linear head."""

    channels: tuple[Size, ...] = (16, 32, 64)
    """Channels of each stage; the image is halved after each."""
    convs_per_stage: Count = Field(1, ge=1, le=1000)
    """3x3 convolutions in a stage."""
    groups: Size = 8
    """Groups of each GroupNorm; must divide every stage's channels."""
    dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of pooled features dropped in training."""
    activation: Literal["relu", "tanh", "tempered-sigmoid"] = "relu"
    """Behind each norm. Bounded ones keep the gradients of private training in bounds (Papernot et al. 2021, arXiv:2007.14191)."""
    temper: tuple[float, float, float] = (2.0, 2.0, 1.0)
    """tempered-sigmoid: (s, T, o) of s / (1 + exp(-T x)) - o; (2, 2, 1) is tanh."""
    standardise: bool = False
    """Give the weights behind each output of a convolution mean 0 and variance 1 / fan-in: helps private training with group norm (De et al.
    2022, arXiv:2204.13650)."""
    input_shape: tuple[Size, Size, Size] | None = None
    """(channels, height, width) of an image. Left out: the data's."""
    outputs: Size | None = None
    """Classes or targets. Left out: the data's."""

    def problems(self) -> Iterator[tuple[str, str]]:
        groups = self.raw_value("groups")
        for i, c in enumerate(self.raw_value("channels")):
            if c % groups:
                yield f"channels.{i}", f"{c} is not divisible into groups={groups}. Take a multiple, or lower groups."
        s, T, _ = self.raw_value("temper")
        if self.raw_value("temper") != (2.0, 2.0, 1.0) and self.raw_value("activation") != "tempered-sigmoid":
            yield "temper", f"is for activation: tempered-sigmoid, and it is {self.raw_value('activation')}. Drop one of the two."
        if s <= 0 or T <= 0:
            yield "temper", f"s {s:g} and T {T:g} must be above 0."
        if not self.raw_value("channels"):
            yield "channels", "is empty; give one number of channels a stage, [16, 32, 64] say."

    def resolve(self, spec: DataSpec) -> Self:
        shape, outputs = array_sizes(self, spec)
        if self.input_shape not in (None, shape):
            raise RecipeError([Problem("model.input_shape", f"{self.input_shape}, but an example here is {shape}. Leave it out.")])
        if self.outputs not in (None, outputs):
            raise RecipeError([Problem("model.outputs", f"{self.outputs}, but the data has {outputs}. Leave it out.")])
        if len(shape) != 3:
            raise RecipeError(
                [Problem("model.kind", f"cnn needs images (channels, height, width), and an example here is {shape}. Take mlp.")]
            )
        halvings = len(self.channels)
        if min(shape[1:]) < 2**halvings:
            raise RecipeError([Problem("model.channels", f"{halvings} stages halve {shape[1]}x{shape[2]} to nothing. Give fewer stages.")])
        return self.model_copy(update={"input_shape": shape, "outputs": outputs})

    def build(self) -> CNN:
        if self.input_shape is None or self.outputs is None:
            raise RecipeError([Problem("model", "input_shape and outputs are not known yet: resolve the config against the data first.")])
        temper = {"relu": None, "tanh": (2.0, 2.0, 1.0)}.get(self.activation) if self.activation != "tempered-sigmoid" else self.temper
        return CNN(
            self.input_shape, self.channels, self.convs_per_stage, self.groups, self.outputs, self.dropout, temper=temper,
            standardise=self.standardise,
        )  # fmt: skip


class CNN(Model):
    """BCHW -> B outputs."""

    modules_to_save = ("head.*",)
    shard_plan = {"convs.*": "replicate", "norms.*": "replicate", "head.*": "replicate"}  # noqa: RUF012 - plain data

    def __init__(
        self, shape: tuple[int, int, int], channels: tuple[int, ...], convs_per_stage: int, groups: int, outputs: int, dropout: float, *,
        temper: tuple[float, float, float] | None = None, standardise: bool = False,
    ) -> None:  # fmt: skip
        """`temper`: (s, T, o) of a tempered sigmoid; None: ReLU."""
        super().__init__()
        widths = [c for c in channels for _ in range(convs_per_stage)]
        kind = StandardisedConv2d if standardise else nn.Conv2d
        self.convs = nn.ModuleList(kind(a, b, 3, padding=1, bias=False) for a, b in zip([shape[0], *widths], widths, strict=False))
        self.norms = nn.ModuleList(nn.GroupNorm(groups, b) for b in widths)
        self.head = nn.Linear(widths[-1], outputs)
        self.convs_per_stage, self.dropout, self.image = convs_per_stage, dropout, shape
        self.temper = temper

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x_BCHW = F.relu(norm(conv(x_BCHW))) if self.temper is None else tempered_sigmoid(norm(conv(x_BCHW)), *self.temper)
            if (i + 1) % self.convs_per_stage == 0:
                x_BCHW = F.max_pool2d(x_BCHW, 2)
        out: Tensor = self.head(dropout(x_BCHW.mean((2, 3)), self.dropout, self.training))
        return out

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """He initialisation over fan-in (arXiv:1502.01852); the head at zero."""
        if p.ndim == 4:
            nn.init.normal_(p, 0.0, (2 / p[0].numel()) ** 0.5, generator=g)
        elif name.startswith("head."):
            nn.init.zeros_(p)
        else:
            super().init_parameter(name, p, g)

    def map_layer(self) -> str | None:
        return f"norms.{len(self.norms) - 1}"

    def flops_per_example(self, spec: DataSpec) -> float:
        """6 for each weight times the pixels that it visits."""
        total = 6.0 * self.head.weight.numel()
        for i, conv in enumerate(self.layers):
            total += 6.0 * conv.weight.numel() * self._pixels(i)
        return total

    def activations_per_example(self, spec: DataSpec) -> float:
        """Four images a convolution: its output, normalised, rectified, pooled."""
        return sum(4.0 * conv.out_channels * self._pixels(i) for i, conv in enumerate(self.layers))

    @property
    def layers(self) -> list[nn.Conv2d]:
        """The convolutions, in order."""
        return cast(list[nn.Conv2d], list(self.convs))

    def _pixels(self, layer: int) -> int:
        """Pixels that convolution `layer` visits."""
        halved = layer // self.convs_per_stage
        return (self.image[1] >> halved) * (self.image[2] >> halved)
