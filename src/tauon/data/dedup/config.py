"""Settings of duplicate removal and of decontamination: `data.dedup` and `data.decontaminate`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tauon.config import Bytes, Config, Count, Fraction

__all__ = ["DecontaminateConfig", "DedupConfig"]


class DedupConfig(Config):
    """Remove documents that repeat an earlier document of the training source, before anything is held out. The first of each cluster stays."""

    kind: Literal["near", "exact"] = "near"
    """near: the sets of shingles of two documents are alike (MinHash-LSH finds the candidates, each is verified); exact: the same text, apart
    from white space and Unicode composition."""
    threshold: Fraction = Field(default=0.8, gt=0, le=1)
    """near: documents are duplicates from this Jaccard similarity of their shingles."""
    shingle: Count = Field(default=5, ge=1, le=64)
    """near: words per shingle. Words are in lower case, without punctuation; where a script has no blanks a character is a word."""
    bins: Literal[64, 128, 256, 512] = 128
    """near: length of a MinHash signature. More bins find more of the pairs near the threshold, and take more time."""
    memory: Bytes = Field(default=512 * 2**20, ge=2**20)
    """Bytes of keys that are sorted at once; the rest waits on disk. The result does not depend on it."""


class DecontaminateConfig(Config):
    """Look for held-out data in the training part: n-grams of words for texts, exact and near copies for images and rows."""

    action: Literal["auto", "drop", "report", "none"] = "auto"
    """drop: training examples that repeat held-out data are left out; report: they are counted, with a warning; none: not looked for.
    auto: drop for text split into documents, report otherwise."""
    ngram: Count = Field(default=13, ge=1, le=64)
    """Texts: words per n-gram, as in GPT-3 (Brown et al. 2020, appendix C). A held-out text that is shorter counts as one n-gram."""
    share: Fraction = Field(default=0.5, gt=0, le=1)
    """Texts: a training text is contaminated if this share of its n-grams is in held-out texts, or if it contains this share of the n-grams
    of one held-out text."""
    against: tuple[str, ...] = ()
    """Texts: more files that must not be trained on, evaluation sets: JSON lines (all strings of a line are one text) or plain text, gzip or zstd too."""
