"""Distributed training: meshes, sharding, parameter servers, low-communication training.

Level 1: works on modules, tensors and processes; no recipe, no data set, no loop.
"""

from tauon.distributed.checkpoint import MeshCheckpointWriter
from tauon.distributed.config import AutoParallel, MeshParallel, ParallelConfig
from tauon.distributed.context import shard_targets
from tauon.distributed.data_parallel import apply_data, reshard, synchronising
from tauon.distributed.heartbeat import Heartbeat, is_collective_failure
from tauon.distributed.hooks import Int8Gradients, PowerSGD, register_hook
from tauon.distributed.low_communication import DiLoCo, LocalSGD, LowCommunication, OuterLoop
from tauon.distributed.mesh import DIMENSIONS, Layout, Mesh, choose_layout
from tauon.distributed.openmp import release_openmp_threads
from tauon.distributed.outer import (
    AdamOuter,
    AverageOuter,
    DelayedNesterovOuter,
    NesterovOuter,
    OuterConfig,
    outer_gradient,
    weighted_mean,
)
from tauon.distributed.parallelize import parallelize, refuse_layout
from tauon.distributed.parameter_server import ParameterServer
from tauon.distributed.pieces import fill, is_dtensor, local_part, local_slices, whole_gradients
from tauon.distributed.pipeline_parallel import PER_PROCESS, PipelineStages, cut_blocks, pieces_of_batch, refuse_odd_stages, stages_of
from tauon.distributed.server_group import ServerLost
from tauon.distributed.statistics import needs_batch_statistics, refuse_running_statistics, share_statistics
from tauon.distributed.traffic import Traffic, counted
from tauon.distributed.world import World, join, launched

__all__ = [
    "DIMENSIONS",
    "PER_PROCESS",
    "AdamOuter",
    "AutoParallel",
    "AverageOuter",
    "DelayedNesterovOuter",
    "DiLoCo",
    "Heartbeat",
    "Int8Gradients",
    "Layout",
    "LocalSGD",
    "LowCommunication",
    "Mesh",
    "MeshCheckpointWriter",
    "MeshParallel",
    "NesterovOuter",
    "OuterConfig",
    "OuterLoop",
    "ParallelConfig",
    "ParameterServer",
    "PipelineStages",
    "PowerSGD",
    "ServerLost",
    "Traffic",
    "World",
    "apply_data",
    "choose_layout",
    "counted",
    "cut_blocks",
    "fill",
    "is_collective_failure",
    "is_dtensor",
    "join",
    "launched",
    "local_part",
    "local_slices",
    "needs_batch_statistics",
    "outer_gradient",
    "parallelize",
    "pieces_of_batch",
    "refuse_layout",
    "refuse_odd_stages",
    "refuse_running_statistics",
    "register_hook",
    "release_openmp_threads",
    "reshard",
    "shard_targets",
    "share_statistics",
    "stages_of",
    "synchronising",
    "weighted_mean",
    "whole_gradients",
]
