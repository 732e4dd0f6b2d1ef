"""Optimizers, learning-rate schedules, gradient clipping. `config.build(model)` gives a torch `Optimizer`."""

from tauon.optim.adam import AdamConfig, AdamWConfig
from tauon.optim.adam_bc import AdamBC, AdamBCConfig
from tauon.optim.adamw8bit import AdamW8bitConfig
from tauon.optim.adaptive import AdafactorConfig, AdagradConfig, RMSpropConfig
from tauon.optim.base import AveragedWeights, OptimConfig, decay_groups
from tauon.optim.clip import clip_adaptive, clip_gradients, clip_layers
from tauon.optim.decays import CosineRestarts, Exponential, OneCycle, Plateau, Polynomial, StepDecay
from tauon.optim.gd import GDConfig
from tauon.optim.lion import Lion, LionConfig
from tauon.optim.muon import Muon, MuonConfig
from tauon.optim.rates import scale_rates
from tauon.optim.schedule import WSD, Constant, Cosine, Linear, ScheduleConfig
from tauon.optim.schedule_free import ScheduleFree, ScheduleFreeConfig
from tauon.optim.sgd import SGDConfig
from tauon.optim.skip import can_skip_on_device, skipped_where
from tauon.optim.soap import SOAP, SOAPConfig
from tauon.optim.state import load_optimizer, optimizer_tensors

__all__ = [
    "SOAP",
    "WSD",
    "AdafactorConfig",
    "AdagradConfig",
    "AdamBC",
    "AdamBCConfig",
    "AdamConfig",
    "AdamW8bitConfig",
    "AdamWConfig",
    "AveragedWeights",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Exponential",
    "GDConfig",
    "Linear",
    "Lion",
    "LionConfig",
    "Muon",
    "MuonConfig",
    "OneCycle",
    "OptimConfig",
    "Plateau",
    "Polynomial",
    "RMSpropConfig",
    "SGDConfig",
    "SOAPConfig",
    "ScheduleConfig",
    "ScheduleFree",
    "ScheduleFreeConfig",
    "StepDecay",
    "can_skip_on_device",
    "clip_adaptive",
    "clip_gradients",
    "clip_layers",
    "decay_groups",
    "load_optimizer",
    "optimizer_tensors",
    "scale_rates",
    "skipped_where",
]
