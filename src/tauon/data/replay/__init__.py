"""Replay of the training preprocessing on new raw examples, one file per kind of data."""

from tauon.data.replay.arrays import ArrayReplay
from tauon.data.replay.base import Replay, Rows, register_replay, replay_kinds, replay_of
from tauon.data.replay.examples import SeriesReplay, SignalReplay, TextReplay
from tauon.data.replay.records import inputs_from_pictures, inputs_from_records, named, outputs_in_units, rows_of
from tauon.data.replay.tables import TableReplay

__all__ = [
    "ArrayReplay",
    "Replay",
    "Rows",
    "SeriesReplay",
    "SignalReplay",
    "TableReplay",
    "TextReplay",
    "inputs_from_pictures",
    "inputs_from_records",
    "named",
    "outputs_in_units",
    "register_replay",
    "replay_kinds",
    "replay_of",
    "rows_of",
]
