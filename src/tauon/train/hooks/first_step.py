"""Finds silent failures of fine-tuning at the first step: leaks between packed documents, trainable parameters that do not change, frozen
ones that do.

`refuse_leaks` runs a row through the model twice, the second time with other tokens in all other documents. `watch_first_step` compares the
weights before and after the first update; each process compares its own shards. A failure is a `TrainingError`, before any real training.
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
    """Which parameters the first update changed."""

    moved: int = 0
    """Number of parameters that changed."""
    still: dict[str, str] = field(default_factory=dict)
    """Trainable parameters that did not change, for a harmless reason: name -> reason."""
    frozen: int = 0
    """Number of frozen parameters, which did not change."""


def watch_first_step(job: TrainJob, done: Callable[[Moved], None]) -> None:
    """Compare every weight before and after the job's first update, and call `done` with the result. That step waits for the device, so that a
    skipped step is not taken for one that changes nothing.

    The step raises `TrainingError` if a frozen parameter changed, or a trainable one with a gradient did not.
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
    result = Moved()
    failures: list[str] = []
    for (name, trains), old, new, reason in zip(named, before, after, reasons, strict=True):
        if old is None or new is None:
            continue  # this process has no shard of it
        moved = not torch.equal(old, new)
        if not trains:
            result.frozen += not moved
            failures += [f"{name} is frozen, but it changed"] if moved else []
        elif moved:
            result.moved += 1
        elif reason is None or reason in FAILURES:
            failures.append(f"{name} should train, but it did not change ({reason or 'it has a gradient'})")
        else:
            result.still[name] = reason
    if failures:
        raise TrainingError(
            f"the first step did not change the right parameters: {'; '.join(failures[:6])}{'; ...' if len(failures) > 6 else ''}. "
            "Freeze parameters that should not train (train.freeze), and check why no gradient reaches the others."
        )
    return result


UNREACHED, UNKNOWN = "no gradient reaches it", "it is not in the optimizer"
FAILURES = (UNREACHED, UNKNOWN)
WAITS = "its optimizer does not update weights in its first step"


def _reason(p: Tensor, rate: float | None) -> str | None:
    """Return why a trainable parameter might not change, or None if it must change. `rate`: its learning rate in the optimizer."""
    if not p.requires_grad:
        return None
    if rate is None:
        return UNKNOWN
    if p.grad is None:
        return UNREACHED
    part, g = local_part(p.detach()), local_part(p.grad)
    largest = float(g.abs().max()) if g.numel() else 0.0
    if largest == 0:
        return "the gradient is zero in the first step"
    step = rate * min(1.0, largest)  # an update of Adam is about the rate, one of SGD the rate times the gradient
    return "the first update is smaller than rounding" if step < float(part.abs().max()) * torch.finfo(part.dtype).eps else None


def _sum(p: Tensor) -> Tensor | None:
    """Return a checksum of this process's shard: the sum of its elements read as integers."""
    part = local_part(p.detach())
    if not part.numel():
        return None
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[part.element_size()]
    return part.contiguous().view(integer).sum(dtype=torch.int64)


def refuse_wrong_mask(job: TrainJob, dataset: Any) -> str:
    """Check, on the first batch, that the loss covers exactly the answers; return a description of what was checked.

    The covered tokens are decoded and compared with the answers as read, ignoring whitespace. `dataset` has conversations or preferences: its
    `answers(row)` are the expected answers of each document of a row, None if something was truncated. Raises `TrainingError`.
    """
    batch, tokenizer = job.loader.batch_at(job.step), dataset.tokenizer
    segments, index = batch.segments, batch.index
    assert segments is not None
    assert index is not None
    checked = covered = 0
    for row, number in enumerate(index.tolist()):
        expected_answers = dataset.answers(number)
        if expected_answers is None or not (batch.weights[row] > 0).any():
            continue
        for document, answers in enumerate(expected_answers):
            pair = batch.targets.ndim == 3
            in_document = segments[row, document] == 0 if pair else segments[row] == document
            weights, targets = (t[row, document] if pair else t[row] for t in (batch.weights, batch.targets))
            tokens = targets[in_document & (weights > 0)]
            text = tokenizer.decode(tokens.numpy())
            expected = "".join(tokenizer.decode(tokenizer.encode(a)) for a in answers)
            if text.split() != expected.split() and "".join(text.split()) != "".join(expected.split()):
                raise TrainingError(
                    f"the loss covers {text[:80]!r}, but the answer is {expected[:80]!r} (example {number}, document {document}). The chat template "
                    "does not fit this tokenizer: use another data.chat.template."
                )
            checked, covered = checked + 1, covered + len(tokens)
    return (
        f"{checked} answers of the first batch: the loss covers their {covered:,} tokens and nothing else"
        if checked
        else "not checked: all answers are truncated"
    )


@torch.no_grad()
def refuse_leaks(job: TrainJob) -> str:
    """Check that a document in a packed row does not attend to its neighbours or padding; return a description of what was checked.

    Collective, like a forward pass. Raises `TrainingError` if outputs change with the tokens of another document.
    """
    batch = job.loader.batch_at(job.step)
    if batch.segments is None:
        return "each row is one document"
    if batch.inputs.ndim == 3:  # pairs of rows
        batch = Batch(*(t.flatten(0, 1) for t in (batch.inputs, batch.targets, batch.weights, batch.segments)))
    segments = batch.segments
    assert segments is not None
    if job.mesh.layout.pipeline > 1 or job.mesh.layout.context > 1:
        return "not checked: no process has a whole row"
    rows = batch.inputs.shape[0]
    counts = torch.stack([(segments[i, 1:] != segments[i, :-1]).sum() for i in range(rows)])
    row = int(counts.argmax())
    one = batch.rows(row, row + 1).to(job.policy.device)
    assert one.segments is not None
    last = one.segments == one.segments[one.segments >= 0][-1]  # the last: causal attention hides it from earlier ones anyway
    others = ~last
    vocab: Any = getattr(getattr(job.model, "embed", None), "num_embeddings", None)
    if vocab is None:
        return "not checked: this model has no token embedding"
    changed = replace(one, inputs=torch.where(others, (one.inputs + 1 + one.inputs % 7) % vocab, one.inputs))
    was_training = job.model.training
    job.model.eval()
    try:
        with torch.compiler.set_stance("force_eager"), job.policy.precision.context():
            outputs = [job.model(b.inputs, b.segments).float() for b in (one, changed)]
    finally:
        job.model.train(was_training)
        reshard(job.model)
    a, b = outputs
    if a.shape[:2] == last.shape:  # one output per position
        a, b = a[last], b[last]
    off = float((a - b).abs().max()) if a.numel() else 0.0
    allowed = (1e-2 if job.policy.precision.name == "bf16" else 1e-4) * max(1.0, float(a.abs().max()) if a.numel() else 1.0)
    if not off <= allowed:
        raise TrainingError(
            f"packing leaks: with other tokens in the other documents of a row, a document's outputs change by {off:.3g}. This model does "
            "not limit attention to a document. Use a model that does, or data with one document per row."
        )
    return f"{int(others.sum())} of {others.numel()} positions of a row belong to other documents, and changing them changed outputs by {off:.1g}"
