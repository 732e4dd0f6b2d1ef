"""A look at every layer: norms of gradient and weights, and how far an update moves the weights, now and then. Names the layer whose
gradient vanishes or explodes (Bengio et al. 1994; Pascanu et al. 2013), with what helps.

It wraps two seams of a job: between clipping and update it changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tauon.distributed import is_dtensor, local_part
from tauon.train.readback import HostCopy
from tauon.train.step import TrainJob

__all__ = ["LayerLook", "LayerNorms", "complaints", "lasting_complaints", "watch_layers"]

VANISHED, EXPLODED = 1e-7, 1e3
"""Gradient of a layer for its weights: below the one as a share of the greatest layer's, or above the other as a multiple of the median
layer's and greater than the weights themselves, something is wrong."""
LASTS = 3
"""Looks in a row that show the same trouble, before it is told."""
_ZERO = 1e-6
"""Norm of weights up to which they are taken to be zero."""
COPIES_UP_TO = 200_000_000
"""Weights of a process beyond which no copy is made to measure how far the update moves them."""


@dataclass(frozen=True)
class LayerLook:
    """What one parameter was like at one step. All are L2 norms, of the whole parameter wherever its pieces lie."""

    gradient: float
    """Before clipping by norm."""
    weight: float
    update: float | None
    """How far the step moved the weights; None: not measured, or the step was skipped. About 1e-3 of the weights is healthy for Adam."""

    def to_json(self) -> dict[str, Any]:
        """Numbers that are not finite become null: JSON has none."""
        shown = {"gradient": self.gradient, "weight": self.weight, "update": self.update}
        return {k: v if v is not None and math.isfinite(v) else None for k, v in shown.items()}


class LayerNorms:
    """One look, on its way to the host: joins the metrics of its step, which read it."""

    def __init__(self, named: Sequence[tuple[str, Tensor]]) -> None:
        """Before clipping by norm: gradients are there, and weights not moved yet."""
        looked = [(n, p, p.grad) for n, p in named if p.grad is not None]
        self.named = [(n, p) for n, p, _ in looked]
        self.before = HostCopy(_stacked([v for _, p, g in looked for v in (_norm(g), _norm(p))])) if looked else None
        self.updates: HostCopy | None = None

    def moved_from(self, before: dict[str, Tensor]) -> None:
        """After the update: how far the weights are from where they were."""
        if self.named:
            self.updates = HostCopy(_stacked([_moved(p, before[n]) for n, p in self.named]))

    def read(self, *, skipped: bool) -> dict[str, LayerLook]:
        """By parameter name."""
        numbers = self.before.tolist() if self.before is not None else []
        updates = [None] * len(self.named) if self.updates is None or skipped else self.updates.tolist()
        pairs = zip(numbers[::2], numbers[1::2], updates, strict=True)
        return {n: LayerLook(g, w, u) for (n, _), (g, w, u) in zip(self.named, pairs, strict=True)}


def watch_layers(job: TrainJob, every: int) -> TrainJob:
    """The job, with `measured["layers"]` (name to `LayerLook`) after the first step and each step that `every` divides."""
    clip, update = job.functions.clip, job.functions.update
    named = [(n, p) for n, p in job.model.named_parameters() if p.requires_grad]
    copies = sum(local_part(p).numel() for _, p in named) <= COPIES_UP_TO

    def due(job: TrainJob) -> bool:
        return job.step == 0 or (job.step + 1) % every == 0

    def clip_and_look(job: TrainJob) -> Tensor:
        if due(job):
            job.measured["layers"] = LayerNorms(named)
        return clip(job)

    def update_and_look(job: TrainJob) -> None:
        if not due(job) or not copies:
            update(job)
            return
        before = {n: local_part(p).detach().clone() for n, p in named}
        update(job)
        job.measured["layers"].moved_from(before)

    job.functions = replace(job.functions, clip=clip_and_look, update=update_and_look)
    return job


