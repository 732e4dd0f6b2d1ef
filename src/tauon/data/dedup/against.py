"""Evaluation sets that must not be trained on: files of `data.decontaminate.against`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tauon.data.dedup.config import DecontaminateConfig
from tauon.data.files import expand, read_bytes
from tauon.data.text_files import read_text
from tauon.errors import DataError

__all__ = ["evaluation_files", "evaluation_texts"]


def evaluation_files(config: DecontaminateConfig) -> list[Path]:
    """Return the files, in order. `DataError` if one is missing."""
    return [path for pattern in config.raw_value("against") for path, _ in expand(pattern)]


def evaluation_texts(config: DecontaminateConfig) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each held-out text: of each line of JSON lines, all strings joined; of each line of other files."""
    for path in evaluation_files(config):
        text = read_text(read_bytes(path), str(path))
        is_json = any(suffix in (".jsonl", ".json", ".ndjson") for suffix in path.suffixes)
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            if is_json:
                try:
                    line = " ".join(_strings(json.loads(line)))
                except ValueError as err:
                    raise DataError(
                        f"{path}: line {number} is not JSON ({err}). Evaluation sets are JSON lines, or text without .json in its name"
                    ) from None
            yield f"{path.name}:{number}", line


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for below in value.values():
            yield from _strings(below)
    elif isinstance(value, list):
        for below in value:
            yield from _strings(below)
