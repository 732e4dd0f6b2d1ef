"""Many processes, one computation: meshes, sharding, parameter servers, low-communication training.

Level 1: knows modules, tensors and processes; no recipe, no dataset, no loop.
"""

from tauon.distributed.config import AutoParallel, MeshParallel, ParallelConfig
from tauon.distributed.parameter_server import ParameterServer
from tauon.distributed.server_group import ServerLost
from tauon.distributed.traffic import Traffic

__all__ = ["AutoParallel", "MeshParallel", "ParallelConfig", "ParameterServer", "ServerLost", "Traffic"]
