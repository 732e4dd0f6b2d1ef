"""What goes wrong silently in fine-tuning, found at the first step: a document that another one leaks into, a parameter that should have
moved and did not, one that should not have and did.

`refuse_leaks` runs two rows through the model, in one of which all other documents have other tokens. `watch_first_step` looks over the
shoulder of the first update. Each process looks at the pieces that it holds. What is found is a `TrainingError`: nothing was trained yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tauon.distributed import local_part, reshard
from tauon.errors import TrainingError
from tauon.train.step import TrainJob
from tauon.types import Batch

__all__ = ["Moved", "refuse_leaks", "refuse_wrong_mask", "watch_first_step"]


@dataclass
class Moved:
    """What the first update did."""

    moved: int = 0
    """Parameters that moved."""
    still: dict[str, str] = field(default_factory=dict)
    """Trainable parameters that did not, and why that is as it should be."""
    frozen: int = 0
    """Parameters that must not move, and did not."""


def watch_first_step(job: TrainJob, done: Callable[[Moved], None]) -> None:
    """Before the job's first update, note every weight; after it, `done` is told what moved. Replaces the seam for one step, which waits for the
    device: a step that it skips must not be taken for one that moves nothing.

    Raises `TrainingError`, from the step, where a frozen parameter moved, or one that trains did not although it had a gradient.
    """
    update, late = job.functions.update, job.policy.reads_late

    def watched(job: TrainJob) -> None:
        job.functions = replace(job.functions, update=update)
        job.policy = replace(job.policy, reads_late=late)
        named = list(job.model.named_parameters())
        before = [_sum(p) for _, p in named]
        rates = {
            id(p): g["peak_lr"] * job.policy.schedule.factor(job.step, job.policy.total_steps)
            for g in job.optimizer.param_groups
            for p in g["params"]
        }
        parts = getattr(job.optimizer, "parts", [job.optimizer])
        waits = {id(p) for part in parts if not getattr(part, "first_step_moves", True) for g in part.param_groups for p in g["params"]}
        reasons = [WAITS if id(p) in waits else _reason(p, rates.get(id(p))) for _, p in named]
        update(job)
        after = [_sum(p) for _, p in named]
        done(_judged([(n, p.requires_grad) for n, p in named], before, after, reasons))

    job.functions = replace(job.functions, update=watched)
    job.policy = replace(job.policy, reads_late=False)


def _judged(named: list[tuple[str, bool]], before: list[Tensor | None], after: list[Tensor | None], reasons: list[str | None]) -> Moved:
    found = Moved()
    wrong: list[str] = []
    for (name, trains), old, new, reason in zip(named, before, after, reasons, strict=True):
        if old is None or new is None:
            continue  # this process holds no piece of it
        moved = not torch.equal(old, new)
        if not trains:
            found.frozen += not moved
            wrong += [f"{name} is frozen and moved"] if moved else []
        elif moved:
            found.moved += 1
        elif reason is None or reason in WRONG:
            wrong.append(f"{name} trains, {reason or 'had a gradient'}, and did not move")
        else:
            found.still[name] = reason
    if wrong:
        raise TrainingError(
            f"the first step did not do what it should: {'; '.join(wrong[:6])}{'; ...' if len(wrong) > 6 else ''}. "
            "Freeze what is not meant to train (train.freeze), and look for what cuts the rest off."
        )
    return found


UNREACHED, UNKNOWN = "is reached by no gradient", "is unknown to the optimizer"
WRONG = (UNREACHED, UNKNOWN)
WAITS = "its optimizer only prepares in its first step"


def _reason(p: Tensor, rate: float | None) -> str | None:
    """Why a parameter that trains would stay where it is; None: it has no reason to. `rate`: the learning rate that the optimizer has for it."""
    if not p.requires_grad:
        return None
    if rate is None:
        return UNKNOWN
    if p.grad is None:
        return UNREACHED
    part, g = local_part(p.detach()), local_part(p.grad)
    largest = float(g.abs().max()) if g.numel() else 0.0
    if largest == 0:
        return "its gradient is zero in the first step"
    step = rate * min(1.0, largest)  # Adam's is about the rate, plain descent's the rate times the gradient
    return "the first step is below its rounding" if step < float(part.abs().max()) * torch.finfo(part.dtype).eps else None


def _sum(p: Tensor) -> Tensor | None:
    """Something of this process's piece that changes when any of its bits do: the sum of its elements read as integers."""
    part = local_part(p.detach())
    if not part.numel():
        return None
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[part.element_size()]
    return part.contiguous().view(whole).sum(dtype=torch.int64)


