"""The event log, which every run writes, and trackers of other tools that a recipe can add."""

from tauon.tracking.events import EventLog, nothing_logged, read_events, timeline
from tauon.tracking.mlflow import MlflowConfig
from tauon.tracking.tensorboard import TensorBoardConfig
from tauon.tracking.tracker import CsvConfig, Tracker, TrackerConfig, guard
from tauon.tracking.wandb import WandbConfig

__all__ = [
    "CsvConfig",
    "EventLog",
    "MlflowConfig",
    "TensorBoardConfig",
    "Tracker",
    "TrackerConfig",
    "WandbConfig",
    "guard",
    "nothing_logged",
    "read_events",
    "timeline",
]
