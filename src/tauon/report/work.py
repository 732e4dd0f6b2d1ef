"""Use of time and network: goodput, restarts, bytes sent per step. Part of the training section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tauon.report.page import facts_table
from tauon.report.records import Records, number

__all__ = ["goodput", "work"]


def goodput(events: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Return {"goodput", "productive_s", "wall_s"}: seconds of useful steps over the seconds from the first event to the last.

    Steps that were repeated after a failure count once; starting, saving, validating, waiting for a restart and lost work do not count as
    useful. Time between a requested stop and the resume is excluded. `events`: the timeline.
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
    """Return a table of time and network use; empty if the log has no step."""
    use = goodput(records.events)
    if use is None:
        return ""
    facts: dict[str, Any] = {"goodput": f"{use['goodput']:.1%} ({use['productive_s']:,.0f} s of useful steps in {use['wall_s']:,.0f} s)"}
    restarts = len(records.of_kind("resume"))
    if restarts:
        facts["resumes from a checkpoint"] = restarts
    layout = next((d.get("value") for d in records.derived if d.get("path") == "parallel"), None)
    if layout and layout != "one process":
        facts["layout"] = layout
    sent = records.of_kind("communication")
    if sent and isinstance(sent[-1].get("bytes"), dict):
        facts["bytes sent per process in a step that communicates"] = {k: f"{v:,}" for k, v in sent[-1]["bytes"].items()}
    each = [b for e in records.of_kind("step") if (b := number(e.get("sent_bytes"))) is not None]
    if each:
        facts["bytes sent per process in total"] = f"{sum(each):,.0f}"
    return "<h3>Time and network</h3>" + facts_table(facts, "Time and network")
