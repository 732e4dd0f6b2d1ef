"""Low-communication training: replicas make H local steps, then an outer optimizer applies the mean difference.

    local SGD            H steps, then the mean of the weights                           Stich 2019, arXiv:1805.09767
    DiLoCo               H steps, then Nesterov's momentum on the outer gradient         Douillard et al. 2023, arXiv:2311.08105
    streaming DiLoCo     fragments of the model in turn, sent during training           Douillard et al. 2025, arXiv:2501.18512

`OuterLoop` does the outer part on named tensors: it has the anchor (the weights shared by all replicas, which are validated and
saved), exchanges outer gradients, and updates anchor and local weights. It is independent of model, optimizer, data and inner
steps. `tauon.train.local_sgd` applies it to a training job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from tauon.config import Count, Fraction, register
from tauon.distributed.config import ParallelConfig
from tauon.distributed.int8 import from_int8, to_int8
from tauon.distributed.outer import AverageOuter, NesterovOuter, OuterConfig
from tauon.distributed.traffic import Traffic
from tauon.errors import Problem, RecipeError

__all__ = ["DiLoCo", "LocalSGD", "LowCommunication", "OuterLoop", "Rhythm"]

Compression = Literal["none", "bf16", "int8"]


class LowCommunication(ParallelConfig):
    """Common settings of local SGD and DiLoCo. Every process is a replica with its own slice of the batch."""

    every: Count = Field(50, ge=1)
    """Local steps between two exchanges (H)."""
    compression: Compression = "none"
    """Format of outer gradients: float32 (4 bytes per element), bf16 (2), or int8 with a scale per 256 (1.02)."""

    def build(self, weights: Mapping[str, Tensor], *, group: dist.ProcessGroup | None = None, traffic: Traffic | None = None) -> OuterLoop:
        """Build the outer loop over `weights`, which it updates in place; `group` None: all processes, or a single one."""
        raise NotImplementedError


@register("local-sgd")
class LocalSGD(LowCommunication):
    """Replicas train locally and average their weights every `every` steps. Results depend on the number of replicas."""

    every: Count = Field(8, ge=1)
    """Local steps between two exchanges (H)."""

    def build(self, weights: Mapping[str, Tensor], *, group: dist.ProcessGroup | None = None, traffic: Traffic | None = None) -> OuterLoop:
        return OuterLoop(weights, AverageOuter(), Rhythm(self.every), compression=self.compression, group=group, traffic=traffic)


@register("diloco")
class DiLoCo(LowCommunication):
    """Replicas train locally; an outer optimizer applies the mean difference. Results depend on the number of replicas."""

    outer: OuterConfig = NesterovOuter()
    """The outer optimizer."""
    fragments: Count = Field(1, ge=1)
    """Number of fragments of the model, exchanged in turn over `every` steps (P): lowers the peak network load."""
    overlap: Count = Field(0, ge=0)
    """Steps of training during the transfer of a fragment (tau); below `every`."""
    mix: Fraction | None = Field(None, ge=0, lt=1)
    """With `overlap`: share of a replica's own weights when a fragment arrives (alpha); the rest is the anchor. Default: 50%."""

    def problems(self) -> Iterator[tuple[str, str]]:
        every, fragments, overlap = self.raw_value("every"), self.raw_value("fragments"), self.raw_value("overlap")
        if fragments > every:
            yield "fragments", f"is {fragments}, but they are spread over {every} steps. Set at most parallel.every."
        if overlap >= every:
            yield "overlap", f"is {overlap} steps, but a fragment is sent again after {every}. Set fewer than parallel.every."
        if self.raw_value("mix") is not None and overlap == 0:
            yield "mix", "needs overlap above 0: otherwise the received weights replace a replica's own. Set overlap, or remove mix."

    def build(self, weights: Mapping[str, Tensor], *, group: dist.ProcessGroup | None = None, traffic: Traffic | None = None) -> OuterLoop:
        overlap = self.overlap
        mix = 0.0 if overlap == 0 else 0.5 if self.mix is None else self.mix
        rhythm = Rhythm(self.every, self.fragments, overlap, mix)
        return OuterLoop(weights, self.outer, rhythm, compression=self.compression, group=group, traffic=traffic)


@dataclass(frozen=True)
class Rhythm:
    """Schedule of the exchanges."""

    every: int
    """Steps between two exchanges of the same weights."""
    fragments: int = 1
    """Number of fragments, exchanged in turn."""
    overlap: int = 0
    """Steps of training during a transfer."""
    mix: float = 0.0
    """Share of a replica's own weights when a fragment arrives."""


@dataclass
class Sending:
    """A transfer of a fragment's outer gradient."""

    due: int
    """The step after which it is applied."""
    buffer: Tensor
    """Result: the sum (float32), or every replica's bytes."""
    work: Any
    """Pending collective; None: finished."""
    mean: dict[str, Tensor] | None = None
    """Its mean over the replicas by name, computed on demand."""


