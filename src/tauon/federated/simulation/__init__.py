"""Simulation of many clients in one process: splits of a data set, a transport, batched clients."""

from tauon.federated.simulation.run import local_job, simulate
from tauon.federated.simulation.sites import ClientRows, SimulatedSites
from tauon.federated.simulation.splits import ByFeature, ByLabel, ByQuantity, ClientSplit, Dirichlet, Even

__all__ = [
    "ByFeature",
    "ByLabel",
    "ByQuantity",
    "ClientRows",
    "ClientSplit",
    "Dirichlet",
    "Even",
    "SimulatedSites",
    "local_job",
    "simulate",
]
