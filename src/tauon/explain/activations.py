"""Activation maps: what each layer of a model computes for chosen inputs, and which of its units never act or always do.

Outputs of modules that are leaves or blocks, and of activation functions wherever they are called (`F.relu` in a block's forward pass as
`layer1.0.relu`), are summarised unit by unit; a unit is a channel of a convolution, a column of a linear layer.

A unit is dead if it was 0 everywhere (behind ReLU; below 1e-3 in size behind GELU or SiLU), and saturated if 99% of its values are at the ends
of tanh or a sigmoid; a softmax is saturated if its largest probability is above 0.999. Both are about the examples given, not about all.

Shapes: B examples of a call, C units, P positions.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tauon.errors import DataError
from tauon.explain.base import untouched
from tauon.explain.methods.layers import FIRST, LAST, first_tensor

__all__ = ["ActivationMaps", "LayerActivity", "activation_maps"]

FUNCTIONS = {
    F.relu: "relu", torch.relu: "relu", torch.relu_: "relu", Tensor.relu: "relu", Tensor.relu_: "relu", F.gelu: "gelu", F.silu: "silu",
    torch.tanh: "tanh", Tensor.tanh: "tanh", torch.sigmoid: "sigmoid", Tensor.sigmoid: "sigmoid", F.softmax: "softmax",
    torch.softmax: "softmax", Tensor.softmax: "softmax",
}  # fmt: skip
SILENT = {"relu": 0.0, "gelu": 1e-3, "silu": 1e-3}
"""Size up to which a value is no activity."""
ENDS, ALWAYS, ONE_HOT = 0.01, 0.99, 0.999


@dataclass
class LayerActivity:
    """Activations of one layer over the examples."""

    name: str
    kind: str
    """Type of the module, or name of the function."""
    shape: tuple[int, ...]
    """Of one example."""
    units: int
    count: int = 0
    """Values of a unit that were seen."""
    total: Tensor = field(default_factory=lambda: torch.zeros(0))
    zeros: Tensor = field(default_factory=lambda: torch.zeros(0))
    silent: Tensor = field(default_factory=lambda: torch.zeros(0))
    at_ends: Tensor = field(default_factory=lambda: torch.zeros(0))
    map: Tensor | None = None
    """Mean size over units at each position, of the first examples, and reduced to at most `size` an axis: B and P. None: no positions."""
    unit_maps: Tensor | None = None
    """The most active units at each position, of the first examples, BUP; which: `shown`."""
    shown: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return float(self.total.sum() / max(1, self.count * self.units))

    @property
    def share_of_zeros(self) -> float:
        """Share of values that are exactly 0."""
        return float(self.zeros.sum() / max(1, self.count * self.units))

    @property
    def dead(self) -> list[int]:
        """Units that never acted."""
        return (self.silent == self.count).nonzero().flatten().tolist() if self.kind in SILENT else []

    @property
    def saturated(self) -> list[int]:
        """Units whose values are at the ends."""
        return (self.at_ends >= ALWAYS * self.count).nonzero().flatten().tolist() if self.kind in ("tanh", "sigmoid", "softmax") else []

    def to_json(self) -> dict[str, Any]:
        """Return the summary without maps."""
        return {
            "name": self.name, "kind": self.kind, "shape": list(self.shape), "units": self.units, "mean": self.mean,
            "share_of_zeros": self.share_of_zeros, "dead": self.dead, "saturated": self.saturated,
        }  # fmt: skip


@dataclass(frozen=True)
class ActivationMaps:
    """Activations of a model."""

    layers: list[LayerActivity]

    @property
    def findings(self) -> list[str]:
        """Sentences that name dead and saturated units."""
        said = []
        for layer in self.layers:
            for word, which in (("never active", layer.dead), ("saturated", layer.saturated)):
                if which:
                    named = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
                    said.append(f"{layer.name}: {len(which)} of {layer.units} units are {word} on these examples ({named})")
        return said

    def to_json(self) -> dict[str, Any]:
        """Return the summaries."""
        return {"layers": [layer.to_json() for layer in self.layers], "findings": self.findings}


def activation_maps(
    model: nn.Module, run: Callable[[], Any], layers: Sequence[str] | None = None, *, size: int = 32, examples: int = 4, shown: int = 8
) -> ActivationMaps:
    """Run the model and summarise what its layers compute.

    Args:
        model: the model.
        run: calls the model, once or batch by batch; its result is dropped.
        layers: names of modules; functions called in them are included. None: every leaf, and the blocks.
        size: largest number of positions of a map along an axis.
        examples: examples of the first call whose maps are kept.
        shown: units whose maps are kept, the most active ones.

    Raises:
        DataError: a layer does not exist.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> _ = nn.init.constant_(model[0].bias, -9.0)
    >>> activation_maps(model, lambda: model(torch.zeros(4, 2))).findings
    ['1: 3 of 3 units are never active on these examples (0, 1, 2)']
    """
    modules = dict(model.named_modules())
    for layer in layers or ():
        if layer not in modules:
            near = difflib.get_close_matches(layer, modules, n=1)
            raise DataError(f"the model has no layer {layer!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    blocks = {id(m) for m in getattr(model, "blocks_to_compile", list)()}
    activations = {name for name, module in modules.items() if type(module).__module__ == "torch.nn.modules.activation"}
    recorder = _Recorder(None if layers is None else tuple(layers), activations, (size, examples, shown))
    handles = []
    with untouched(model), torch.no_grad():
        for name, module in modules.items():
            wanted = name in layers if layers is not None else (not list(module.children()) or id(module) in blocks)
            handles.append(module.register_forward_pre_hook(lambda *_, n=name: recorder.names.append(n)))  # type: ignore[misc]
            handles.append(module.register_forward_hook(recorder.hook(name, wanted and bool(name)), always_call=True))
        try:
            with recorder:
                run()
        finally:
            for handle in handles:
                handle.remove()
    return ActivationMaps(list(recorder.found.values()))


class _Recorder(TorchFunctionMode):
    def __init__(self, layers: tuple[str, ...] | None, activations: set[str], sizes: tuple[int, int, int]) -> None:
        """`activations`: names of modules that are activation functions; `sizes`: of a map, examples, units."""
        super().__init__()
        self.layers, self.activations, self.sizes = layers, activations, sizes
        self.names: list[str] = []
        self.found: dict[str, LayerActivity] = {}
        self.counts: dict[str, int] = {}
        self.side = "last"

    def hook(self, name: str, wanted: bool) -> Any:
        def after(module: nn.Module, _: Any, out: Any) -> None:
            self.names.pop()
            tensor = first_tensor(out)
            if isinstance(module, FIRST) or getattr(module, "track_running_stats", False):
                self.side = "first"
            elif isinstance(module, LAST):
                self.side = "last"
            if wanted and tensor is not None and name not in self.activations:
                self.record(name, type(module).__name__, tensor)
            for known in [k for k in self.counts if k.rpartition(".")[0] == name]:
                del self.counts[known]  # the next call of the module counts its functions from 1

        return after

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        kind = FUNCTIONS.get(func)
        inside = self.names[-1] if self.names else ""
        if kind is None or not isinstance(out, Tensor):
            return out
        if self.layers is None or any(inside == n or inside.startswith(f"{n}.") for n in self.layers):
            name = inside if inside in self.activations else f"{inside}.{kind}".lstrip(".")
            self.counts[name] = times = self.counts.get(name, 0) + 1
            self.record(name if times == 1 or name == inside else f"{name}_{times}", kind, out)
        return out

    def record(self, name: str, kind: str, out: Tensor) -> None:
        """Add a layer's output to its summary."""
        if out.ndim < 2 or not out.is_floating_point():
            return
        x = out.detach().float()
        if kind == "softmax":
            x = x.amax(-1, keepdim=True)
        x = x.movedim(1, -1) if self.side == "first" and x.ndim > 2 and kind != "softmax" else x
        flat = x.reshape(-1, x.shape[-1])
        layer = self.found.get(name)
        if layer is None:
            zero = torch.zeros(flat.shape[1], dtype=torch.float64, device=x.device)
            layer = LayerActivity(name, kind, tuple(out.shape[1:]), flat.shape[1], 0, zero, zero.clone(), zero.clone(), zero.clone())
            self.found[name] = layer
            self._draw(layer, x)
        elif layer.units != flat.shape[1]:
            return
        layer.count += len(flat)
        layer.total += flat.double().sum(0)
        layer.zeros += (flat == 0).sum(0)
        layer.silent += (flat.abs() <= SILENT.get(kind, -1.0)).sum(0)
        ends = {"tanh": flat.abs() > 1 - ENDS, "sigmoid": (flat < ENDS) | (flat > 1 - ENDS), "softmax": flat > ONE_HOT}
        if kind in ends:
            layer.at_ends += ends[kind].sum(0)

    def _draw(self, layer: LayerActivity, x: Tensor) -> None:
        size, examples, shown = self.sizes
        x = x[:examples]
        if not 3 <= x.ndim <= 4:
            return
        best = x.abs().flatten(0, -2).mean(0).topk(min(shown, x.shape[-1])).indices.sort().values
        layer.shown = tuple(best.tolist())
        first = x.movedim(-1, 1)
        layer.map, layer.unit_maps = (
            _reduced(first.abs().mean(1, keepdim=True), size).squeeze(1).cpu(),
            _reduced(first[:, best], size).cpu(),
        )


def _reduced(x: Tensor, size: int) -> Tensor:
    """Average maps BC and positions down to at most `size` positions along an axis."""
    to = tuple(min(size, n) for n in x.shape[2:])
    return F.adaptive_avg_pool2d(x, (to[0], to[1])) if len(to) == 2 else F.adaptive_avg_pool1d(x, to[0])