class OuterLoop:
    """Outer part of low-communication training. Collective: all replicas make the same calls in the same order."""

    def __init__(
        self, weights: Mapping[str, Tensor], outer: OuterConfig, rhythm: Rhythm, *, compression: Compression = "none",
        group: dist.ProcessGroup | None = None, traffic: Traffic | None = None,
    ) -> None:  # fmt: skip
        """`weights` must start the same on all replicas. `group` None: all processes, or this one if there is no group."""
        if rhythm.fragments > len(weights):
            raise RecipeError(
                [Problem("parallel.fragments", f"is {rhythm.fragments}, but the model has only {len(weights)} parameters. Set fewer.")]
            )
        self.local = {name: w.detach() for name, w in weights.items()}
        self.anchor: Mapping[str, Tensor] = {name: w.clone() for name, w in self.local.items()}
        self.outer, self.state = outer, outer.state(self.anchor)
        self.every, self.overlap, self.mix, self.compression = rhythm.every, rhythm.overlap, rhythm.mix, compression
        self.group, self.traffic = group, traffic or Traffic()
        self.fragments = split_evenly({name: w.numel() for name, w in self.local.items()}, rhythm.fragments)
        self.sending: dict[int, Sending] = {}

    @property
    def replicas(self) -> int:
        return dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else 1

    @property
    def replica(self) -> int:
        """Index of this replica."""
        return dist.get_rank(self.group) if dist.is_available() and dist.is_initialized() else 0

    def after(self, step: int, *, last: bool = False) -> None:
        """Call after each inner step; `step`: number of steps done; `last`: synchronize everything at once.

        Fragment p of P is sent when step = p H / P, and again every H steps.
        """
        for p in sorted(p for p, s in self.sending.items() if s.due <= step or last):
            self._arrive(p)
        for p in range(len(self.fragments)):
            if last or (step - p * self.every // len(self.fragments)) % self.every == 0:
                self._send(p, due=step + self.overlap)
                if self.overlap == 0 or last:
                    self._arrive(p, mix=0.0)

    def _send(self, p: int, due: int) -> None:
        """Start the exchange of fragment p's outer gradient."""
        flat = torch.cat([(self.anchor[n] - self.local[n]).float().flatten() for n in self.fragments[p]])
        payload = flat if self.compression == "none" else packed(flat, self.compression)
        buffer, work = payload, None
        if self.replicas > 1:
            if self.compression == "none":
                work = dist.all_reduce(payload, group=self.group, async_op=True)
            else:  # gathered, not reduced: replicas have different scales, and the sum is in float32, in rank order
                buffer = payload.new_empty(self.replicas * payload.numel())
                work = dist.all_gather_single(buffer, payload, group=self.group, async_op=True)
            self.traffic.add("all-reduce" if self.compression == "none" else "all-gather", payload.numel() * payload.element_size())
        self.sending[p] = Sending(due, buffer, work)

    def _mean(self, p: int) -> dict[str, Tensor]:
        """Fragment p's mean outer gradient by name; waits for it."""
        sending, names = self.sending[p], self.fragments[p]
        if sending.mean is None:
            if sending.work is not None:
                sending.work.wait()
            sizes = [self.anchor[name].numel() for name in names]
            if self.compression == "none":
                flat = sending.buffer / self.replicas
            else:
                parts = [unpacked(b, sum(sizes), self.compression) for b in sending.buffer.chunk(self.replicas)]
                flat = torch.stack(parts).sum(0) / self.replicas
            pieces = zip(names, flat.split(sizes), strict=True)
            sending.mean = {name: x.view_as(self.anchor[name]).to(self.anchor[name].dtype) for name, x in pieces}
        return sending.mean

    def _arrive(self, p: int, mix: float | None = None) -> None:
        """Apply fragment p's mean outer gradient: update the anchor, then move the replica's own weights towards it."""
        self.outer.update(self.anchor, self._mean(p), self.state)
        del self.sending[p]
        mix = self.mix if mix is None else mix
        for name in self.fragments[p]:
            if mix == 0:
                self.local[name].copy_(self.anchor[name])
            else:
                self.local[name].lerp_(self.anchor[name], 1 - mix)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Context in which the weights are the anchor; afterwards the replica's own again, bit for bit."""
        own = {name: w.clone() for name, w in self.local.items()}
        for name, w in self.local.items():
            w.copy_(self.anchor[name])
        try:
            yield
        finally:
            for name, w in self.local.items():
                w.copy_(own[name])

    def tensors(self) -> dict[str, Tensor]:
        """The outer optimizer's state and pending transfers (waits for them): the same on every replica. Without the anchor, which is
        saved as the model's weights.
        """
        held = dict(self.state)
        if self.overlap:
            due = torch.tensor([self.sending[p].due if p in self.sending else -1 for p in range(len(self.fragments))])
            held["due"] = due
            for p, names in enumerate(self.fragments):
                mean = self._mean(p) if p in self.sending else {}
                held |= {f"sending/{name}": mean.get(name, torch.zeros_like(self.anchor[name])) for name in names}
        return held

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned. The model must have the saved weights: they are the anchor."""
        for name, w in self.local.items():
            self.anchor[name].copy_(w)
        for key, value in self.state.items():
            value.copy_(tensors[key])
        self.sending.clear()
        for p, due in enumerate(tensors["due"].tolist() if self.overlap else []):
            if due >= 0:
                mean = {name: tensors[f"sending/{name}"].to(self.anchor[name].device) for name in self.fragments[p]}
                self.sending[p] = Sending(due, torch.empty(0), None, mean)


def packed(flat: Tensor, compression: Compression) -> Tensor:
    """Bytes to send."""
    return to_int8(flat) if compression == "int8" else flat.bfloat16().view(torch.uint8)


def unpacked(payload: Tensor, n: int, compression: Compression) -> Tensor:
    """Unpack n numbers (float32)."""
    return from_int8(payload, n) if compression == "int8" else payload.view(torch.bfloat16).float()


def split_evenly(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """Distribute names to `parts` lists of about equal size: the largest first, each to the smallest list so far."""
    totals, chosen = [0] * parts, {}
    for name in sorted(sizes, key=lambda n: -sizes[n]):
        chosen[name] = min(range(parts), key=lambda p: totals[p])
        totals[chosen[name]] += sizes[name]
    return [[name for name in sizes if chosen[name] == p] for p in range(parts)]
