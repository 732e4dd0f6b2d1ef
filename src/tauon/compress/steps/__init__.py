"""Every compression step: one file a kind of change. A step registers itself and needs its line here."""

from tauon.compress.steps.graph import Int8Graph
from tauon.compress.steps.int4 import Int4WeightOnly
from tauon.compress.steps.low_rank import LowRank
from tauon.compress.steps.quantise import Bf16, Int8, Int8WeightOnly
from tauon.compress.steps.sparsity import Magnitude, Wanda
from tauon.compress.steps.structured import Structured

__all__ = ["Bf16", "Int4WeightOnly", "Int8", "Int8Graph", "Int8WeightOnly", "LowRank", "Magnitude", "Structured", "Wanda"]