def refuse_wrong_mask(job: TrainJob, dataset: Any) -> str:
    """Check, on the first batch, that the loss covers the answers and nothing else; in words, what was checked.

    What is covered is turned back into text and compared with the answers as they were read, blanks aside. `dataset` is one of
    conversations or preferences: its `answers(row)` are what each document of a row should have, None where something was cut.
    Raises `TrainingError`.
    """
    batch, tokenizer = job.loader.batch_at(job.step), dataset.tokenizer
    segments, index = batch.segments, batch.index
    assert segments is not None
    assert index is not None
    checked = covered = 0
    for row, number in enumerate(index.tolist()):
        meant = dataset.answers(number)
        if meant is None or not (batch.weights[row] > 0).any():
            continue
        for document, answers in enumerate(meant):
            pair = batch.targets.ndim == 3
            mine = segments[row, document] == 0 if pair else segments[row] == document
            weights, targets = (t[row, document] if pair else t[row] for t in (batch.weights, batch.targets))
            found = targets[mine & (weights > 0)]
            said = tokenizer.decode(found.numpy())
            expected = "".join(tokenizer.decode(tokenizer.encode(a)) for a in answers)
            if said.split() != expected.split() and "".join(said.split()) != "".join(expected.split()):
                raise TrainingError(
                    f"the loss covers {said[:80]!r}, and the answer is {expected[:80]!r} (example {number}, document {document}). The chat template "
                    "and this tokenizer do not work together: take another data.chat.template."
                )
            checked, covered = checked + 1, covered + len(found)
    return (
        f"{checked} answers of the first batch: the loss covers their {covered:,} tokens and nothing else"
        if checked
        else "not checked: all answers are cut"
    )


@torch.no_grad()
def refuse_leaks(job: TrainJob) -> str:
    """Check that a document in a packed row is blind to its neighbours, padding included; in words, what was checked.

    Collective, as a forward pass is. Raises `TrainingError` where outputs move with another document's tokens.
    """
    batch = job.loader.batch_at(job.step)
    if batch.segments is None:
        return "each row is one document"
    if batch.inputs.ndim == 3:  # pairs of rows
        batch = Batch(*(t.flatten(0, 1) for t in (batch.inputs, batch.targets, batch.weights, batch.segments)))
    segments = batch.segments
    assert segments is not None
    if job.mesh.layout.pipeline > 1 or job.mesh.layout.context > 1:
        return "not checked: no process sees a whole row"
    rows = batch.inputs.shape[0]
    counts = torch.stack([(segments[i, 1:] != segments[i, :-1]).sum() for i in range(rows)])
    row = int(counts.argmax())
    one = batch.rows(row, row + 1).to(job.policy.device)
    assert one.segments is not None
    kept = one.segments == one.segments[one.segments >= 0][-1]  # the last: earlier ones could not see it anyway where attention is causal
    others = ~kept
    vocab: Any = getattr(getattr(job.model, "embed", None), "num_embeddings", None)
    if vocab is None:
        return "not checked: this model has no embedding of tokens"
    changed = replace(one, inputs=torch.where(others, (one.inputs + 1 + one.inputs % 7) % vocab, one.inputs))
    was = job.model.training
    job.model.eval()
    try:
        with torch.compiler.set_stance("force_eager"), job.policy.precision.context():
            outputs = [job.model(b.inputs, b.segments).float() for b in (one, changed)]
    finally:
        job.model.train(was)
        reshard(job.model)
    a, b = outputs
    if a.shape[:2] == kept.shape:  # an output a position
        a, b = a[kept], b[kept]
    off = float((a - b).abs().max()) if a.numel() else 0.0
    allowed = (1e-2 if job.policy.precision.name == "bf16" else 1e-4) * max(1.0, float(a.abs().max()) if a.numel() else 1.0)
    if not off <= allowed:
        raise TrainingError(
            f"packing leaks: with other tokens in the other documents of a row, a document's outputs move by {off:.3g}. This model does "
            "not keep attention inside a segment. Take one that does, or data with one document a row."
        )
    return f"{int(others.sum())} of {others.numel()} positions of a row belong to other documents, and changing them moved outputs by {off:.1g}"
