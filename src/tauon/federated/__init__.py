"""Federated training: models travel, data stays where it is."""

from tauon.federated.asynchronous import Arrivals, SimulatedArrivals, ThreadedArrivals
from tauon.federated.coordinator import evaluate_sites, fairness, federate, weights_for
from tauon.federated.local import LocalTraining, RoundOrder
from tauon.federated.messages import Failure, Message, MessageError, Site, Transport
from tauon.federated.roster import sample_sites
from tauon.federated.rounds import Rounds
from tauon.federated.secagg import SecureSettings, SecureSite, Session, secure_sum
from tauon.federated.site_state import SiteState
from tauon.federated.strategies import StrategyConfig
from tauon.federated.summation import Collected, PlainSummation, RoundRequest, Summation, mean_of_sum, weighted_vector
from tauon.federated.training_site import TrainingSite, check_identity
from tauon.federated.updates import Limits, Update, Weighting, check_update, fingerprint, freeze_lora_a, travelling

__all__ = [
    "Arrivals",
    "Collected",
    "Failure",
    "Limits",
    "LocalTraining",
    "Message",
    "MessageError",
    "PlainSummation",
    "RoundOrder",
    "RoundRequest",
    "Rounds",
    "SecureSettings",
    "SecureSite",
    "Session",
    "SimulatedArrivals",
    "Site",
    "SiteState",
    "StrategyConfig",
    "Summation",
    "ThreadedArrivals",
    "TrainingSite",
    "Transport",
    "Update",
    "Weighting",
    "check_identity",
    "check_update",
    "evaluate_sites",
    "fairness",
    "federate",
    "fingerprint",
    "freeze_lora_a",
    "mean_of_sum",
    "sample_sites",
    "secure_sum",
    "travelling",
    "weighted_vector",
    "weights_for",
]
