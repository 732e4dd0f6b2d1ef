"""Data: sources, splits, tokenizers, shards, normalising, augmenting, order, batches. The verb is `prepare`.

Knows no model and no task: a task says whether it needs tokens or arrays, and that is all.
"""

from tauon.data.arrays import ArrayDataset, Normalizer
from tauon.data.augment import AugmentConfig, Draws, Pixels, Points
from tauon.data.augment_images import RandAugmentConfig  # registers every augmentation of pictures
from tauon.data.choice import BalancedOrder, class_weights
from tauon.data.config import DataConfig, problems_for
from tauon.data.grid import picture_sheet
from tauon.data.loader import Loader
from tauon.data.mix import MixConfig, Mixer
from tauon.data.order import example_at, permute
from tauon.data.preparation import DataSplits, prepare
from tauon.data.progress import Progress, bar
from tauon.data.shards import Shards, ShardWriter
from tauon.data.sources import Arrays, Document, SourceConfig
from tauon.data.split import SplitConfig
from tauon.data.tokenizer import Tokenizer
from tauon.data.tokenizer_config import TokenizerConfig
from tauon.data.tokens import TokenDataset

__all__ = [
    "ArrayDataset",
    "Arrays",
    "AugmentConfig",
    "BalancedOrder",
    "DataConfig",
    "DataSplits",
    "Document",
    "Draws",
    "Loader",
    "MixConfig",
    "Mixer",
    "Normalizer",
    "Pixels",
    "Points",
    "Progress",
    "RandAugmentConfig",
    "ShardWriter",
    "Shards",
    "SourceConfig",
    "SplitConfig",
    "TokenDataset",
    "Tokenizer",
    "TokenizerConfig",
    "bar",
    "class_weights",
    "example_at",
    "permute",
    "picture_sheet",
    "prepare",
    "problems_for",
]
