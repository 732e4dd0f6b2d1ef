"""The data types that packages exchange. Nothing here computes.

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
"""Name to value; a value may still be a tensor on its device, so that the host does not wait for it."""


@dataclass(frozen=True)
class Batch:
    """A batch of examples. The first dimension of every tensor is B.

    A weight of zero excludes a token or an example from the loss and from every metric: padding has weight zero.
    """

    inputs: Tensor
    """Tokens BT (int64), or features B... (float32), or the context BTF of a series (float32), or waveforms BT (float32)."""
    targets: Tensor
    """Next tokens BT (int64), class indices B (int64), values B or BC (float32), the steps after the context, BHK (float32), or the
    characters of a transcript, BU (int64), padded with -1."""
    weights: Tensor
    """Weight in the loss, BT for tokens and B otherwise (float32)."""
    segments: Tensor | None = None
    """Document number of each token, BT (int32); None: every row is one document. Attention never crosses segments."""
    index: Tensor | None = None
    """Number of the example in its data set, B (int64)."""
    lengths: Tensor | None = None
    """Number of valid positions along the first axis of each input after B, B (int64), if inputs are padded; None: all are valid."""
    reference: Tensor | None = None
    """For preferences: log-probabilities of both answers by the reference model, B2 (float32), chosen first. Inputs,
    targets, weights and segments are then B2T."""
    draws: Tensor | None = None
    """For private training: a number for each row, B (int64), from which its dropout and masks are drawn (`models.randomness`), independent of
    other rows."""

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def to(self, device: device | str) -> Batch:
        """Return the same batch on `device`. To a GPU it is copied from pinned memory: only then does the host not wait for the GPU's
        current work.
        """
        moved = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        if str(device).startswith("cuda"):
            moved = {k: v.pin_memory() if v.device.type == "cpu" else v for k, v in moved.items()}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in moved.items()})

    def tensors(self) -> list[Tensor]:
        """All tensors that are not None."""
        return [v for f in fields(self) if (v := getattr(self, f.name)) is not None]

    def rows(self, start: int, stop: int) -> Batch:
        """Return rows [start, stop) as a batch (views, no copy)."""
        cut = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[start:stop] for k, v in cut.items() if v is not None})


@dataclass(frozen=True)
class DataSpec:
    """Properties of the data that a model needs: filled in by `data`, read by `models` and `tasks` when `auto` is resolved."""

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
    """For tables: number of codes of each column, 0 for a numeric one; empty: all are numeric. Code 0 is "missing or unseen"."""
    sample_rate: int | None = None
    """For signals: sampling rate in Hz; `input_shape` is then (samples,)."""
    horizon: int | None = None
    """For series: steps to predict; `input_shape` is then (steps of context, columns), targets first."""
    target_center: tuple[float, ...] = ()
    """For regression: the model predicts (value - target_center) / target_scale, one number per target. Empty: unscaled values."""
    target_scale: tuple[float, ...] = ()
    """See `target_center`."""


class Dataset(Protocol):
    """A finite, indexable set of examples. Example `i` of epoch `e` is a pure function of (seed, e, i)."""

    spec: DataSpec
    facts: dict[str, Any]
    """Facts for the report: counts, sources, hashes. JSON values only."""

    def __len__(self) -> int: ...

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        """Return the examples `index` (int64, any order, repeats allowed), on the CPU, augmented as in epoch `epoch`."""
        ...


@dataclass(frozen=True)
class StepInfo:
    """Argument of a hook after each optimizer step. Plain Python numbers."""

    step: int
    """Steps done, 1 after the first."""
    total_steps: int
    examples: int
    """Examples seen so far, over all ranks."""
    tokens: int
    """Tokens seen so far (0 if examples are not made of tokens)."""
    metrics: dict[str, Any] = field(default_factory=dict)
