"""What differs between a compressed model and the model that its config builds, as JSON, and the way back.

A layer is described by its kind and sizes (`KINDS`); everything else is the config's. So a file of numbers and a JSON file hold the model whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tauon.compress.low_rank_layer import LowRankLinear
from tauon.compress.quantized.half import Bf16Conv2d, Bf16Embedding, Bf16Linear
from tauon.compress.quantized.layers import Int4Linear, Int8Conv2d, Int8Embedding, Int8Linear
from tauon.errors import CheckpointError, DataError
from tauon.models import BatchNorm, ModelConfig

__all__ = ["KINDS", "differences", "replace_layers", "set_module"]


def _pairs(**how: Any) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in how.items()}


def _conv_spec(m: nn.Conv2d) -> dict[str, Any]:
    return {
        "in_channels": m.in_channels, "out_channels": m.out_channels, "kernel_size": list(m.kernel_size), "stride": list(m.stride),
        "padding": m.padding if isinstance(m.padding, str) else list(m.padding), "dilation": list(m.dilation), "groups": m.groups,
        "bias": m.bias is not None,
    }  # fmt: skip


def _own(cls: type[Any]) -> tuple[type[nn.Module], Callable[[Any], dict[str, Any]], Callable[..., nn.Module]]:
    return cls, lambda m: dict(m.spec()), lambda **how: cls(**_pairs(**how))  # type: ignore[no-any-return]


KINDS: dict[str, tuple[type[nn.Module], Callable[[Any], dict[str, Any]], Callable[..., nn.Module]]] = {
    "linear": (
        nn.Linear,
        lambda m: {"in_features": m.in_features, "out_features": m.out_features, "bias": m.bias is not None},
        lambda **how: nn.Linear(**how),
    ),
    "conv2d": (nn.Conv2d, _conv_spec, lambda **how: nn.Conv2d(**_pairs(**how))),
    "embedding": (
        nn.Embedding,
        lambda m: {"num_embeddings": m.num_embeddings, "embedding_dim": m.embedding_dim},
        lambda **how: nn.Embedding(**how),
    ),
    "batch_norm": (
        BatchNorm,
        lambda m: {"channels": m.weight.numel(), "momentum": m.momentum, "eps": m.eps},
        lambda **how: BatchNorm(**how),
    ),
    "identity": (nn.Identity, lambda m: {}, lambda: nn.Identity()),
    "low_rank_linear": _own(LowRankLinear),
    "int8_linear": _own(Int8Linear),
    "int8_conv2d": _own(Int8Conv2d),
    "int8_embedding": _own(Int8Embedding),
    "int4_linear": _own(Int4Linear),
    "bf16_linear": _own(Bf16Linear),
    "bf16_conv2d": _own(Bf16Conv2d),
    "bf16_embedding": _own(Bf16Embedding),
}
"""Kind to (type, its sizes as JSON, how to make one of them without weights)."""
_KIND_OF = {cls: kind for kind, (cls, _, _) in KINDS.items()}


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module of this name by `module`."""
    owner, _, leaf = name.rpartition(".")
    parent = model.get_submodule(owner)
    setattr(parent, leaf, module)


def differences(model: nn.Module, config: ModelConfig) -> list[dict[str, Any]]:
    """Return the layers of `model` that its config would build otherwise: [{name, kind, sizes...}], parents first.

    Raises `DataError` for a module that differs and is of no kind that can be made again.
    """
    return list(_differences(model, config.build_on_meta(), ""))


def _differences(model: nn.Module, skeleton: nn.Module, at: str) -> Iterator[dict[str, Any]]:
    kind = _KIND_OF.get(type(model))
    if kind is None and type(model) is not type(skeleton):
        raise DataError(f"{at or 'the model'}: {type(model).__name__} instead of {type(skeleton).__name__} cannot be saved")
    if kind is not None:
        _, sizes, make = KINDS[kind]
        if type(skeleton) is not type(model) or sizes(skeleton) != sizes(model):
            yield {"name": at, "kind": kind, **sizes(model)}
            with torch.device("meta"):
                skeleton = make(**sizes(model))
    ours, theirs = dict(model.named_children()), dict(skeleton.named_children())
    if ours.keys() != theirs.keys():
        raise DataError(f"{at or 'the model'}: parts {sorted(ours)} instead of {sorted(theirs)} cannot be saved; change the config instead")
    for name, child in ours.items():
        yield from _differences(child, theirs[name], f"{at}.{name}" if at else name)


def replace_layers(model: nn.Module, layers: list[Mapping[str, Any]]) -> None:
    """Make the layers that `differences` described, without weights, in place. Raises `CheckpointError` for a description that is wrong."""
    for layer in layers:
        how = {k: v for k, v in layer.items() if k not in ("name", "kind")}
        try:
            _, _, make = KINDS[layer["kind"]]
            model.get_submodule(layer["name"])
            with torch.device("meta"):
                set_module(model, layer["name"], make(**how))
        except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as err:
            raise CheckpointError(f"layer {dict(layer)}: cannot be made ({type(err).__name__}: {err})") from None
