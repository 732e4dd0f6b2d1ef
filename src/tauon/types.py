"""The nouns that rooms hand to one another. Nothing here computes.

Shape legend: B batch, T time (tokens), D width, F features, C classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, device

__all__ = ["Batch", "DataSpec", "Dataset", "Metrics", "StepInfo"]

Metrics = Mapping[str, Any]
"""Name to value; a value may still be a tensor on its device, so that nothing waits for it."""


@dataclass(frozen=True)
class Batch:
    """A batch of examples. The first dimension of every tensor is B.

    A weight of zero takes a token or an example out of the loss and out of every metric: padding is nothing else.
    """

    inputs: Tensor
    """Tokens BT (int64), or features B... (float32), or the context BTF of a series (float32), or waveforms BT (float32)."""
    targets: Tensor
    """Next tokens BT (int64), class indices B (int64), values B or BC (float32), what follows the context, BHK (float32), or the
    characters of a transcript, BU (int64), filled up with -1."""
    weights: Tensor
    """Weight in the loss, BT for tokens and B otherwise (float32)."""
    segments: Tensor | None = None
    """Document number of each token, BT (int32); None: every row is one document. Attention never crosses segments."""
    index: Tensor | None = None
    """Number of the example in its data set, B (int64)."""
    lengths: Tensor | None = None
    """Valid positions along the first axis of each input after B, B (int64), where inputs are padded; None: all are."""
    reference: Tensor | None = None
    """Of preferences: log-probabilities of both answers by the model that training starts from, B2 (float32), chosen first. Inputs,
    targets, weights and segments are then B2T."""
    draws: Tensor | None = None
    """Of private training: a number for each row, B (int64), from which its dropout and masks are drawn (`models.randomness`), whatever other
    rows are there."""

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def to(self, device: device | str) -> Batch:
        """The same batch on `device`. To a GPU it goes through pinned memory: only from there does a copy not make the host wait
        for what the GPU is still busy with.
        """
        moved = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        if str(device).startswith("cuda"):
            moved = {k: v.pin_memory() if v.device.type == "cpu" else v for k, v in moved.items()}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in moved.items()})

    def tensors(self) -> list[Tensor]:
        """All that there are."""
        return [v for f in fields(self) if (v := getattr(self, f.name)) is not None]

    def rows(self, start: int, stop: int) -> Batch:
        """Rows [start, stop) as a batch of its own (views, no copy)."""
        cut = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[start:stop] for k, v in cut.items() if v is not None})


@dataclass(frozen=True)
class DataSpec:
    """What a model must know of the data: filled in by `data`, read by `models` and `tasks` when `auto` is resolved."""

    vocab: int | None = None
    """Number of token ids, for text."""
    seq_len: int | None = None
    """Tokens in an example, for text."""
    input_shape: tuple[int, ...] | None = None
    """Shape of one example's features, for arrays: (F,) of a table row, (channels, height, width) of an image."""
    outputs: int | None = None
    """Number of classes, or of regression targets."""
    labels: tuple[str, ...] = ()
    """Names of the classes or targets, in index order."""
    categories: tuple[int, ...] = ()
    """Of tables: number of codes of each column, 0 of a numeric one; empty: all are numeric. Code 0 is "missing or unseen"."""
    sample_rate: int | None = None
    """Of signals: samples a second; `input_shape` is then (samples,)."""
    horizon: int | None = None
    """Of series: steps to predict; `input_shape` is then (steps of context, columns), targets first."""
    target_center: tuple[float, ...] = ()
    """Of values to predict: the model learns (value - target_center) / target_scale, one number a target. Empty: values as they are."""
    target_scale: tuple[float, ...] = ()
    """See `target_center`."""


class Dataset(Protocol):
    """A finite, indexable set of examples. Example `i` of epoch `e` is a pure function of (seed, e, i)."""

    spec: DataSpec
    facts: dict[str, Any]
    """What a reader of the report wants to know: counts, sources, hashes. JSON values only."""

    def __len__(self) -> int: ...

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        """The examples `index` (int64, any order, repeats allowed), on the CPU, augmented as epoch `epoch` is."""
        ...


@dataclass(frozen=True)
class StepInfo:
    """What a hook is told after each optimizer step. Plain Python numbers."""

    step: int
    """Steps done, 1 after the first."""
    total_steps: int
    examples: int
    """Examples seen so far, all ranks together."""
    tokens: int
    """Tokens seen so far (0 where examples are not made of tokens)."""
    metrics: dict[str, Any] = field(default_factory=dict)
