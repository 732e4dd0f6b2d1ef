"""Predictions for every example of a data set, bit-identical for every batch size.

Matrix kernels choose their blocking by shape, so that one example's output changes in its last bits with the number of rows
beside it. Therefore the model only ever gets one shape: tiles of R rows (8 for token batches, 64 for arrays). Example i is
computed in tile i // R, slot i % R; a last, short tile is padded with copies of its last row at weight zero, whose outputs
are dropped. The batch size is only the number of examples read at once; results do not depend on it.

Computes no metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np

from tauon.errors import DataError
from tauon.metrics import Scorer, Scoring
from tauon.types import Batch, Dataset

if TYPE_CHECKING:
    from torch import Tensor, device, nn

__all__ = ["ARRAY_ROWS", "TOKEN_ROWS", "Predictor", "ScoredTask", "Where", "infer_all", "predict_all", "predict_each", "tile_rows"]

TOKEN_ROWS = 8
ARRAY_ROWS = 64
ONE_THREAD = 400_000
"""Parameters up to which a model of flat rows computes a tile on one CPU thread: several would wait for one another longer than they compute
(on two busy cores a tile took 50 times as long)."""


class Where(TypedDict, total=False):
    """Where a model runs."""

    context: Callable[[], AbstractContextManager[Any]] | None
    """Entered around every forward pass: autocast, for example."""
    device: device | str
    """Device of the model; default: the CPU."""


class Predictor(Protocol):
    """The part of a task that predicts."""

    family: str
    """Family of metrics; part of the record."""

    def predict(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Return one row per example, B first."""
        ...


class ScoredTask(Predictor, Protocol):
    """The part of a task that evaluation uses."""

    def scorer(self, dataset: Dataset, scoring: Scoring) -> Scorer:
        """Return the object that computes metrics from its predictions on this data set."""
        ...


