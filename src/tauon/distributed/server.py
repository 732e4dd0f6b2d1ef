"""Shard of a parameter server: some of the parameters with their optimizer state, and three operations: sum the pushes of workers,
apply them, return weights (Li et al. 2014, "Scaling distributed machine learning with the parameter server").

A plain class in one process, without networking. Needs no model: the optimizer is built over a skeleton, a module without code that has the
model's parameter names and shapes, so that choices by name (weight decay, Muon's matrices) are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from tauon.distributed.codec import CodecConfig, Floats, NoCodec, Payload
from tauon.distributed.outer import OuterConfig
from tauon.distributed.partition import Piece

__all__ = ["Names", "OptimizerRule", "OuterRule", "Push", "Rule", "ServerShard", "ShardState", "skeleton"]

Build = Callable[[nn.Module, dict[str, nn.Parameter]], "Rule"]
"""Builds a shard's update rule, from a skeleton of the complete model and the shard's own parameters by name."""


@dataclass(frozen=True)
class Names:
    """The parameters of a model, without the model."""

    shapes: dict[str, tuple[int, ...]]
    """Shape of each parameter, in the model's order."""
    frozen: frozenset[str] = frozenset()
    """Frozen parameters; they are on no server."""
    tied: dict[str, str] = field(default_factory=dict)
    """Tied parameters: name -> canonical name."""

    @classmethod
    def of(cls, model: nn.Module) -> Names:
        own = dict(model.named_parameters())
        first = {id(p): n for n, p in own.items()}
        return cls(
            {n: tuple(p.shape) for n, p in own.items()},
            frozenset(n for n, p in own.items() if not p.requires_grad),
            {n: first[id(p)] for n, p in model.named_parameters(remove_duplicate=False) if n not in own},
        )

    @property
    def trained(self) -> dict[str, tuple[int, ...]]:
        return {n: s for n, s in self.shapes.items() if n not in self.frozen}


@dataclass
class Push:
    """A worker's gradient for one shard."""

    payload: Payload
    present: NDArray[np.bool_] | None = None
    """Which of the shard's pieces have a gradient; None: all."""


@dataclass
class ShardState:
    """State of a shard as NumPy arrays, for replicas and checkpoints."""

    weights: Floats
    tensors: dict[str, NDArray[Any]]
    """The optimizer's, by `<parameter>/<entry>`."""
    numbers: dict[str, Any]
    version: int


def skeleton(names: Names, mine: Mapping[str, nn.Parameter]) -> nn.Module:
    """A module with the parameter names of a model. Those in `mine` are real; the others have the shape with one element of memory."""
    root = nn.Module()

    def put(name: str, p: nn.Parameter) -> None:
        *path, leaf = name.split(".")
        at = root
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        at.register_parameter(leaf, p)

    held = {
        n: mine[n] if n in mine else nn.Parameter(torch.zeros(1).expand(shape) if shape else torch.zeros(()), n not in names.frozen)
        for n, shape in names.shapes.items()
    }
    for name, p in held.items():
        put(name, p)
    for name, first in names.tied.items():
        put(name, held[first])
    return root


class Rule(Protocol):
    """Update rule: how a server applies a summed gradient."""

    def step(self, factor: float) -> None:
        """Update the parameters by their `.grad`, at `factor` times the peak learning rate; those without a gradient do not change."""
        ...

    def entries(self) -> dict[str, dict[str, Any]]:
        """State by parameter name and entry."""
        ...

    def load(self, entries: dict[str, dict[str, Any]]) -> None:
        """Restore what `entries` returned; a parameter without entries starts with new state."""
        ...


