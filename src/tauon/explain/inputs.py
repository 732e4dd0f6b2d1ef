"""`Cases` of a model and a batch of one kind of data: which numbers an output is attributed to, and what stands for an absent one.

| kind | numbers | a feature | absent |
|---|---|---|---|
| images | pixels | a pixel over its channels | mean of the background, by channel; else 0 |
| tables | columns | a column, or all columns made of one | mean of the background; else 0 |
| texts | embeddings of tokens | a token | the mean embedding of the vocabulary |
| texts, bag of n-grams | token ids | a token | deleted: the text closes up |
| recordings | log-mel energies | a band of a frame | 0: the mean of the band in this recording |
| series | steps x columns | a step of a column | the column's mean in this window |

Explained outputs: logits of classes; values; of a forecast, the mean of each target over the horizon; of a language model, the logits of the
next token; of quantiles, the middle one. All in float32, also for models that were trained in less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tauon.errors import DataError
from tauon.explain.base import Cases, Link
from tauon.types import Batch, DataSpec

__all__ = ["Reading", "cases_of", "regions_of_grid"]

ABSENT = -1
"""A token that is deleted."""


def cases_of(
    model: nn.Module, input_kind: str, spec: DataSpec, batch: Batch, *, targets: Tensor | None = None, background: Batch | None = None,
    groups: Sequence[int] | None = None, reading: Reading | None = None,
) -> Cases:  # fmt: skip
    """Return the cases of a batch.

    Args:
        model: in evaluation mode, as `stages.load` returns it.
        input_kind: `Task.input_kind`: arrays, labelled-text, signals, series, tokens.
        spec: properties of the data.
        batch: the examples. Of language models, prompts: the token that follows each row is explained.
        targets: output that is explained, N (int64); None: the largest (of a forecast, the first series).
        background: examples of the training data.
        groups: for tables: number of the column of the source that each column was made of; None: each is one of its own.
        reading: what the outputs mean; None: classes where the data has several, and of quantiles the middle one.

    Raises:
        DataError: the kind of data cannot be explained, or a target does not exist.
    """
    makers: dict[str, Callable[..., dict[str, Any]]] = {
        "arrays": _arrays, "labelled-text": _texts, "signals": _signals, "series": _series, "tokens": _tokens,
    }  # fmt: skip
    if input_kind not in makers:
        raise DataError(f"data of kind {input_kind!r} cannot be explained; known: {', '.join(makers)}")
    device = next((p.device for p in model.parameters()), batch.inputs.device)
    batch = batch.to(device)
    reading = reading or Reading()
    made = makers[input_kind](model, spec, batch, None if background is None else background.to(device), groups, reading)
    made = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in made.items()}
    made |= {} if reading.link is None else {"link": reading.link}
    n = len(batch)
    first = Cases(model=model, targets=torch.zeros(n, dtype=torch.int64, device=device), **made)
    with torch.no_grad():
        shown = n if targets is None else min(n, 1)
        outputs = first.answers(first.inputs[:shown], torch.arange(shown, device=device))
    if targets is None:
        targets = first.targets if input_kind == "series" else outputs.argmax(1)
    if len(targets) != n or (n and not 0 <= int(targets.min()) <= int(targets.max()) < outputs.shape[1]):
        raise DataError(f"targets {targets.tolist()[:10]}: expected {n} numbers from 0 to {outputs.shape[1] - 1}, one for each example")
    return replace(first, targets=targets.to(device))


def regions_of_grid(grid: tuple[int, ...], cells: tuple[int, ...]) -> Tensor:
    """Return the region of each feature, F (int64): the grid cut into about `cells` blocks along each axis.

    >>> regions_of_grid((2, 4), (1, 2)).tolist()
    [0, 0, 1, 1, 0, 0, 1, 1]
    """
    region = torch.zeros(grid, dtype=torch.int64)
    for axis, (size, most) in enumerate(zip(grid, cells, strict=True)):
        n = max(1, min(size, most))
        along = torch.arange(size) * n // size
        region = region * n + along.view(*(-1 if a == axis else 1 for a in range(len(grid))))
    return region.flatten()


@dataclass(frozen=True)
class Reading:
    """What the outputs of a model mean."""

    link: Link | None = None
    """What makes probabilities of them; None: softmax where the data has several classes."""
    quantiles: tuple[float, ...] = ()
    """Levels that the model predicts of each target."""

    def values(self, out_MO: Tensor, each: int = 1) -> Tensor:
        """Return one output for each target, MK: of quantiles (`each` of a target) the median, or else the one next to it."""
        n = len(self.quantiles) or each
        if n == 1:
            return out_MO
        middle = min(range(n), key=lambda q: abs(self.quantiles[q] - 0.5)) if self.quantiles else n // 2
        found: Tensor = out_MO.unflatten(-1, (-1, n)).sort(-1).values[..., middle]  # sorted as predictions are
        return found


def _link(spec: DataSpec) -> str:
    return "softmax" if spec.labels and spec.horizon is None and not spec.target_scale and (spec.outputs or 0) > 1 else "identity"


def _arrays(
    model: nn.Module, spec: DataSpec, batch: Batch, background: Batch | None, groups: Sequence[int] | None, reading: Reading
) -> dict[str, Any]:
    x = batch.inputs.float()
    around = None if background is None else background.inputs.float()

    def outputs(x_M: Tensor, rows: Tensor) -> Tensor:
        return reading.values(model(x_M).float().flatten(1))

    shape = tuple(x.shape[1:])
    common: dict[str, Any] = {"inputs": x, "outputs": outputs, "background": around, "link": _link(spec)}
    if len(shape) == 3:  # an image: channels, height, width
        C, H, W = shape
        mean = x.new_zeros(1, C, 1, 1) if around is None else around.mean((0, 2, 3), keepdim=True)
        features = torch.arange(H * W).view(1, H, W)
        regions = regions_of_grid((H, W), (8, 8))
        return common | {"baselines": mean.expand(1, C, H, W), "features": features, "grid": (H, W), "kind": "image", "regions": regions}
    baselines = x.new_zeros(1, *shape) if around is None else around.mean(0, keepdim=True)
    if len(shape) != 1:
        n = x[0].numel()
        return common | {"baselines": baselines, "features": torch.arange(n).view(shape), "grid": shape, "kind": "array"}
    of = torch.arange(shape[0]) if groups is None else torch.tensor(list(groups), dtype=torch.int64)
    coded = any(spec.categories)
    if coded:  # a mean of codes is no code: the most frequent one
        codes = torch.tensor([n > 0 for n in spec.categories], device=x.device)
        common_code = x.new_zeros(1, *shape) if around is None else around.mode(0).values.unsqueeze(0)
        baselines = torch.where(codes, common_code, baselines)
    grid = (int(of.max()) + 1,)
    return common | {"baselines": baselines, "features": of, "grid": grid, "kind": "table", "differentiable": not coded}


def _series(
    model: nn.Module, spec: DataSpec, batch: Batch, background: Batch | None, groups: Sequence[int] | None, reading: Reading
) -> dict[str, Any]:
    x = batch.inputs.float()
    T, K = x.shape[1:]
    targets = max(1, len(spec.labels))

    def outputs(x_M: Tensor, rows: Tensor) -> Tensor:
        out_MHO: Tensor = model(x_M).float()
        return reading.values(out_MHO, out_MHO.shape[2] // targets).mean(1)

    return {
        "inputs": x, "outputs": outputs, "baselines": x.mean(1, keepdim=True).expand_as(x), "features": torch.arange(T * K).view(T, K),
        "grid": (T, K), "kind": "series", "regions": regions_of_grid((T, K), (min(T, 12), K)),
        "background": None if background is None else background.inputs.float(),
    }  # fmt: skip


def _signals(
    model: Any, spec: DataSpec, batch: Batch, background: Batch | None, groups: Sequence[int] | None, reading: Reading
) -> dict[str, Any]:
    if not hasattr(model, "from_features"):
        raise DataError(
            f"{type(model).__name__} does not offer its outputs from features (`from_features`), so recordings cannot be explained"
        )
    lengths = torch.full((len(batch),), batch.inputs.shape[1], device=batch.inputs.device) if batch.lengths is None else batch.lengths
    with torch.no_grad():
        mel_NSM, frames_N = model.features(batch.inputs, lengths)
    S, M = mel_NSM.shape[1:]

    def outputs(x_M: Tensor, rows: Tensor) -> Tensor:
        out: Tensor = model.from_features(x_M, frames_N[rows]).float()
        return out

    valid = (torch.arange(S, device=frames_N.device) < frames_N.unsqueeze(1)).unsqueeze(-1).expand(-1, -1, M).flatten(1)
    return {
        "inputs": mel_NSM, "outputs": outputs, "baselines": torch.zeros_like(mel_NSM[:1]), "features": torch.arange(S * M).view(S, M),
        "grid": (S, M), "kind": "audio", "regions": regions_of_grid((S, M), (12, 5)), "valid": valid, "link": _link(spec),
    }  # fmt: skip


def _texts(
    model: Any, spec: DataSpec, batch: Batch, background: Batch | None, groups: Sequence[int] | None, reading: Reading
) -> dict[str, Any]:
    tokens_NT, segments = batch.inputs, batch.segments
    valid = torch.ones_like(tokens_NT, dtype=torch.bool) if segments is None else segments >= 0
    T = tokens_NT.shape[1]
    common: dict[str, Any] = {"grid": (T,), "kind": "text", "valid": valid, "link": _link(spec)}
    if not _reads_embeddings(model, tokens_NT[:1], None if segments is None else segments[:1]):

        def of_tokens(x_M: Tensor, rows: Tensor) -> Tensor:
            keep = x_M >= 0
            order = (~keep).long().argsort(dim=1, stable=True)  # what is kept moves to the front
            tokens = x_M.gather(1, order).clamp(min=0).long()
            there = keep.gather(1, order)
            out: Tensor = model(tokens, torch.where(there, 0, -1).to(torch.int32)).float()
            return out

        ids = torch.where(valid, tokens_NT, ABSENT).to(torch.float64)
        baselines = torch.full((1, T), float(ABSENT), dtype=torch.float64)
        features = torch.arange(T)
        return common | {"inputs": ids, "outputs": of_tokens, "baselines": baselines, "features": features, "differentiable": False}

    def outputs(x_M: Tensor, rows: Tensor) -> Tensor:
        out: Tensor = _with_embeddings(model, x_M, tokens_NT[rows], None if segments is None else segments[rows]).float()
        return out

    return common | _embeddings(model, tokens_NT) | {"outputs": outputs}


def _tokens(
    model: Any, spec: DataSpec, batch: Batch, background: Batch | None, groups: Sequence[int] | None, reading: Reading
) -> dict[str, Any]:
    tokens_NT = batch.inputs
    lengths = torch.full((len(batch),), tokens_NT.shape[1], device=tokens_NT.device) if batch.lengths is None else batch.lengths

    def outputs(x_M: Tensor, rows: Tensor) -> Tensor:
        hidden = _with_embeddings(model, x_M, tokens_NT[rows], None)
        last = hidden[torch.arange(len(rows), device=rows.device), lengths[rows] - 1]
        out: Tensor = model.logits(last).float()
        return out

    valid = torch.arange(tokens_NT.shape[1], device=tokens_NT.device) < lengths.unsqueeze(1)
    common = {"grid": (tokens_NT.shape[1],), "kind": "text", "valid": valid, "link": "softmax"}
    return common | _embeddings(model, tokens_NT) | {"outputs": outputs}


def _embeddings(model: Any, tokens_NT: Tensor) -> dict[str, Any]:
    with torch.no_grad():
        x = model.embed(tokens_NT).float()
        absent = model.embed.weight.float().mean(0).view(1, 1, -1).expand(1, tokens_NT.shape[1], -1)
    return {"inputs": x, "baselines": absent, "features": torch.arange(tokens_NT.shape[1]).view(-1, 1)}


def _reads_embeddings(model: Any, tokens: Tensor, segments: Tensor | None) -> bool:
    """Return whether the model reads its tokens only through the module `embed`."""
    calls: list[int] = []
    table = getattr(model, "embed", None)
    if not isinstance(table, nn.Embedding):
        return False
    handle = table.register_forward_hook(lambda *_: calls.append(1))
    try:
        with torch.no_grad():
            model(tokens, segments)
    finally:
        handle.remove()
    return len(calls) == 1


def _with_embeddings(model: Any, x_MTD: Tensor, tokens_MT: Tensor, segments_MT: Tensor | None) -> Tensor:
    """Run the model with these embeddings in place of those of the tokens."""
    handle = model.embed.register_forward_hook(lambda *_: x_MTD)
    try:
        out: Tensor = model(tokens_MT, segments_MT)
    finally:
        handle.remove()
    return out