def predict_all(
    model: nn.Module,
    task: Predictor,
    dataset: Dataset,
    *,
    batch: int,
    context: Callable[[], AbstractContextManager[Any]] | None = None,
    device: device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the predictions of `task` for each example, and each example's weight.

    `context` is entered around every forward pass (autocast, for example); `progress` is called with (examples done, all examples). The model
    is put in evaluation mode and every module's training flag is restored, also after an error.

    Returns ({name: N...}, weights N): the weight of a row of tokens is the largest of its tokens' weights.
    Raises DataError when examples differ in shape.
    """
    found: dict[str, list[np.ndarray]] = {}
    weights: list[np.ndarray] = []
    for outputs, weight in predict_each(model, task, dataset, batch=batch, context=context, device=device, progress=progress):
        for name, value in outputs.items():
            found.setdefault(name, []).append(value)
        weights.append(weight)
    return {name: np.concatenate(parts) for name, parts in found.items()}, np.concatenate(weights)


def predict_each(
    model: nn.Module,
    task: Predictor,
    dataset: Dataset,
    *,
    batch: int,
    context: Callable[[], AbstractContextManager[Any]] | None = None,
    device: device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yield the results of `predict_all` tile by tile and in order: for callers that only sum up."""
    import torch

    total, one_thread = len(dataset), _is_small(model, device)
    if total == 0:
        raise DataError("the data set to evaluate on is empty. Hold some data out (data.split), or choose another evaluate.split")
    done = 0
    with torch.no_grad(), _evaluating(model):
        for tile, valid in _tiles(dataset, batch):
            with (context or nullcontext)(), _threads(one_thread and tile.inputs.ndim == 2):
                outputs = task.predict(model, tile.to(device))
            made = _as_arrays(outputs, len(tile), valid)
            yield made, tile.weights[:valid].reshape(valid, -1).amax(1).cpu().numpy().astype(np.float64)
            done += valid
            if progress is not None:
                progress(done, total)


def infer_all(
    model: nn.Module,
    infer: Callable[[Any, Batch], dict[str, Tensor]],
    batch: Batch,
    *,
    context: Callable[[], AbstractContextManager[Any]] | None = None,
    device: device | str = "cpu",
    padded: bool = True,
) -> dict[str, np.ndarray]:
    """Return the results of `infer` (of a task) for every row of one batch, in the same tiles as `predict_each`, if the batch starts at a
    multiple of the tile size. The model must be in evaluation mode.

    Without `padded` a single call gets as many rows as there are: faster for a few, and the last bits of an answer depend on their number.
    """
    import torch

    n = len(batch)
    rows = tile_rows(batch) if padded else n
    values = {f.name: v for f in fields(Batch) if (v := getattr(batch, f.name)) is not None}
    found: dict[str, list[np.ndarray]] = {}
    with torch.no_grad(), _threads(_is_small(model, device) and batch.inputs.ndim == 2):
        for start in range(0, n, rows):
            valid = min(rows, n - start)
            tile = Batch(**{name: value[start : start + valid] for name, value in values.items()})
            tile = tile if valid == rows else _pad(tile, rows)
            with (context or nullcontext)():
                outputs = infer(model, tile if str(device) == "cpu" else tile.to(device))
            for name, value in _as_arrays(outputs, rows, valid).items():
                found.setdefault(name, []).append(value)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def tile_rows(batch: Batch) -> int:
    """Number of rows of a tile of such examples."""
    return ARRAY_ROWS if batch.inputs.is_floating_point() else TOKEN_ROWS


def _as_arrays(outputs: dict[str, Tensor], rows: int, valid: int) -> dict[str, np.ndarray]:
    import torch

    made: dict[str, np.ndarray] = {}
    for name, value in outputs.items():
        if value.shape[:1] != (rows,):
            raise TypeError(
                f"task.predict returned {name!r} of shape {tuple(value.shape)} for {rows} examples; expected {rows} as the first dimension"
            )
        value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value  # numpy has no bfloat16
        made[name] = value[:valid].detach().cpu().numpy()
    return made


def _tiles(dataset: Dataset, batch: int) -> Iterator[tuple[Batch, int]]:
    """Yield (tile of exactly R rows, number of real examples), reading `batch` examples at once."""
    waiting: list[Batch] = []
    count, rows, total = 0, 0, len(dataset)
    for start in range(0, total, batch):
        new = dataset.batch(np.arange(start, min(start + batch, total), dtype=np.int64))
        rows = rows or tile_rows(new)
        waiting.append(new)
        count += len(new)
        if count >= rows:
            joined = _join(waiting)
            whole = count - count % rows
            for first in range(0, whole, rows):
                yield joined.rows(first, first + rows), rows
            count -= whole
            waiting = [joined.rows(whole, whole + count)] if count else []
    if count:
        yield _pad(_join(waiting), rows), count


def _join(parts: list[Batch]) -> Batch:
    import torch

    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Tensor | None] = {}
    for f in fields(Batch):
        values = [getattr(p, f.name) for p in parts]
        shapes = {tuple(v.shape[1:]) for v in values if v is not None}
        if len(shapes) > 1:
            raise DataError(
                f"examples differ in the shape of their {f.name} ({sorted(shapes)}); evaluation needs one shape: pad or crop them"
            )
        joined[f.name] = None if any(v is None for v in values) else torch.cat(values)
    return Batch(**joined)  # type: ignore[arg-type]


def _pad(short: Batch, rows: int) -> Batch:
    """Return `short` padded to `rows` with copies of its last row, weight zero."""
    import torch

    pick = torch.arange(rows).clamp(max=len(short) - 1)
    values = {f.name: getattr(short, f.name) for f in fields(Batch)}
    full = replace(short, **{k: v[pick] for k, v in values.items() if v is not None})
    weights = full.weights.clone()
    weights[len(short) :] = 0
    return replace(full, weights=weights)


def _is_small(model: nn.Module, device: device | str) -> bool:
    return str(device) == "cpu" and sum(p.numel() for p in model.parameters()) <= ONE_THREAD


@contextmanager
def _threads(one: bool) -> Iterator[None]:
    """One thread inside, where `one`; as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    if not one or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every module's training flag is restored (a frozen batch norm stays frozen)."""
    flags = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
