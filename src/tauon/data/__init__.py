"""Data: sources, splits, tokenizers, shards, normalising, augmenting, order, batches. The verb is `prepare`.

Knows no model and no task: a task says whether it needs tokens or arrays, and that is all.
"""

from tauon.data.arrays import ArrayDataset, Normalizer
from tauon.data.augment import AugmentConfig, Draws, Points
from tauon.data.config import DataConfig, problems_for
from tauon.data.loader import Loader
from tauon.data.masking import MaskedDataset
from tauon.data.order import example_at, permute
from tauon.data.preparation import DataSplits, prepare
from tauon.data.progress import Progress, bar
from tauon.data.shards import Shards, ShardWriter
from tauon.data.sources import Arrays, Document, SourceConfig
from tauon.data.split import SplitConfig
from tauon.data.tokenizer import Tokenizer
from tauon.data.tokenizer_config import TokenizerConfig
from tauon.data.tokenizer_from import FromModelConfig, has_tokenizer, tokenizer_of
from tauon.data.tokens import TokenDataset

__all__ = [
    "ArrayDataset",
    "Arrays",
    "AugmentConfig",
    "DataConfig",
    "DataSplits",
    "Document",
    "Draws",
    "FromModelConfig",
    "Loader",
    "MaskedDataset",
    "Normalizer",
    "Points",
    "Progress",
    "ShardWriter",
    "Shards",
    "SourceConfig",
    "SplitConfig",
    "TokenDataset",
    "Tokenizer",
    "TokenizerConfig",
    "bar",
    "example_at",
    "has_tokenizer",
    "permute",
    "prepare",
    "problems_for",
    "tokenizer_of",
]
