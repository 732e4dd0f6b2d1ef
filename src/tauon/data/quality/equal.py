"""Equal records: within a part, across parts (a leak: the model is asked what it was taught), and equal inputs with different labels."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from tauon.config import register
from tauon.data.quality.base import DataView, Finding, QualityCheck, Severity, counted, examples_of, show
from tauon.data.quality.image_outliers import blank_rows

__all__ = ["EqualRecords", "groups_of_equal"]

SMALL = 0.001
"""Share of held-out records that are copies of training records, below which results hardly change."""


@register("equal-records")
class EqualRecords(QualityCheck):
    """Records that are the same: texts up to case, blanks and Unicode form, rows in every column, images and recordings in every sample."""

    kinds = ("texts", "table", "images", "recordings")
    title = "Equal records"

    def find(self, view: DataView) -> Iterator[Finding]:
        groups = view.once("equal", lambda: groups_of_equal(view))
        leaks, repeats, contrary = [], [], []
        for group in groups:
            train = [i for i in group if view.part_N[i] == "train"]
            held = [i for i in group if view.part_N[i] != "train"]
            leaks += [(h, train[0]) for h in held] if train else []
            repeats += [(a, b) for mine in (train, held) for a, b in pairwise(mine)]
            if view.labels_N is not None and len({int(view.labels_N[i]) for i in group}) > 1:
                contrary.append(tuple(group))
        if leaks:
            share = len(leaks) / max(1, int((view.part_N != "train").sum()))
            message = (
                f"{counted(len(leaks), 'held-out record')} also in the training part ({share:.1%} of the held-out ones): results on such records are too "
                "good. Remove the copies from training, or split by group"
            )
            severity: Severity = "bad" if share >= SMALL else "warn"
            yield Finding("leaks", severity, message, tuple(leaks), examples_of(view, leaks, lambda i: show(view, i)))
        if repeats:
            verb = "record repeats" if len(repeats) == 1 else "records repeat"
            message = f"{len(repeats):,} {verb} an earlier record of the same part: what is there twice counts twice"
            yield Finding("duplicates", "warn", message, tuple(repeats), examples_of(view, repeats, lambda i: show(view, i)))
        if contrary:
            message = (
                f"{counted(len(contrary), 'input')} there with different labels: one of them is wrong, or the data lacks what decides it"
            )
            notes = [" / ".join(dict.fromkeys(view.name_of(i) for i in g)) for g in contrary]
            yield Finding(
                "contradictions", "warn", message, tuple(contrary), examples_of(view, contrary, lambda i: show(view, i), lambda k: notes[k])
            )


def groups_of_equal(view: DataView) -> list[list[int]]:
    """Return the records that are the same as another, each group in order."""
    seen: dict[bytes, list[int]] = {}
    nothing = empty_records(view)
    for i, digest in enumerate(_digests(view)):
        if i in nothing:
            continue
        seen.setdefault(digest, []).append(i)
    return [group for group in seen.values() if len(group) > 1]


def empty_records(view: DataView) -> set[int]:
    """Return the records that show nothing, which are equal but no copies: blank images, empty texts, recordings of zeros."""
    if len(view.texts):
        return {i for i, text in enumerate(view.texts) if not text.strip()}
    if view.images is not None:
        return set(blank_rows(view).tolist())
    return {i for i, wave in enumerate(view.waves) if not np.any(wave)}


def _digests(view: DataView) -> Iterator[bytes]:
    if len(view.texts):
        for text in view.texts:
            yield hashlib.sha256(" ".join(unicodedata.normalize("NFKC", text).casefold().split()).encode("utf-8", "replace")).digest()
    elif view.columns:
        columns = [v.tolist() if isinstance(v, np.ndarray) else v for v in view.columns.values()]
        for row in zip(*columns, strict=True):
            yield hashlib.sha256(repr(row).encode("utf-8", "replace")).digest()
    elif view.images is not None:
        for image in view.images:
            yield hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()
    else:
        for wave in view.waves:
            yield hashlib.sha256(np.ascontiguousarray(wave).tobytes()).digest()
