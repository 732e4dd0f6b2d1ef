"""Many processes, one computation: meshes, sharding, parameter servers, low-communication training.

Level 1: knows modules, tensors and processes; no recipe, no dataset, no loop.
"""

from tauon.distributed.config import AutoParallel, MeshParallel, ParallelConfig
from tauon.distributed.hooks import Int8Gradients, PowerSGD, register_hook
from tauon.distributed.low_communication import DiLoCo, LocalSGD, LowCommunication, OuterLoop
from tauon.distributed.outer import (
    AdamOuter,
    AverageOuter,
    DelayedNesterovOuter,
    NesterovOuter,
    OuterConfig,
    outer_gradient,
    weighted_mean,
)
from tauon.distributed.traffic import Traffic

__all__ = [
    "AdamOuter",
    "AutoParallel",
    "AverageOuter",
    "DelayedNesterovOuter",
    "DiLoCo",
    "Int8Gradients",
    "LocalSGD",
    "LowCommunication",
    "MeshParallel",
    "NesterovOuter",
    "OuterConfig",
    "OuterLoop",
    "ParallelConfig",
    "PowerSGD",
    "Traffic",
    "outer_gradient",
    "register_hook",
    "weighted_mean",
]
