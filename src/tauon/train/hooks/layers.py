"""Statistics of every layer at intervals: norms of gradient and weights, and size of the update. Reports layers whose gradient vanishes or
explodes (Bengio et al. 1994; Pascanu et al. 2013), with remedies.

It wraps two step functions of a job, clipping and update, without changing what they compute.
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
"""Limits of the ratio gradient / weights of a layer: vanished below the first as a share of the largest layer's ratio; exploded above the
second as a multiple of the median layer's ratio, if it is also above 1."""
LASTS = 3
"""Measurements in a row with the same problem before it is reported."""
_ZERO = 1e-6
"""Norm up to which weights count as zero."""
COPIES_UP_TO = 200_000_000
"""Most weights of a process that are copied to measure the size of the update."""


@dataclass(frozen=True)
class LayerLook:
    """Statistics of one parameter at one step: L2 norms of the whole parameter, also if it is sharded."""

    gradient: float
    """Before clipping by norm."""
    weight: float
    update: float | None
    """Norm of the update; None if it was not measured, or the step was skipped. About 1e-3 of the weights is healthy for Adam."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; numbers that are not finite become null."""
        shown = {"gradient": self.gradient, "weight": self.weight, "update": self.update}
        return {k: v if v is not None and math.isfinite(v) else None for k, v in shown.items()}


class LayerNorms:
    """One measurement of all layers, being copied to the host. It is part of its step's metrics and is read with them."""

    def __init__(self, named: Sequence[tuple[str, Tensor]]) -> None:
        """Measure before clipping by norm and before the update."""
        with_gradient = [(n, p, p.grad) for n, p in named if p.grad is not None]
        self.named = [(n, p) for n, p, _ in with_gradient]
        self.before = HostCopy(_stacked([v for _, p, g in with_gradient for v in (_norm(g), _norm(p))])) if with_gradient else None
        self.updates: HostCopy | None = None

    def moved_from(self, before: dict[str, Tensor]) -> None:
        """Measure, after the update, how far the weights moved."""
        if self.named:
            self.updates = HostCopy(_stacked([_moved(p, before[n]) for n, p in self.named]))

    def read(self, *, skipped: bool) -> dict[str, LayerLook]:
        """Return the statistics by parameter name."""
        numbers = self.before.tolist() if self.before is not None else []
        updates = [None] * len(self.named) if self.updates is None or skipped else self.updates.tolist()
        pairs = zip(numbers[::2], numbers[1::2], updates, strict=True)
        return {n: LayerLook(g, w, u) for (n, _), (g, w, u) in zip(self.named, pairs, strict=True)}


def watch_layers(job: TrainJob, every: int) -> TrainJob:
    """Return the job with `measured["layers"]` (name -> `LayerLook`) after the first step and every `every` steps."""
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
    """Return the norm of the whole tensor, also if it is sharded, as one number on the device."""
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
    """Return the `complaints` that lasted for `LASTS` measurements in a row (gradients that are not finite: immediately).

    A layer that starts at zero (a head, a bias, the last norm of a block) has a large gradient relative to its weights until they have grown,
    and passes little of it to the others: it is compared only if its gradient is `EXPLODED` times the largest of the first measurement.

    Args:
        layers: this measurement.
        notes: the job's notes, which are saved with it: results of earlier measurements.
    """
    greatest = max((x.gradient for x in layers.values() if math.isfinite(x.gradient)), default=0.0)
    first = notes.setdefault("first_look", {"zero": [n for n, x in layers.items() if x.weight <= _ZERO], "greatest": greatest})
    growing = {n for n in first["zero"] if n in layers and layers[n].gradient <= EXPLODED * first["greatest"]}
    ratio = {n: x.gradient / max(x.weight, 1e-12) for n, x in layers.items() if math.isfinite(x.gradient)}
    least = VANISHED * max(ratio.values(), default=0.0)
    small, before = {n: r for n, r in ratio.items() if r < least or r == 0}, notes.get("small_ratios", {})
    # what lies behind a part that began at zero gets its gradient as that part grows: from none to some, or fast enough to be there next time
    growing |= {n for n, r in small.items() if n in before and (r > 0 if before[n] == 0 else r * r / before[n] >= least)}
    notes["small_ratios"] = small
    current = complaints({n: x for n, x in layers.items() if n not in growing})
    kinds = {complaint.partition(" in ")[0]: complaint for complaint in current}
    looks = notes["complaint_looks"] = {kind: notes.get("complaint_looks", {}).get(kind, 0) + 1 for kind in kinds}
    return [complaint for kind, complaint in kinds.items() if looks[kind] >= LASTS or "not finite" in kind]


def complaints(layers: dict[str, LayerLook]) -> list[str]:
    """Return a line for each kind of problem in one measurement: the layers, by how much they differ, and what helps."""
    # B of an adapter starts at zero: for a while its gradient is large relative to its weights, and that of A small
    compared = {n: x for n, x in layers.items() if x.weight > _ZERO and not n.endswith((".lora_a", ".lora_b"))}
    ratio = {n: x.gradient / max(x.weight, 1e-12) for n, x in compared.items()}
    broken = [n for n, x in layers.items() if not math.isfinite(x.gradient)]
    messages = []
    if broken:
        messages.append(
            f"gradients that are not finite in {_some(broken)}. Lower optim.lr, set optim.clip_norm=1, or check the data of this step."
        )
    finite = sorted(r for r in ratio.values() if math.isfinite(r))
    if len(finite) < 2:
        return messages
    median, greatest = finite[len(finite) // 2], finite[-1]
    dead = [n for n, r in ratio.items() if r == 0 or r < VANISHED * greatest]
    wild = [n for n, r in ratio.items() if math.isfinite(r) and r > max(EXPLODED * median, 1.0) and median > 0]
    if dead and len(dead) < len(ratio):
        messages.append(
            f"vanishing gradients in {_some(dead)}: gradient / weights is below {VANISHED:g} of the largest layer's. Use residual connections, "
            "norms, another activation (relu, gelu), or a higher optim.lr for these layers. An unused layer looks the same."
        )
    if wild:
        messages.append(
            f"exploding gradients in {_some(wild)}: gradient / weights is above {EXPLODED:g} times the median layer's. Set optim.clip_norm=1 or "
            "optim.clip_adaptive=0.01, warm up longer, or lower optim.lr."
        )
    return messages


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