@torch.no_grad()
def _norm(t: Tensor) -> Tensor:
    """Of the whole tensor, wherever its pieces lie, as one number on the device."""
    norm = torch.linalg.vector_norm(t, dtype=torch.float32)
    whole: Tensor = norm.full_tensor() if is_dtensor(norm) else norm
    return whole


@torch.no_grad()
def _moved(p: Tensor, before: Tensor) -> Tensor:
    if not is_dtensor(p):
        return _norm(p - before)
    from torch.distributed.tensor import DTensor

    return _norm(DTensor.from_local(local_part(p) - before, p.device_mesh, p.placements, shape=p.shape, stride=p.stride(), run_check=False))


def _stacked(numbers: list[Tensor]) -> Tensor:
    return torch.stack([n.detach() for n in numbers])


def lasting_complaints(layers: dict[str, LayerLook], notes: dict[str, Any]) -> list[str]:
    """`complaints` that hold for `LASTS` looks in a row (gradients that are not finite: at once).

    A layer that starts at zero (a head, a bias, the last norm of a block) has a gradient that is large for its weights until they have grown,
    and lets little of it through to the others: it is compared only where its gradient is `EXPLODED` times the greatest of the first look.

    Args:
        layers: this look.
        notes: of the job, saved with it: what the looks before have found.
    """
    greatest = max((x.gradient for x in layers.values() if math.isfinite(x.gradient)), default=0.0)
    first = notes.setdefault("first_look", {"zero": [n for n, x in layers.items() if x.weight <= _ZERO], "greatest": greatest})
    growing = {n for n in first["zero"] if n in layers and layers[n].gradient <= EXPLODED * first["greatest"]}
    found = complaints({n: x for n, x in layers.items() if n not in growing})
    kinds = {complaint.partition(" in ")[0]: complaint for complaint in found}
    looks = notes["complaint_looks"] = {kind: notes.get("complaint_looks", {}).get(kind, 0) + 1 for kind in kinds}
    return [complaint for kind, complaint in kinds.items() if looks[kind] >= LASTS or "not finite" in kind]


def complaints(layers: dict[str, LayerLook]) -> list[str]:
    """A line for each kind of trouble of one look: the layers, by how much they differ from the median layer, and what helps."""
    # an adapter's B starts at zero: for a while its gradient is large for its weights, and that of its A small
    compared = {n: x for n, x in layers.items() if x.weight > _ZERO and not n.endswith((".lora_a", ".lora_b"))}
    ratio = {n: x.gradient / max(x.weight, 1e-12) for n, x in compared.items()}
    broken = [n for n, x in layers.items() if not math.isfinite(x.gradient)]
    told = []
    if broken:
        told.append(
            f"gradients that are not finite in {_some(broken)}. Lower optim.lr, set optim.clip_norm: 1, or look at this step's data."
        )
    finite = sorted(r for r in ratio.values() if math.isfinite(r))
    if len(finite) < 2:
        return told
    median, greatest = finite[len(finite) // 2], finite[-1]
    dead = [n for n, r in ratio.items() if r == 0 or r < VANISHED * greatest]
    wild = [n for n, r in ratio.items() if math.isfinite(r) and r > max(EXPLODED * median, 1.0) and median > 0]
    if dead and len(dead) < len(ratio):
        told.append(
            f"vanishing gradients in {_some(dead)}: under {VANISHED:g} of the greatest layer's for its weights. Residual connections, norms, "
            "another activation (relu, gelu), or a higher optim.lr for these layers help; a layer that nothing uses shows the same."
        )
    if wild:
        told.append(
            f"exploding gradients in {_some(wild)}: over {EXPLODED:g} times the median layer's for its weights. optim.clip_norm: 1, "
            "optim.clip_adaptive: 0.01, a longer warm-up, or a lower optim.lr help."
        )
    return told


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
