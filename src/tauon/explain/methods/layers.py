"""Which modules a model calls, and how the activations of one lie over the features of an example.

An image's activations are channels first (convolutions), channels last, or tokens (patches, often behind a class token); a recording's are
frames, fewer than the spectrogram has. None of this is asked of the user: the module's type says where its channels are, or, of a module of an
unknown type, the types of those inside it; sizes say which axes are positions. What can be read in two ways is refused.

Shapes: M rows, C channels, P positions.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.errors import DataError
from tauon.explain.base import Cases

__all__ = [
    "Arrangement",
    "Called",
    "arrangement_of",
    "called_modules",
    "default_layer",
    "enlarged",
    "first_tensor",
    "layer_gradients",
    "layer_named",
    "patches_of",
]

Side = Literal["first", "last"]
"""Where the channels are."""
FIRST = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd, nn.Upsample, nn.PixelShuffle,
)  # fmt: skip
LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.LSTM, nn.GRU)
PREFIXES = (0, 1, 2, 5)
"""Numbers of tokens before the patches: none, a class token, with a distillation token, with registers."""


@dataclass(frozen=True)
class Called:
    """A module that the model called, in the order in which calls ended."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    """Of its first output; () if that is no tensor."""
    times: int = 1


@dataclass(frozen=True)
class Arrangement:
    """How a layer's activations lie over the grid of features."""

    channels: Side
    grid: tuple[int, ...]
    """Positions: as many axes as the features' grid has, or only its first (frames)."""
    skipped: int = 0
    """Tokens before the positions."""

    def channels_first(self, activations: Tensor) -> Tensor:
        """Return M, C and the positions."""
        x = activations if self.channels == "first" else activations.movedim(-1, 1)
        return x[:, :, self.skipped :].unflatten(2, self.grid) if x.ndim - 2 != len(self.grid) or self.skipped else x


def called_modules(cases: Cases) -> dict[str, Called]:
    """Run the model on an example or two and return the modules that it called, by name."""
    calls: dict[str, Called] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, _: Any, out: Any) -> None:
            found = first_tensor(out)
            times = calls[name].times + 1 if name in calls else 1
            calls.pop(name, None)  # to the end of the order
            calls[name] = Called(name, module, () if found is None else tuple(found.shape), times)

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in cases.model.named_modules() if name]
    try:
        rows = torch.arange(min(2, len(cases)), device=cases.inputs.device)
        with torch.no_grad():
            cases.answers(cases.inputs[: len(rows)], rows)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def first_tensor(out: Any) -> Tensor | None:
    """Return a module's output, or the first of several; None if that is no tensor."""
    while isinstance(out, tuple | list) and out:
        out = out[0]
    return out if isinstance(out, Tensor) else None


def layer_named(cases: Cases, layer: str, calls: dict[str, Called]) -> Called:
    """Return a module that is called once. `DataError` names the nearest for one that does not exist or is never called."""
    modules = dict(cases.model.named_modules())
    if layer not in modules or not layer:
        near = difflib.get_close_matches(layer, list(calls), n=1) or list(calls)[-1:]
        raise DataError(f"the model has no layer {layer!r}; did you mean {near[0]!r}?" if near else f"the model has no layer {layer!r}")
    if layer not in calls:
        inside = [name for name in calls if name.startswith(layer + ".")]
        depth = min((name.count(".") for name in inside), default=0)
        near = [name for name in inside if name.count(".") == depth][-1:] or difflib.get_close_matches(layer, list(calls), n=1)
        hint = f" Name one that is: {near[0]!r}." if near else ""
        raise DataError(f"layer {layer!r} is a container that the model never calls, so it has no activations.{hint}")
    found = calls[layer]
    if found.times > 1:
        raise DataError(
            f"layer {layer!r} is called {found.times} times in one pass; its activations are not one map. Name a layer that is called once."
        )
    if not found.shape:
        raise DataError(f"layer {layer!r} returns no tensor ({type(found.module).__name__})")
    return found


def default_layer(cases: Cases, calls: dict[str, Called]) -> str:
    """Return the layer that the model's family names, else the last whose positions are more than one and certain. `DataError`: none."""
    named = getattr(cases.model, "map_layer", lambda: None)()
    if named is not None:
        return str(named)
    for name in reversed(calls):
        if calls[name].times == 1 and len(_possible(cases, calls, name)) == 1:
            return name
    raise DataError(
        f"{type(cases.model).__name__} has no layer whose activations lie over the {cases.kind}'s grid {cases.grid}: name one with layer="
    )


