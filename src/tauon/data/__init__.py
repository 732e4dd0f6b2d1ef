"""Data: sources, splits, tokenizers, shards, normalising, encoding, augmenting, order, batches. The verb is `prepare`.

Knows no model and no task: a task says whether it needs tokens, arrays or a series, and that is all.
"""

from tauon.data.arrays import ArrayDataset, Normalizer
from tauon.data.audio_augment import AudioAugmentConfig
from tauon.data.augment import AugmentConfig, Draws, Pixels, Points
from tauon.data.augment_images import RandAugmentConfig  # registers every augmentation of pictures
from tauon.data.chat import ChatDataset
from tauon.data.chat_encoder import Encoder as ChatEncoder
from tauon.data.chat_encoder import chat_prompt, template_for
from tauon.data.chat_export import jinja_of
from tauon.data.chat_template import ChatConfig, RoleConfig
from tauon.data.choice import BalancedOrder, class_weights
from tauon.data.columns import ColumnsConfig, Encoder
from tauon.data.config import DataConfig, problems_for
from tauon.data.documents import DocumentDataset
from tauon.data.grid import picture_sheet
from tauon.data.half import ChosenExamples, HalfConfig, half_of, halve, plain, pool_of
from tauon.data.image_features import ScatteringConfig, features_of
from tauon.data.inspection import ColumnLook, TableLook, inspect_table
from tauon.data.labelled_text import LabelledTextDataset, inputs_from_texts
from tauon.data.loader import DeviceBatches, Loader
from tauon.data.masking import MaskedDataset
from tauon.data.mix import MixConfig, Mixer
from tauon.data.order import example_at, permute
from tauon.data.pairs import PairDataset, with_reference
from tauon.data.preparation import DataSplits, prepare
from tauon.data.progress import Progress, bar
from tauon.data.replay import inputs_from_pictures, inputs_from_records, outputs_in_units
from tauon.data.series import SeriesDataset
from tauon.data.series_augment import SeriesAugmentConfig
from tauon.data.shards import Shards, ShardWriter
from tauon.data.signal_config import SignalConfig
from tauon.data.signals import BLANK, SignalDataset, inputs_from_waves
from tauon.data.sources import Arrays, Conversation, Document, LabelledTexts, Message, Pair, Series, Signals, SourceConfig, Table
from tauon.data.sources.picture_file import PICTURE_SUFFIXES
from tauon.data.sources.wav import is_recording, read_wav
from tauon.data.split import SplitConfig
from tauon.data.stamp import DataStamp
from tauon.data.targets import TargetScale
from tauon.data.text_augment import TextAugmentConfig
from tauon.data.tokenizer import Tokenizer
from tauon.data.tokenizer_config import TokenizerConfig
from tauon.data.tokenizer_from import FromModelConfig, has_tokenizer, tokenizer_of
from tauon.data.tokens import TokenDataset
from tauon.data.window import WindowConfig

__all__ = [
    "BLANK",
    "PICTURE_SUFFIXES",
    "ArrayDataset",
    "Arrays",
    "AudioAugmentConfig",
    "AugmentConfig",
    "BalancedOrder",
    "ChatConfig",
    "ChatDataset",
    "ChatEncoder",
    "ChosenExamples",
    "ColumnLook",
    "ColumnsConfig",
    "Conversation",
    "DataConfig",
    "DataSplits",
    "DataStamp",
    "DeviceBatches",
    "Document",
    "DocumentDataset",
    "Draws",
    "Encoder",
    "FromModelConfig",
    "HalfConfig",
    "LabelledTextDataset",
    "LabelledTexts",
    "Loader",
    "MaskedDataset",
    "Message",
    "MixConfig",
    "Mixer",
    "Normalizer",
    "Pair",
    "PairDataset",
    "Pixels",
    "Points",
    "Progress",
    "RandAugmentConfig",
    "RoleConfig",
    "ScatteringConfig",
    "Series",
    "SeriesAugmentConfig",
    "SeriesDataset",
    "ShardWriter",
    "Shards",
    "SignalConfig",
    "SignalDataset",
    "Signals",
    "SourceConfig",
    "SplitConfig",
    "Table",
    "TableLook",
    "TargetScale",
    "TextAugmentConfig",
    "TokenDataset",
    "Tokenizer",
    "TokenizerConfig",
    "WindowConfig",
    "bar",
    "chat_prompt",
    "class_weights",
    "example_at",
    "features_of",
    "half_of",
    "halve",
    "has_tokenizer",
    "inputs_from_pictures",
    "inputs_from_records",
    "inputs_from_texts",
    "inputs_from_waves",
    "inspect_table",
    "is_recording",
    "jinja_of",
    "outputs_in_units",
    "permute",
    "picture_sheet",
    "plain",
    "pool_of",
    "prepare",
    "problems_for",
    "read_wav",
    "template_for",
    "tokenizer_of",
    "with_reference",
]
