"""The same command on this machine, on Ray, Kubernetes, Slurm: start workers, see them to their end, start them again.

Level 6: knows how processes are started; no recipe, no model, no mesh. A worker is `python -m tauon` with torchrun's environment.
"""

from tauon.launch.config import Cluster, Here, LaunchConfig, Tell, Workers, choose, in_a_worker, launch
from tauon.launch.job import Job
from tauon.launch.k8s import K8s
from tauon.launch.local import Local
from tauon.launch.outcome import WorkerFailed
from tauon.launch.ray import Ray
from tauon.launch.slurm import Slurm

__all__ = [
    "Cluster",
    "Here",
    "Job",
    "K8s",
    "LaunchConfig",
    "Local",
    "Ray",
    "Slurm",
    "Tell",
    "WorkerFailed",
    "Workers",
    "choose",
    "in_a_worker",
    "launch",
]
