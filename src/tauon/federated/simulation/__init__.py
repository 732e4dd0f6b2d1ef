"""Simulation of many clients in one process: splits of a data set, a transport, batched clients."""

from tauon.federated.simulation.batched import BatchedSites
from tauon.federated.simulation.run import simulate
from tauon.federated.simulation.sites import ClientRows, SimulatedSites, local_job
from tauon.federated.simulation.splits import ByFeature, ByLabel, ByQuantity, ClientSplit, Dirichlet, Even

__all__ = [
    "BatchedSites",
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
