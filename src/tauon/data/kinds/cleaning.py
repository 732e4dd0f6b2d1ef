"""Cleaning of running text for the kinds of data that read it document by document. Data in memory are cleaned in `DataKind.prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tauon.data.blocks import Blocks
from tauon.data.clean.documents import cleaned
from tauon.data.kinds.base import Request
from tauon.data.sources.base import SourceConfig
from tauon.data.split import Part

__all__ = ["clean_documents", "rejected_facts"]


def clean_documents(request: Request, folder: Path, blocks: Blocks) -> tuple[Mapping[Part, SourceConfig], dict[str, Any]]:
    """Return (the sources to read, facts): cleaned, with `folder/rejected`, if the recipe says `data.clean`; otherwise as they are."""
    filters = request.cleaning("text")
    if not filters:
        return request.sources, {}
    config = request.config
    return cleaned(request.sources, filters, folder, blocks, limit=config.clean_limit, held_out=config.clean_held_out)


def rejected_facts(made: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what was recorded about cleaning, and where the records are that were left out for any reason."""
    found = {name: made[name] for name in ("clean", "notes") if name in made}
    return found | ({"rejected": str(folder)} if folder.is_dir() else {})
