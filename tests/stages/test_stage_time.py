"""`train.time` bounds steps and validation together: counted, with a clock that is made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tauon.config import parse
from tauon.plan.context import VALIDATION_SHARE
from tauon.plan.steps import by_time, validate_every
from tauon.stages.training_record import TrainingRecord
from tauon.train import TrainConfig
from tauon.types import StepInfo


def record(time: str | None, examples: int, batch: int, every: int) -> tuple[TrainingRecord, list[str]]:
    """A record of a run, without a log or a writer, and the notes that it prints."""
    notes: list[str] = []
    made: Any = TrainingRecord.__new__(TrainingRecord)
    made.config = parse(TrainConfig, {"batch": batch} | ({"time": time} if time else {"steps": 10}))
    made.splits = SimpleNamespace(validation=range(examples))
    made.plan = SimpleNamespace(validate_every=every)
    made.at_most = None
    made.on_event = lambda kind, message: notes.append(message)
    return made, notes


def job() -> Any:
    return SimpleNamespace(notes={}, mesh=SimpleNamespace(world=SimpleNamespace(gather=lambda value: [value])))


@pytest.mark.parametrize("seconds", [0.01, 0.3, 3.0])
def test_all_validations_together_take_their_share_of_the_time(seconds: float) -> None:
    budget, batch, examples = 60.0, 32, 100_000
    steps = int(budget * (1 - VALIDATION_SHARE) / seconds)
    every = max(5, -(-steps // 10))
    made, notes = record("60s", examples, batch, every)
    mine = job()
    made.bound_validation(mine, StepInfo(every, steps, 0, 0, {"seconds": seconds}))
    assert made.at_most is not None and made.at_most < examples and notes
    forward = seconds / batch / 3
    total = -(-steps // every) * made.at_most * forward + steps * seconds
    assert total <= budget * 1.02
    made.bound_validation(mine, StepInfo(2 * every, steps, 0, 0, {"seconds": 100 * seconds}))
    assert mine.notes["validate_examples"] == made.at_most  # decided once


def test_validation_that_fits_or_has_no_limit_is_whole() -> None:
    for time, seconds in (("60s", 0.001), (None, 10.0)):
        made, notes = record(time, 500, 32, 50)
        made.bound_validation(job(), StepInfo(50, 100, 0, 0, {"seconds": seconds}))
        assert made.at_most in (None, 500) and not notes


@pytest.mark.parametrize(("seconds", "steps", "every"), [(0.1, 510, 51), (10.0, 5, 5), (40.0, 1, 1)])
def test_steps_leave_time_for_validation_and_few_steps_are_validated_rarely(seconds: float, steps: int, every: int) -> None:
    context: Any = SimpleNamespace(
        measure=lambda plan, budget: seconds, device=SimpleNamespace(type="meta"), requested={"compile": False, "time": 60.0}, model=None,
        decided={"train.precision": "fp32", "train.microbatch": 1}, on_note=lambda message: None,
        config=SimpleNamespace(train=SimpleNamespace(validate_every=None)),
    )  # fmt: skip
    context.device = SimpleNamespace(type="cpu")
    threads = torch.get_num_threads()
    decision = by_time(context, 60.0)
    torch.set_num_threads(threads)
    assert decision.value == steps
    context.decided["train.steps"] = decision.value
    assert validate_every(context).value == every
