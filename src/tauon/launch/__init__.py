"""The same command on this machine, on Ray, Kubernetes, Slurm: start workers, see them to their end, start them again.

Level 6: knows how processes are started; no recipe, no model, no mesh. A worker is `python -m tauon` with torchrun's environment.
"""

from tauon.launch.config import Cluster, Here, LaunchConfig, Tell, Workers, choose, in_a_worker, launch
from tauon.launch.job import Job
from tauon.launch.local import Local
from tauon.launch.outcome import WorkerFailed

__all__ = [
    "Cluster",
    "Here",
    "Job",
    "LaunchConfig",
    "Local",
    "Tell",
    "WorkerFailed",
    "Workers",
    "choose",
    "in_a_worker",
    "launch",
]
