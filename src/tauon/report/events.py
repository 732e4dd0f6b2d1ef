"""The event log as the report needs it: one list, killed attempts dropped. Draws nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["load_timeline"]


def load_timeline(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """(events as if the run had never been killed, a sentence for each thing wrong with the file)."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], []
    except OSError as err:
        return [], [f"{path.name} cannot be read and is left out: {err.strerror or err}"]
    kept: list[dict[str, Any]] = []
    damaged = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            damaged += number < len(lines)  # a half last line is what a killed writer leaves
            continue
        if not isinstance(event, dict):
            damaged += 1
            continue
        if event.get("kind") == "resume" and isinstance(event.get("step"), (int, float)):
            kept = [e for e in kept if not (isinstance(e.get("step"), (int, float)) and e["step"] > event["step"])]
        kept.append(event)
    return kept, [f"{path.name}: {damaged} damaged lines are left out."] if damaged else []
