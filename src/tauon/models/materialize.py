"""Creates a model: builds it on the meta device, applies parallelism, allocates it, and fills its weights.

Initial weights are a pure function of (seed, parameter name), so that every layout starts from the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tauon.distributed import fill, is_dtensor
from tauon.models.adapters import AdaptedLinear, init_adapter, is_adapter
from tauon.models.adapters.nf4 import Rounded
from tauon.models.base import Model, ModelConfig
from tauon.models.load import initial_weights

__all__ = ["materialize"]


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/init/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def materialize(
    config: ModelConfig, *, seed: int, device: torch.device | str = "cpu", transform: Callable[[Model], None] | None = None,
    weights: Mapping[str, Any] | None = None, half: bool = False,
) -> Model:  # fmt: skip
    """Build the model on the meta device, allocate it on `device`, and fill it: with pretrained weights, or with draws from (seed, parameter name).

    Args:
        config: a resolved config.
        seed: seed of the draws. They do not depend on the layout of processes.
        device: where the parameters are allocated.
        transform: called with the model on the meta device: parallelism cuts it there, and each process then allocates its own part of the same numbers.
        weights: tensors by name, or an object that reads them from a file (`Checkpoint.lazy`). Left out: those of `config.from_`.
        half: keep frozen matrices that have an adapter in bfloat16, for matrix products that round to it anyway.

    Returns:
        The model, in training mode.

    Raises:
        CheckpointError: the weights do not fit the model.

    >>> from tauon.models import LogisticConfig
    >>> from tauon.types import DataSpec
    >>> model = materialize(LogisticConfig().resolve(DataSpec(input_shape=(3,), outputs=2)), seed=0)
    >>> sum(p.numel() for p in model.parameters())
    8
    """
    model = config.build_on_meta()
    if weights is None:
        weights = initial_weights(config, model)
    if half:
        _halve(model)
    rounded = config.adapt is not None and config.adapt.quantize == "nf4"
    if rounded:
        for layer in model.modules():
            if isinstance(layer, AdaptedLinear):
                layer.round_weight()
    if transform is not None:
        transform(model)
    tied = _tied(model)
    _to_empty(model, device)  # gives each name a tensor of its own
    for name, first in tied.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(first))
    _fill_parameters(model, weights, seed, rounded=rounded)
    _fill_buffers(model, weights)
    return model


@torch.no_grad()
def _fill_parameters(model: Model, weights: Mapping[str, Any], seed: int, *, rounded: bool) -> None:
    """Fill each parameter from `weights`, or with draws. `rounded`: the bases of adapters are stored in four bits."""
    for name, p in model.named_parameters():
        if name in weights:
            _take(p, weights[name])
            continue
        start = torch.empty(p.shape, dtype=p.dtype)  # drawn on the CPU: the same numbers for every device
        if is_adapter(name):
            beside = weights.get(f"{name.rpartition('.')[0]}.weight") if name.endswith("magnitude") else None
            beside = Rounded(beside) if beside is not None and rounded else beside
            init_adapter(name, start, _generator(seed, name), None if beside is None else _whole(beside))
        else:
            model.init_parameter(name, start, _generator(seed, name))
        fill(p, start)


def _fill_buffers(model: Model, weights: Mapping[str, Any]) -> None:
    """Fill buffers: zero, then the model's own initialisation, then saved values."""
    with torch.no_grad():
        for b in model.buffers():
            b.zero_()
    names = {module: name for name, module in model.named_modules()}
    for module in model.modules():
        if isinstance(module, Model):
            module.init_buffers()
        if isinstance(module, AdaptedLinear) and module.rounded:
            module.fill_rounded(_whole(weights[f"{names[module]}.weight"]))
    kept = model.state_dict()
    with torch.no_grad():
        for name, b in model.named_buffers():
            if name in kept and name in weights:
                fill(b, weights[name])


def _take(p: nn.Parameter, source: Any) -> None:
    """Copy this process's shard of `source` into `p`. A frozen weight whose file has the right type is memory-mapped, not copied."""
    if not p.requires_grad and p.device.type == "cpu" and not is_dtensor(p) and not isinstance(source, Tensor):
        whole = source.read()
        if whole.dtype == p.dtype:
            p.data = whole
            return
        source = whole
    fill(p, source)


def _whole(source: Any) -> Tensor:
    whole: Tensor = source if isinstance(source, Tensor) else source.read()
    return whole


def _halve(model: Model) -> None:
    """Convert frozen matrices with a LoRA adapter, on the meta device, to bfloat16."""
    for name, p in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        layer = model.get_submodule(owner)
        if leaf == "weight" and isinstance(layer, AdaptedLinear) and layer.magnitude is None and not p.requires_grad:
            layer.weight = nn.Parameter(p.detach().to(torch.bfloat16), requires_grad=False)


def _to_empty(model: nn.Module, device: torch.device | str) -> None:
    """Like `nn.Module.to_empty`. For plain meta tensors without `empty_like`, which imports torch's symbolic shapes: half a second."""

    def empty(t: Tensor) -> Tensor:
        if t.device.type != "meta" or type(t.data) is not Tensor:
            return torch.empty_like(t, device=device)
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)

    model._apply(empty, recurse=True)


def _tied(model: nn.Module) -> dict[str, str]:
    """Return name of each tied parameter -> the first name of its tensor."""
    first: dict[int, str] = {}
    return {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False) if first.setdefault(id(p), name) != name}
