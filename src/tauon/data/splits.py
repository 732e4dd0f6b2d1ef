"""Result of preparing data: up to three data sets, and everything that a report and a later prediction need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tauon.data.tokenizer import Tokenizer
from tauon.types import Dataset, DataSpec

__all__ = ["DataSplits"]


@dataclass
class DataSplits:
    """The prepared data: up to three data sets, and everything that a report and a later prediction need."""

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    spec: DataSpec
    facts: dict[str, Any]
    """For the report: sources, sizes, split, vocabulary, class balance. JSON values only."""
    fingerprint: str
    """sha256 over everything that decides the examples: content, split, tokenizer, length, normalising, augmenting, seed."""
    tokenizer: Tokenizer | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)
    """Preprocessing for later data: the tokenizer, or the normaliser and the label names. JSON values only."""
