"""Hooks that observe training without changing it: speed, layers, the first step."""

from tauon.train.hooks.first_step import Moved, refuse_leaks, refuse_wrong_mask, watch_first_step
from tauon.train.hooks.layers import LayerLook, complaints, lasting_complaints, watch_layers
from tauon.train.hooks.meter import Meter, memory_mb

__all__ = [
    "LayerLook", "Meter", "Moved", "complaints", "lasting_complaints", "memory_mb", "refuse_leaks", "refuse_wrong_mask", "watch_first_step",
    "watch_layers",
]  # fmt: skip
