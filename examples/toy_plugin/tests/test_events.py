"""The kind of data of this package keeps what Tauon promises of every kind."""

from __future__ import annotations

from tauon.config import load_plugins, parse
from tauon.data import SourceConfig
from tauon.models import ModelConfig
from tauon.tasks import Task
from tauon.testing import DataExample, check_data_kind, check_model, check_source, check_task
from tauon.types import DataSpec

load_plugins()
LOGS = {"kind": "machine-log", "machines": 40}
SPEC = DataSpec(input_shape=(12, 5), outputs=2, labels=("runs", "fails"))


def test_events_keep_the_contract() -> None:
    from toy_plugin.events.kind import EventsKind

    example = DataExample(
        data={"source": LOGS, "split": {"validation": 0.2, "test": 0.2}},
        other={**LOGS, "seed": 1},  # another source, alike in form
        changes={"seq_len": 6},  # of each key that the kind reads, another value
    )
    check_data_kind(EventsKind, example)


def test_its_source_model_and_task_keep_theirs() -> None:
    check_source(parse(SourceConfig, LOGS))
    check_model(parse(ModelConfig, {"kind": "event-gru"}), SPEC)
    check_task(parse(Task, {"kind": "event-classification"}), parse(ModelConfig, {"kind": "event-gru"}), SPEC)
