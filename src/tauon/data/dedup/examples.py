"""Training examples that repeat held-out ones, of data in memory: texts by n-grams, images and rows of numbers by exact and near copies.

Near copies are looked for in images alone, and reported; they are left out if `data.decontaminate.action` is drop, like exact ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.dedup.against import evaluation_texts
from tauon.data.dedup.config import DecontaminateConfig
from tauon.data.dedup.contamination import HeldOut
from tauon.data.dedup.images import Repeats, copies, near_copies
from tauon.data.split import PARTS, Part

__all__ = ["Compared", "repeats"]

Compared = Sequence[str] | NDArray[Any]
"""What of the examples of a part is compared: texts; images (N, C, H, W), near copies only if they are bytes; or rows of numbers (N, F)."""
_MOST_PAIRS = 2 * 10**10
"""Near copies of images are not looked for among more pairs of a training and a held-out image."""
_SHOWN = 10


def repeats(parts: Mapping[Part, Compared], config: DecontaminateConfig) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Return (places of the training examples that repeat held-out ones, facts for the report). Nothing is compared if `action` is none.

    Args:
        parts: what is compared, of each part; with `train`.
        config: what counts.
    """
    held = [part for part in PARTS if part != "train" and part in parts]
    train = parts["train"]
    if config.action == "none" or not (held or config.against):
        return np.empty(0, np.int64), {}
    if not isinstance(train, np.ndarray):
        return _texts(parts, held, config)
    found: set[int] = set()
    facts: dict[str, Any] = {}
    for part in held:
        mine = np.asarray(parts[part])
        kinds = {"exact": copies(train, mine)}
        if (
            train.ndim == 4
            and train.dtype == mine.dtype == np.uint8
            and train.shape[1:] == mine.shape[1:]
            and len(train) * len(mine) <= _MOST_PAIRS
        ):
            kinds["near"] = _except(near_copies(train, mine), kinds["exact"])
        facts[part] = {
            kind: {"train": len(r.train), "held_out": len(np.unique(r.held)), "examples": _pairs(r)} for kind, r in kinds.items()
        }
        found.update(i for r in kinds.values() for i in r.train.tolist())
    return np.array(sorted(found), np.int64), facts


def _except(found: Repeats, others: Repeats) -> Repeats:
    kept = ~np.isin(found.train, others.train)
    return Repeats(found.train[kept], found.held[kept])


def _pairs(found: Repeats) -> list[list[int]]:
    return [[int(a), int(b)] for a, b in zip(found.train[:_SHOWN], found.held[:_SHOWN], strict=True)]


def _texts(parts: Mapping[Part, Compared], held: Sequence[Part], config: DecontaminateConfig) -> tuple[NDArray[np.int64], dict[str, Any]]:
    names = [f"{part} {i}" for part in held for i in range(len(parts[part]))]
    texts = [str(text) for part in held for text in parts[part]]
    for name, text in evaluation_texts(config):
        names.append(name)
        texts.append(text)
    found = HeldOut(texts, config.ngram).find(map(str, parts["train"]), config.share)
    examples = [{"train": c.text, "of": names[c.of], "share": round(c.share, 4), "contains": round(c.contains, 4)} for c in found[:_SHOWN]]
    facts = {"ngram": config.ngram, "share": config.share, "held_out_texts": len(texts), "found": len(found), "examples": examples}
    return np.array([c.text for c in found], np.int64), facts
