"""The hash of everything that a source returns: for sources without files, whose content nothing else tells."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["hash_data"]


def hash_data(source: Any, digest: Any) -> None:
    """Update `digest` (of hashlib) with all the data of a source, by its kind of data."""
    output_kind = source.output_kind()
    if output_kind == "text":
        for document in source.documents():
            digest.update(f"\0{document.name}\0{len(document.text)}\0".encode() + document.text.encode("utf-8", "surrogatepass"))
    elif output_kind == "series":
        series = source.series()
        for array in (series.times.astype(np.int64), series.values):
            digest.update(f"\0{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        digest.update("\0".join(series.names).encode())
    elif output_kind == "signals":
        waves = source.signals()
        for wave, name in zip(waves.waves, waves.names, strict=True):
            digest.update(f"\0{name}\0{waves.rate}".encode() + np.ascontiguousarray(wave).tobytes())
        digest.update(repr([waves.targets, waves.label_names, list(waves.transcripts)]).encode())
    elif output_kind == "arrays":
        table = source.arrays()
        for array in (table.features, table.targets):
            digest.update(f"\0{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        digest.update("\0".join((*table.feature_names, "", *table.label_names)).encode())
    elif output_kind == "labelled-text":
        texts = source.labelled_texts()
        digest.update(repr([list(texts.texts), texts.targets.tolist(), texts.label_names]).encode())
    elif output_kind in ("chat", "pairs"):
        digest.update(repr(source.conversations() if output_kind == "chat" else source.pairs()).encode())
    else:
        raise NotImplementedError(f"{type(source).__name__} returns {output_kind} and has no files. Implement `files` or `hash_content`")
