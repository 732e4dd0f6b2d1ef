"""What the time and the network were used for: goodput, restarts, bytes sent a step. Part of the training section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tauon.report.page import facts_table
from tauon.report.records import Records, number

__all__ = ["goodput", "work"]


def goodput(events: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """{"goodput", "productive_s", "wall_s"}: seconds of the steps that count over the seconds from the log's first event to its last.

    Steps that were done again after a failure count once; starting, saving, validating, waiting for a restart and what was lost do
    not count. The time between a stop that was asked for and going on again is nobody's, and is left out. `events`: the timeline.
    """
    steps = [e for e in events if e.get("kind") == "step" and number(e.get("seconds")) is not None]
    times = [t for e in events if (t := number(e.get("time"))) is not None]
    if not steps or len(times) < 2:
        return None
    first = min(times) if events[0].get("kind") != "step" else min(times) - float(events[0].get("seconds", 0.0))
    idle, stopped = 0.0, None
    for e in events:
        when = number(e.get("time"))
        if when is None:
            continue
        if e.get("kind") == "interrupted" and str(e.get("reason", "")).startswith(("SIG", "stopped")):
            stopped = when
        elif stopped is not None:
            idle, stopped = idle + when - stopped, None
    productive = sum(float(e["seconds"]) for e in steps)
    wall = max(max(times) - first - idle, productive)
    return {"goodput": productive / wall if wall else 1.0, "productive_s": productive, "wall_s": wall}


def work(records: Records) -> str:
    """A table; empty where the log has no step."""
    found = goodput(records.events)
    if found is None:
        return ""
    facts: dict[str, Any] = {
        "goodput": f"{found['goodput']:.1%} ({found['productive_s']:,.0f} s of steps that count, of {found['wall_s']:,.0f} s)"
    }
    restarts = len(records.of_kind("resume"))
    if restarts:
        facts["times that it went on from a checkpoint"] = restarts
    layout = next((d.get("value") for d in records.derived if d.get("path") == "parallel"), None)
    if layout and layout != "one process":
        facts["layout"] = layout
    sent = records.of_kind("communication")
    if sent and isinstance(sent[-1].get("bytes"), dict):
        facts["bytes that a process sends in a step that exchanges"] = {k: f"{v:,}" for k, v in sent[-1]["bytes"].items()}
    each = [b for e in records.of_kind("step") if (b := number(e.get("sent_bytes"))) is not None]
    if each:
        facts["bytes that a process sent in all"] = f"{sum(each):,.0f}"
    return "<h3>Time and network</h3>" + facts_table(facts, "Time and network")
