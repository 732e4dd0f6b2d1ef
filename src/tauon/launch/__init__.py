"""Launchers for the same command on this machine, Ray, Kubernetes and Slurm: start workers, wait for them, restart them.

Starts processes only; independent of recipes, models and meshes. A worker is `python -m tauon` with torchrun's environment.
"""

from tauon.launch.config import Cluster, EventCallback, Here, LaunchConfig, Workers, choose, in_a_worker, launch
from tauon.launch.job import Job
from tauon.launch.k8s import K8s
from tauon.launch.local import Local
from tauon.launch.outcome import WorkerFailed
from tauon.launch.ray import Ray
from tauon.launch.slurm import Slurm

__all__ = [
    "Cluster",
    "EventCallback",
    "Here",
    "Job",
    "K8s",
    "LaunchConfig",
    "Local",
    "Ray",
    "Slurm",
    "WorkerFailed",
    "Workers",
    "choose",
    "in_a_worker",
    "launch",
]
