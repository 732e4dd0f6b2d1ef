"""Goodput from the event log, in closed form."""

from __future__ import annotations

from typing import Any

import pytest

from tauon.report.work import goodput
from tauon.tracking import timeline


def step(n: int, at: float, seconds: float = 1.0) -> dict[str, Any]:
    return {"kind": "step", "step": n, "time": at, "seconds": seconds}


def test_an_undisturbed_run_is_all_work() -> None:
    found = goodput([step(1, 101.0), step(2, 102.0), step(3, 103.0)])
    assert found == {"goodput": 1.0, "productive_s": 3.0, "wall_s": 3.0}


def test_work_that_was_lost_and_the_time_to_start_again_do_not_count() -> None:
    # killed after step 3; goes on from step 1 at 120 s
    events = [step(1, 101.0), step(2, 102.0), step(3, 103.0), {"kind": "resume", "step": 1, "time": 120.0}, step(2, 121.0), step(3, 122.0)]
    found = goodput(timeline(events))
    assert found is not None
    assert (found["productive_s"], found["wall_s"]) == (3.0, 22.0)
    assert found["goodput"] == pytest.approx(3 / 22)


def test_a_night_between_a_stop_and_going_on_is_left_out() -> None:
    events = [
        step(1, 101.0), {"kind": "interrupted", "step": 1, "time": 101.5, "reason": "SIGTERM: saved at step 1"},
        {"kind": "resume", "step": 1, "time": 50_000.0}, step(2, 50_001.0),
    ]  # fmt: skip
    found = goodput(timeline(events))
    assert found is not None
    assert found["wall_s"] == pytest.approx(2.5)


def test_nothing_is_said_of_a_log_without_steps() -> None:
    assert goodput([]) is None
    assert goodput([{"kind": "resume", "step": 0, "time": 1.0}]) is None
