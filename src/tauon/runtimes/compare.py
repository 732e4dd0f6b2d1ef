"""Does a program compute what the model computes? Outputs of both on the same examples, in batches of several sizes.

Outputs are compared before a task reads them: logits, forecasts, numbers. Positions of padding are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauon.runtimes.program import recorded_call
from tauon.tasks import Task
from tauon.types import Batch

__all__ = ["Agreement", "agreement", "outputs_of"]


@dataclass(frozen=True)
class Agreement:
    """How far a program agrees with its reference."""

    examples: int
    batches: tuple[int, ...]
    """Sizes of the batches."""
    argmax: float | None
    """Share of examples (of language models: of positions) with the same largest output. None if no output has several numbers."""
    absolute: float
    """Largest difference of an output."""
    relative: float
    """The same, divided by the largest output of the reference."""
    whole: bool = True
    """Whether outputs that are whole numbers (lengths) are equal, and shapes."""

    def problem(self, *, argmax: float = 0.999, relative: float = 1e-3) -> str:
        """Return what is too far apart, or ""."""
        if not self.whole:
            return "its outputs have another shape, or other whole numbers"
        if not self.relative <= relative:
            return f"its outputs differ by up to {self.relative:.1e} of the largest output, more than {relative:.0e}"
        if self.argmax is not None and self.argmax < argmax:
            return f"only {self.argmax:.2%} of its largest outputs are the same, less than {argmax:.1%}"
        return ""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"batches": list(self.batches)}


def outputs_of(task: Task, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """Return what a model or a program computes for a batch: logits where the task applies the head itself."""
    found = recorded_call(task, model, batch).outputs
    if task.reads_hidden_states:
        with torch.no_grad():
            found = model.logits(found)  # type: ignore[operator]
    return tuple(
        o.detach().float().cpu() if o.is_floating_point() else o.detach().cpu() for o in (found if isinstance(found, tuple) else (found,))
    )


def agreement(task: Task, reference: nn.Module, program: nn.Module, batches: Sequence[Batch]) -> Agreement:
    """Compare a program with the model that it was traced from.

    Args:
        task: decides how both are called.
        reference: the model, in evaluation mode on the CPU; of a quantised program the quantised model.
        program: what was loaded.
        batches: real examples; best of several sizes and lengths.
    """
    same = positions = 0
    absolute = largest = 0.0
    whole = True
    for batch in batches:
        for a, b in zip(outputs_of(task, reference, batch), outputs_of(task, program, batch), strict=True):
            if a.shape != b.shape:
                whole = False
                continue
            seen = _seen(a, batch)
            a, b = a[seen], b[seen]
            if not a.is_floating_point():
                whole &= bool((a == b).all())
                continue
            if a.numel():
                far = (a.double() - b.double()).abs().max()
                absolute = max(absolute, float("inf") if not torch.isfinite(far) else float(far))
                largest = max(largest, float(a.abs().max()))
            if a.ndim > 1 and a.shape[-1] > 1 and task.input_kind != "series":
                same += int((a.argmax(-1) == b.argmax(-1)).sum())
                positions += a[..., 0].numel()
    relative = absolute / largest if largest else absolute
    return Agreement(
        sum(map(len, batches)), tuple(map(len, batches)), same / positions if positions else None, absolute, relative, whole,
    )  # fmt: skip


def _seen(output: Tensor, batch: Batch) -> Tensor:
    """Return B, or BT of a text's positions that are no padding."""
    segments = batch.segments
    if segments is not None and segments.ndim == 2 and output.ndim == 3 and output.shape[:2] == segments.shape:
        return segments >= 0
    return torch.ones(len(output), dtype=torch.bool)
