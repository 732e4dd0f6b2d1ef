"""Every compression step: one file a kind of change. A step registers itself and needs its line here."""

from tauon.compress.steps.quantise import Bf16, Int8, Int8WeightOnly

__all__ = ["Bf16", "Int8", "Int8WeightOnly"]
