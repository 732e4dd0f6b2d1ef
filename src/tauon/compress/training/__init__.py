"""The training side of compression: distillation, quantisation-aware training, and healing what was pruned."""

from tauon.compress.training.compressed_model import CompressedConfig
from tauon.compress.training.config import DistilConfig, HealConfig, QatConfig
from tauon.compress.training.distil import DistilledTask, FeatureMatch, distilled
from tauon.compress.training.fake_quantise import FakeQuantised, fake_quantise, quantisation_aware
from tauon.compress.training.heal import Healer, healer
from tauon.compress.training.masks import hold_masks, masks_of_zeros
from tauon.compress.training.soft import FAMILIES, divergence, linear_distillation

__all__ = [
    "FAMILIES",
    "CompressedConfig",
    "DistilConfig",
    "DistilledTask",
    "FakeQuantised",
    "FeatureMatch",
    "HealConfig",
    "Healer",
    "QatConfig",
    "distilled",
    "divergence",
    "fake_quantise",
    "healer",
    "hold_masks",
    "linear_distillation",
    "masks_of_zeros",
    "quantisation_aware",
]
