"""A general compressor as a language model: the bits that xz needs for the text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauon.evaluate.baselines.base import Baseline
from tauon.types import Batch, Dataset

__all__ = ["compressor"]

_MOST_TOKENS = 8_000_000


def compressor(dataset: Dataset, tokenizer: Any) -> Baseline | None:
    """The compressor xz (preset 9, extreme) on the evaluated text alone: it has seen no other text. Its bits are shared out evenly over the bytes.

    None for an empty text, a very long one, and a Python that was built without lzma.

    Args:
        dataset: rows of tokens with targets.
        tokenizer: writes their text.
    """
    try:
        import lzma
    except ImportError:
        return None
    ids: list[np.ndarray] = []
    seen = 0
    for start in range(0, len(dataset), 64):
        batch = dataset.batch(np.arange(start, min(start + 64, len(dataset)), dtype=np.int64))
        ids.append(batch.targets[batch.weights > 0].numpy())
        seen += len(ids[-1])
        if seen > _MOST_TOKENS:
            return None
    text = tokenizer.decode(np.concatenate(ids).tolist()).encode() if ids else b""
    if not text:
        return None
    nats_a_byte = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) * 8 * math.log(2) / len(text)
    bytes_V = torch.as_tensor(tokenizer.token_bytes)

    def predict(batch: Batch) -> dict[str, Tensor]:
        there = batch.weights > 0
        n_bytes = (bytes_V[batch.targets] * there).sum(1)
        return {"nll": n_bytes.double() * nats_a_byte, "tokens": there.sum(1), "bytes": n_bytes}

    return Baseline("xz", f"The compressor xz on the {len(text):,} bytes of this text; it has seen no other.", predict)
