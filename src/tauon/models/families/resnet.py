"""Residual networks (He et al. 2015, arXiv:1512.03385): 18, 34 and 50 layers as torchvision shapes and names them, and the thin ones
for CIFAR, 20, 32 and 56 (section 4.2 of the paper), as their best known published weights are named.

ResNet-50 is the usual variant, with a block's stride in its 3x3 convolution ("v1.5"). The thin ones shorten by option A: every second
pixel, and zeros for the new channels, no weights. `stem: small` is a 3x3 convolution of stride 1 without max-pool, for images of 28
to 64 pixels. `published_resnet` maps published files to these names. Does not depend on losses or tasks.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Fraction, register
from tauon.errors import Problem, RecipeError
from tauon.models.base import Model, ModelConfig, Size
from tauon.models.families.mlp import array_sizes
from tauon.models.norm import BatchNorm, drop_path, norm_of
from tauon.models.randomness import dropout
from tauon.types import DataSpec

__all__ = ["ResNet", "ResNetConfig", "published_resnet"]

SMALL = 64
"""Pixels of the shorter side up to which `stem: auto` is small."""


class ResNetConfig(ModelConfig):
    """What all residual networks share."""

    width: Size = 64
    """Channels of the first stage; each later one has twice as many."""
    norm: Literal["batch", "group"] = "batch"
    """batch: by statistics of the batch (fastest to learn); group: by groups of channels of one example, for privacy, for batches of a few
    examples, and where processes train on their own."""
    groups: Size = 32
    """With norm group: groups of each norm; must divide the first stage's channels."""
    dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of pooled features dropped in training."""
    drop_path: Fraction = Field(0.0, ge=0, lt=1)
    """Stochastic depth: share of examples that skip the last block; it rises evenly from 0 at the first (arXiv:1603.09382)."""
    zero_init: bool = True
    """Start the last norm of each block at 0, so that blocks begin as identities (arXiv:1706.02677 section 5.1)."""
    input_shape: tuple[Size, Size, Size] | None = None
    """(channels, height, width) of an image. Left out: the data's."""
    outputs: Size | None = None
    """Classes or targets. Left out: the data's."""

    def resolve(self, spec: DataSpec) -> Self:
        shape, outputs = array_sizes(self, spec)
        if len(shape) != 3:
            said = f"{self.kind_} needs images (channels, height, width), and an example here is {shape}. Take mlp."
            raise RecipeError([Problem("model.kind", said)])
        if self.input_shape not in (None, shape):
            raise RecipeError([Problem("model.input_shape", f"{self.input_shape}, but an example here is {shape}. Leave it out.")])
        if self.outputs not in (None, outputs):
            raise RecipeError([Problem("model.outputs", f"{self.outputs}, but the data has {outputs}. Leave it out.")])
        return self.model_copy(update={"input_shape": shape, "outputs": outputs})

    def _sizes(self) -> tuple[tuple[int, int, int], int]:
        if self.input_shape is None or self.outputs is None:
            raise RecipeError([Problem("model", "input_shape and outputs are not known yet: resolve the config against the data first.")])
        return self.input_shape, self.outputs

    def _net(self, blocks: tuple[int, ...], **how: Any) -> ResNet:
        return ResNet(self, blocks, **how)

    def convert_state_dict(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        return published_resnet(tensors)

    def problems(self) -> Iterator[tuple[str, str]]:
        groups, channels = self.raw_value("groups"), self.raw_value("width")
        if self.raw_value("norm") == "group" and channels % groups:
            yield "groups", f"{groups} does not divide the first stage's {channels} channels. Take a divisor."


class _Wide(ResNetConfig):
    """The networks of ImageNet: four stages."""

    stem: Literal["auto", "imagenet", "small"] = "auto"
    """imagenet: 7x7 convolution of stride 2, then max-pool; small: 3x3 of stride 1, for images of 28 to 64 pixels. auto: small up to 64."""

    def resolve(self, spec: DataSpec) -> Self:
        known = super().resolve(spec)
        if known.stem != "auto":
            return known
        assert known.input_shape is not None
        return known.model_copy(update={"stem": "small" if min(known.input_shape[1:]) <= SMALL else "imagenet"})

    def _wide(self, blocks: tuple[int, ...], *, bottleneck: bool) -> ResNet:
        if self.stem == "auto":
            raise RecipeError([Problem("model.stem", "auto is settled by the data's size: resolve the config first, or set it.")])
        stem: Literal["imagenet", "small"] = self.stem
        return self._net(blocks, stem=stem, bottleneck=bottleneck)


@register("resnet18")
class ResNet18Config(_Wide):
    """ResNet-18: two blocks of two 3x3 convolutions in each of four stages; 11,689,512 parameters at 1,000 classes."""

    def build(self) -> ResNet:
        return self._wide((2, 2, 2, 2), bottleneck=False)


@register("resnet34")
class ResNet34Config(_Wide):
    """ResNet-34: 3, 4, 6 and 3 blocks of two 3x3 convolutions; 21,797,672 parameters at 1,000 classes."""

    def build(self) -> ResNet:
        return self._wide((3, 4, 6, 3), bottleneck=False)


@register("resnet50")
class ResNet50Config(_Wide):
    """ResNet-50: 3, 4, 6 and 3 bottleneck blocks (1x1, 3x3, 1x1), stride in the 3x3; 25,557,032 parameters at 1,000 classes."""

    def build(self) -> ResNet:
        return self._wide((3, 4, 6, 3), bottleneck=True)


class _Thin(ResNetConfig):
    """The networks of CIFAR: 6 n + 2 layers in three stages."""

    width: Size = 16
    """Channels of the first stage; each later one has twice as many."""
    groups: Size = 8
    """With norm group: groups of each norm; must divide the first stage's channels."""

    def _thin(self, n: int) -> ResNet:
        return self._net((n, n, n), stem="small", bottleneck=False, option_a=True)


@register("resnet20")
class ResNet20Config(_Thin):
    """ResNet-20 of CIFAR: three stages of three blocks; 269,722 parameters at 10 classes."""

    def build(self) -> ResNet:
        return self._thin(3)


@register("resnet32")
class ResNet32Config(_Thin):
    """ResNet-32 of CIFAR: three stages of five blocks; 464,154 parameters at 10 classes."""

    def build(self) -> ResNet:
        return self._thin(5)


@register("resnet56")
class ResNet56Config(_Thin):
    """ResNet-56 of CIFAR: three stages of nine blocks; 853,018 parameters at 10 classes."""

    def build(self) -> ResNet:
        return self._thin(9)


class _OptionA(nn.Module):
    """Every second pixel, and zeros on both sides of the old channels: a shortcut without weights."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = more // 2, more - more // 2, stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # As a pool of one pixel: the gradient of a slice is not channels-last, and slows everything before it
        return F.pad(F.avg_pool2d(x_BCHW, 1, self.stride), (0, 0, 0, 0, self.before, self.after))


class _Block(nn.Module):
    """relu(shortcut(x) + branch(x)): convolutions with a norm behind each, and ReLU between them."""

    def __init__(
        self, inside: int, width: int, stride: int, *, groups: int | None, bottleneck: bool, option_a: bool, drop_path: float
    ) -> None:
        super().__init__()
        outside = width * 4 if bottleneck else width
        self.conv1 = nn.Conv2d(inside, width, 1 if bottleneck else 3, 1 if bottleneck else stride, 0 if bottleneck else 1, bias=False)
        self.bn1 = norm_of(width, groups)
        self.conv2 = nn.Conv2d(width, width, 3, stride if bottleneck else 1, 1, bias=False)
        self.bn2 = norm_of(width, groups)
        self.conv3 = nn.Conv2d(width, outside, 1, bias=False) if bottleneck else None
        self.bn3 = norm_of(outside, groups) if bottleneck else None
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            if option_a:
                self.downsample = _OptionA(outside - inside, stride)
            else:
                self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), norm_of(outside, groups))
        self.drop_path = drop_path

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.conv3 is not None and self.bn3 is not None:
            y = self.bn3(self.conv3(F.relu(y, inplace=True)))
        short = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return F.relu(drop_path(y, self.drop_path, self.training).add_(short), inplace=True)  # no norm needs its output again


class ResNet(Model):
    """BCHW -> B outputs. Parameters are named as torchvision names them."""

    modules_to_save = ("fc.*",)
    compiling_pays = False  # convolutions are library calls, and blocks of many shapes are compiled many times (docs/experiments.md)
    shard_plan = {  # noqa: RUF012 - plain data, read only
        "*conv*": "replicate",
        "*bn*": "replicate",
        "*downsample*": "replicate",
        "fc.*": "replicate",
    }

    def __init__(
        self, config: ResNetConfig, blocks: tuple[int, ...], *, stem: Literal["imagenet", "small"], bottleneck: bool, option_a: bool = False
    ) -> None:
        """`config`: resolved; `blocks`: how many each stage has, whose channels double from stage to stage."""
        super().__init__()
        shape, outputs = config._sizes()
        widths = tuple(config.width << i for i in range(len(blocks)))
        groups = config.groups if config.norm == "group" else None
        drop_path = config.drop_path
        self.image, self.stem, self.bottleneck = shape, stem, bottleneck
        self.dropout, self.zero_init = config.dropout, config.zero_init
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(shape[0], widths[0], 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False)
        self.bn1 = norm_of(widths[0], groups)
        inside, done, total = widths[0], 0, sum(blocks)
        self.stages: list[str] = []
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            stage = []
            for b in range(count):
                share = drop_path * done / max(1, total - 1)
                stride = 2 if i and b == 0 else 1
                stage.append(_Block(inside, width, stride, groups=groups, bottleneck=bottleneck, option_a=option_a, drop_path=share))
                inside, done = width * 4 if bottleneck else width, done + 1
            self.stages.append(f"layer{i + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*stage))
        self.fc = nn.Linear(inside, outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = F.relu(self.bn1(self.conv1(x_BCHW.contiguous(memory_format=torch.channels_last))), inplace=True)
        if self.stem == "imagenet":
            x_BCHW = F.max_pool2d(x_BCHW, 3, 2, 1)
        for block in self.blocks_to_compile():
            x_BCHW = block(x_BCHW)
        out: Tensor = self.fc(dropout(x_BCHW.mean((2, 3)), self.dropout, self.training))
        return out

    def map_layer(self) -> str | None:
        return f"{self.stages[-1]}.{len(cast(nn.Sequential, self.get_submodule(self.stages[-1]))) - 1}"

    def blocks_to_compile(self) -> list[nn.Module]:
        return [block for name in self.stages for block in cast(nn.Sequential, self.get_submodule(name))]

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """He initialisation over fan-out (torchvision's); norms at 1, the last of a block at 0 where `zero_init`; the head at zero."""
        if p.ndim == 4:
            nn.init.normal_(p, 0.0, math.sqrt(2 / (p.shape[0] * p.shape[2] * p.shape[3])), generator=g)
        elif name.startswith("fc.") or (self.zero_init and name.startswith("layer") and name.endswith(self._last_norm)):
            nn.init.zeros_(p)
        else:
            super().init_parameter(name, p, g)

    @property
    def _last_norm(self) -> str:
        return ".bn3.weight" if self.bottleneck else ".bn2.weight"

    def init_buffers(self) -> None:
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.start()

    def flops_per_example(self, spec: DataSpec) -> float:
        """6 for each weight times the pixels that it visits."""
        return 6.0 * (sum(conv.weight.numel() * pixels for conv, pixels in self._visits()) + self.fc.weight.numel())

    def activations_per_example(self, spec: DataSpec) -> float:
        """Three images a convolution: its output, normalised, rectified."""
        return sum(3.0 * conv.out_channels * pixels for conv, pixels in self._visits())

    def _visits(self) -> Iterator[tuple[nn.Conv2d, int]]:
        """Each convolution, and the pixels of what it makes."""
        h, w = self.image[1:]
        if self.stem == "imagenet":
            h, w = -(-h // 2), -(-w // 2)
        yield self.conv1, h * w
        if self.stem == "imagenet":
            h, w = -(-h // 2), -(-w // 2)
        for block in cast(list[_Block], self.blocks_to_compile()):
            before = h * w
            if 2 in (block.conv1.stride[0], block.conv2.stride[0]):
                h, w = -(-h // 2), -(-w // 2)
            yield block.conv1, before if self.bottleneck else h * w
            yield block.conv2, h * w
            if block.conv3 is not None:
                yield block.conv3, h * w
            if isinstance(block.downsample, nn.Sequential):
                yield cast(nn.Conv2d, block.downsample[0]), h * w


def published_resnet(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Weights under the names used here, from torchvision's files (the same but for a step counter) or from those of the CIFAR networks
    (github.com/akamaster/pytorch_resnet_cifar10: behind `module.`, the head called `linear`, shortcuts without weights).

    Read such a file with `torch.load(path, weights_only=True)["state_dict"]` or safetensors; put the result in with `load_weights`, which
    names whatever is missing, left over or of another shape.
    """
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix("module.")
        if plain.endswith("num_batches_tracked"):
            continue
        found["fc." + plain.removeprefix("linear.") if plain.startswith("linear.") else plain] = tensor
    return found
