"""Strategies of federated training: a family of configs (`strategy`), one file each."""

from tauon.federated.strategies.base import StrategyConfig
from tauon.federated.strategies.fedavg import FedAvg
from tauon.federated.strategies.fedavgm import FedAvgM
from tauon.federated.strategies.fedbn import FedBN
from tauon.federated.strategies.fedbuff import FedBuff
from tauon.federated.strategies.fedopt import AdaptiveServer, FedAdam, FedYogi
from tauon.federated.strategies.fedprox import FedProx
from tauon.federated.strategies.krum import Krum
from tauon.federated.strategies.medians import CoordinateMedian, TrimmedMean
from tauon.federated.strategies.qfedavg import QFedAvg
from tauon.federated.strategies.scaffold import Scaffold

__all__ = [
    "AdaptiveServer",
    "CoordinateMedian",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBN",
    "FedBuff",
    "FedProx",
    "FedYogi",
    "Krum",
    "QFedAvg",
    "Scaffold",
    "StrategyConfig",
    "TrimmedMean",
]