def arrangement_of(cases: Cases, calls: dict[str, Called], layer: str, channels: Side | None = None) -> Arrangement:
    """Return how the layer's activations lie over the features.

    Args:
        cases: the examples.
        calls: of `called_modules`.
        layer: name of a module that is called.
        channels: where its channels are; None: derived.

    Raises:
        DataError: no axes fit the grid, or several do.
    """
    shape = calls[layer].shape
    possible = _possible(cases, calls, layer, channels)
    said = f"activations of {layer!r} are {shape[1:]} for each example, the features' grid is {cases.grid}"
    if not possible:
        raise DataError(f"{said}: no axes of the one fit the other. Name another layer.")
    if len(possible) > 1:
        raise DataError(f"{said}: that can be read in several ways. Say where its channels are: channels='first' or 'last'.")
    return possible[0]


def _possible(cases: Cases, calls: dict[str, Called], layer: str, channels: Side | None = None) -> list[Arrangement]:
    shape = calls[layer].shape
    if len(shape) < 3 or shape[0] != min(2, len(cases)):
        return []
    sides: tuple[Side, ...] = ("first", "last")
    side = channels or _side(calls, layer)
    found = []
    for one in sides if side is None else (side,):
        places = shape[2:] if one == "first" else shape[1:-1]
        fit = _fitting(places, cases.grid, cases.kind)
        if fit is not None:
            found.append(Arrangement(one, *fit))
    return found


def _side(calls: dict[str, Called], layer: str) -> Side | None:
    """Return where the channels are, by the module's type or that of the last one before it with the same output shape."""
    names = list(calls)
    for name in reversed(names[: names.index(layer) + 1]):
        if calls[name].shape == calls[layer].shape:
            kind = calls[name].module
            if isinstance(kind, FIRST) or getattr(kind, "track_running_stats", False):
                return "first"
            if isinstance(kind, LAST):
                return "last"
    return None


def _fitting(places: tuple[int, ...], grid: tuple[int, ...], kind: str) -> tuple[tuple[int, ...], int] | None:
    """Return (positions, tokens before them) if these axes can be positions over the grid."""
    if len(places) == len(grid):
        fine = all(p <= g for p, g in zip(places, grid, strict=True)) and math.prod(places) > 1
        if kind == "image":
            fine = fine and round(grid[0] / places[0]) == round(grid[1] / places[1])
        if kind in ("text", "table"):
            fine = places == grid
        return (places, 0) if fine else None
    if len(places) != 1 or len(grid) != 2:
        return None
    if kind != "image":  # frames or steps
        return (places, 0) if 1 < places[0] <= grid[0] else None
    return patches_of(places[0], grid)


def patches_of(tokens: int, grid: tuple[int, ...]) -> tuple[tuple[int, ...], int] | None:
    """Return ((rows, columns) of square patches over an image, tokens before them), or None.

    >>> patches_of(17, (8, 8))
    ((4, 4), 1)
    """
    for skipped in PREFIXES:
        patch = math.isqrt(grid[0] * grid[1] // max(1, tokens - skipped))
        if patch and grid[0] % patch == 0 and grid[1] % patch == 0 and (grid[0] // patch) * (grid[1] // patch) == tokens - skipped > 1:
            return (grid[0] // patch, grid[1] // patch), skipped
    return None


def layer_gradients(cases: Cases, x: Tensor, rows: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Return (scores M, activations of the layer, gradients of the scores with respect to them). All rows at once.

    The graph begins at the layer. The model gets a copy of the activations, so that operations in place behind the layer change neither.
    """
    with _as_leaf(layer) as kept, torch.enable_grad():
        scores = cases.score(x, rows)
        (leaf,) = kept
        grad = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)[0] if scores.requires_grad else None
    return scores.detach(), leaf.detach(), torch.zeros_like(leaf) if grad is None else grad


@contextmanager
def _as_leaf(layer: nn.Module) -> Iterator[list[Tensor]]:
    kept: list[Tensor] = []

    def hook(_: nn.Module, __: Any, out: Any) -> Any:
        found = first_tensor(out)
        assert found is not None
        kept.append(found.detach().requires_grad_())
        copy = kept[-1].clone()
        return copy if isinstance(out, Tensor) else _with_first(out, copy)

    handle = layer.register_forward_hook(hook)
    try:
        yield kept
    finally:
        handle.remove()


def _with_first(out: Any, tensor: Tensor) -> Any:
    first = tensor if isinstance(out[0], Tensor) else _with_first(out[0], tensor)
    return type(out)((first, *out[1:]))


def enlarged(coarse: Tensor, cases: Cases) -> Tensor:
    """Interpolate maps (N and positions) to the features: NF. A map over the first axis only is the same along the second."""
    grid = cases.grid
    if coarse.ndim - 1 == 2:
        return F.interpolate(coarse.unsqueeze(1), size=grid, mode="bilinear", align_corners=False).flatten(1)
    along = F.interpolate(coarse.unsqueeze(1), size=grid[0], mode="linear", align_corners=False).squeeze(1)
    return along.unsqueeze(-1).expand(-1, -1, math.prod(grid[1:])).flatten(1)
