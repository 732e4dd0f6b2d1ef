"""Optimizers, learning-rate schedules, gradient clipping. `config.build(model)` gives a torch `Optimizer`."""

from tauon.optim.adam import AdamConfig, AdamWConfig
from tauon.optim.base import OptimConfig, decay_groups
from tauon.optim.clip import clip_gradients
from tauon.optim.muon import Muon, MuonConfig
from tauon.optim.rates import scale_rates
from tauon.optim.schedule import WSD, Constant, Cosine, Linear, ScheduleConfig
from tauon.optim.sgd import SGDConfig
from tauon.optim.state import load_optimizer, optimizer_tensors

__all__ = [
    "WSD",
    "AdamConfig",
    "AdamWConfig",
    "Constant",
    "Cosine",
    "Linear",
    "Muon",
    "MuonConfig",
    "OptimConfig",
    "SGDConfig",
    "ScheduleConfig",
    "clip_gradients",
    "decay_groups",
    "load_optimizer",
    "optimizer_tensors",
    "scale_rates",
]
