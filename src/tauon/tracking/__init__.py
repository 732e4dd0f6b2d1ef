"""What happens during a run, as it happens: the event log always, other tools' trackers where the recipe asks for them."""

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
