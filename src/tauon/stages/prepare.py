"""The prepare stage: reads, cleans and splits raw files into shards or arrays, and writes `data.json` for the report and
`croissant.json`, the data card.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tauon.artifacts import atomic_write, write_json
from tauon.data import DataStamp, picture_sheet
from tauon.errors import DataError
from tauon.report import Records
from tauon.report.croissant import CARD, HASHED, data_card
from tauon.stages.context import Context

__all__ = ["prepare_stage"]


def prepare_stage(ctx: Context) -> dict[str, Any]:
    """Prepare the data of the recipe. Collective; rank 0 writes the records."""
    files = stamp_of(ctx) if ctx.world.leads else None  # before reading, so that a change during reading is noticed
    splits = ctx.splits
    if ctx.world.leads:
        write_json(ctx.run.folder / "data.json", splits.facts)
        if ctx.recipe.privacy is None:  # they hold raw records, which a private run's folder must not
            _copy_rejected(splits.facts.get("rejected"), ctx.run.folder)
        report_facts(splits.facts, ctx.on_event)
        sheet = picture_sheet(splits.train, ctx.recipe.seed)
        if sheet is not None:
            atomic_write(ctx.run.folder / "examples.png", sheet)
    ctx.run.update_manifest(data={"fingerprint": splits.fingerprint} | ({"files": files.to_json()} if files is not None else {}))
    if ctx.world.leads:
        _write_card(ctx.run.folder)
    return {"data": ctx.prepared}


def _write_card(folder: Path) -> None:
    """Write the data card, unless many files would have to be hashed for it; then one of other data is removed."""
    card = data_card(Records.read(folder), HASHED)
    if card is None:
        (folder / CARD).unlink(missing_ok=True)
    else:
        atomic_write(folder / CARD, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def _copy_rejected(source: str | None, run: Path) -> None:
    """Copy the records that cleaning has rejected, with the reasons, into the run's folder `rejected`, one file for each source."""
    names = {path.name for path in Path(source).glob("*.jsonl")} if source is not None else set()
    for old in (run / "rejected").glob("*.jsonl"):
        if old.name not in names:
            old.unlink()
    for name in sorted(names):
        (run / "rejected").mkdir(exist_ok=True)
        atomic_write(run / "rejected" / name, (Path(str(source)) / name).read_bytes())


def report_facts(facts: Mapping[str, Any], on_event: Callable[..., None], most: int = 10) -> None:
    """Report notes and warnings about the data: rows left out, how it was read, what looks wrong."""
    left_out = [f"left out ({part}): {line}" for part, lines in facts.get("left_out", {}).items() for line in lines]
    for kind, messages in (("note", left_out), ("note", facts.get("notes", [])), ("warning", facts.get("warnings", []))):
        for message in messages[:most]:
            on_event(kind, message=message)
        if len(messages) > most:
            on_event(kind, message=f"and {len(messages) - most:,} more: see data.json")


def stamp_of(ctx: Context) -> DataStamp | None:
    """Return the stamp of the data files; None if they cannot be read (preparing the data then raises a better error)."""
    try:
        return DataStamp.of(ctx.recipe.data)
    except DataError:
        return None