class OptimizerRule:
    """A torch optimizer, built over all names of the model and reduced to the shard's parameters."""

    def __init__(self, build: Callable[[nn.Module], Optimizer], names: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters, self.optimizer = parameters, build(names)
        mine = {id(p) for p in parameters.values()}
        for part in self.parts:
            for group in part.param_groups:
                group["params"] = [p for p in group["params"] if id(p) in mine]

    @property
    def parts(self) -> list[Optimizer]:
        parts: list[Optimizer] = getattr(self.optimizer, "parts", [self.optimizer])
        return parts

    def step(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.optimizer.step()

    def entries(self) -> dict[str, dict[str, Any]]:
        held = self.optimizer.state
        return {name: dict(held[p]) for name, p in self.parameters.items() if p in held}

    def load(self, entries: dict[str, dict[str, Any]]) -> None:
        for part in self.parts:
            part.state.clear()
            mine = {id(p) for g in part.param_groups for p in g["params"]}
            for name, p in self.parameters.items():
                if id(p) in mine and name in entries:
                    part.state[p] = entries[name]


class OuterRule:
    """An outer optimizer: workers push the difference between their first and last weights. It has its own learning rate and no schedule."""

    def __init__(self, outer: OuterConfig, parameters: dict[str, nn.Parameter]) -> None:
        self.outer, self.anchor = outer, {name: p.data for name, p in parameters.items()}
        self.parameters = parameters
        self.state = outer.state(self.anchor)

    def step(self, factor: float) -> None:
        self.outer.update(self.anchor, {n: p.grad for n, p in self.parameters.items() if p.grad is not None}, self.state)

    def entries(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for key, value in self.state.items():
            entry, _, name = key.partition("/")
            found.setdefault(name, {})[entry] = value
        return found

    def load(self, entries: dict[str, dict[str, Any]]) -> None:
        self.state = self.outer.state(self.anchor)
        self.state |= {f"{entry}/{name}": value for name, held in entries.items() for entry, value in held.items()}


class ServerShard:
    """Parameters and optimizer of some pieces. Inputs and outputs are flat: the concatenated pieces."""

    def __init__(
        self, pieces: Sequence[Piece], names: Names, build: Build, *, push: CodecConfig | None = None,
        pull: CodecConfig | None = None, clip_value: float | None = None, compensation: float = 0.0,
    ) -> None:  # fmt: skip
        """`build` makes the update rule; `compensation` is lambda of delay compensation."""
        self.pieces, self.clip_value, self.compensation = tuple(pieces), clip_value, compensation
        self.push, self.pull = push or NoCodec(), pull or NoCodec()
        size = self.pieces[-1].end
        self.weights_N, self.gradient_N = torch.zeros(size), torch.zeros(size)
        self.parameters = {p.name: nn.Parameter(self.weights_N[p.offset : p.end].view(p.shape)) for p in self.pieces}
        self.rule = build(skeleton(names, self.parameters), self.parameters)
        self.version = 0
        """Updates applied."""

    @torch.no_grad()
    def reduce(self, pushes: Sequence[Push], *, rescale: float = 1.0, pulled: Payload | None = None) -> Floats:
        """Sum pushes in the given order; return the L2 norm of each piece's gradient, may be NaN.

        Args:
            pushes: one per worker, or a single one.
            rescale: factor of the sum (for missing shares, or other weights than nominal).
            pulled: the weights at which the gradient was computed, for delay compensation: g + lambda g^2 (w - w_pulled), with the current w
                (Zheng et al. 2017, arXiv:1609.08326, equation 10).
        """
        size, total = len(self.gradient_N), self.gradient_N.numpy()
        vectors = [self.push.decode(p.payload, size) for p in pushes]
        if len(vectors) == 1:
            np.copyto(total, vectors[0])
        else:
            with np.errstate(all="ignore"):  # non-finite values appear in the norms
                np.add(vectors[0], vectors[1], out=total)
                for vector in vectors[2:]:
                    np.add(total, vector, out=total)
        if rescale != 1.0:
            self.gradient_N.mul_(rescale)
        if self.compensation and pulled is not None:
            drift = self.weights_N.numpy() - self.pull.decode(pulled, size)
            self.gradient_N.addcmul_(self.gradient_N.square(), torch.from_numpy(drift), value=self.compensation)
        if self.clip_value is not None:
            self.gradient_N.clamp_(-self.clip_value, self.clip_value)
        for i, piece in enumerate(self.pieces):
            there = any(p.present is None or p.present[i] for p in pushes)
            self.parameters[piece.name].grad = self.gradient_N[piece.offset : piece.end].view(piece.shape) if there else None
        norms: Floats = np.zeros(len(self.pieces), np.float32)
        for i, piece in enumerate(self.pieces):
            g = self.parameters[piece.name].grad
            norms[i] = 0.0 if g is None else torch.linalg.vector_norm(g, dtype=torch.float32).item()
        return norms

    @torch.no_grad()
    def apply(self, scale: float, factor: float) -> int:
        """Multiply the result of `reduce` by `scale` and update the weights, at `factor` times the peak learning rates."""
        if scale != 1.0:
            self.gradient_N.mul_(scale)
        self.rule.step(factor)
        self.version += 1
        return self.version

    def weights(self) -> Payload:
        """The weights, encoded with the `pull` codec. With `none`, a view that changes with the next update."""
        return self.pull.encode(self.weights_N.numpy())

    def state(self) -> ShardState:
        """The state, as views: copy it to keep it."""
        tensors: dict[str, NDArray[Any]] = {}
        numbers: dict[str, Any] = {}
        for name, held in self.rule.entries().items():
            for entry, value in held.items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{entry}"] = value.numpy()
                else:
                    numbers[f"{name}/{entry}"] = value
        return ShardState(self.weights_N.numpy(), tensors, numbers, self.version)

    @torch.no_grad()
    def load(self, state: ShardState) -> None:
        """Restore what `state` returned, bit for bit."""
        np.copyto(self.weights_N.numpy(), state.weights)
        entries: dict[str, dict[str, Any]] = {}
        for key, value in {**state.tensors, **state.numbers}.items():
            name, _, entry = key.rpartition("/")
            entries.setdefault(name, {})[entry] = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        self.rule.load(entries)
        self.version = state.version
