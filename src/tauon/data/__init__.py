"""Data: sources, splits, tokenizers, shards, normalising, encoding, augmenting, order, batches. The entry point is `prepare`.

Independent of models and tasks: a task only names the kind of data that it needs.
"""

from tauon.data.arrays import ArrayDataset, Normalizer, TrainingOptions
from tauon.data.audio_augment import AudioAugmentConfig
from tauon.data.augment import AugmentConfig, Draws, Pixels, Points
from tauon.data.augment_images import RandAugmentConfig  # registers every augmentation of images
from tauon.data.balance import BalancedOrder, class_weights
from tauon.data.chat import ChatDataset
from tauon.data.chat_encoder import Encoder as ChatEncoder
from tauon.data.chat_encoder import PromptEncoder, chat_prompt, template_for
from tauon.data.chat_export import jinja_of
from tauon.data.chat_template import ChatConfig, RoleConfig
from tauon.data.clean import FilterConfig, Rejected, RowFilter, RowVerdicts, TextFilter, cleaning_function
from tauon.data.columns import ColumnsConfig, Encoder
from tauon.data.config import DataConfig
from tauon.data.documents import DocumentDataset
from tauon.data.grid import picture_sheet
from tauon.data.image_features import ScatteringConfig, features_of
from tauon.data.inspection import ColumnLook, TableLook, inspect_table
from tauon.data.kinds.base import ChosenRows, DataKind, Fitted, Parts, Request
from tauon.data.kinds.rules import data_kinds, keys_of_kinds, kind_for, problems_for
from tauon.data.labelled_text import LabelledTextDataset, inputs_from_texts
from tauon.data.loader import DeviceBatches, Loader
from tauon.data.masking import MaskedDataset
from tauon.data.mix import MixConfig, Mixer
from tauon.data.order import example_at, permute
from tauon.data.pairs import PairDataset, with_reference
from tauon.data.preparation import prepare
from tauon.data.progress import Progress, bar
from tauon.data.replay import Replay, Rows, inputs_from_pictures, inputs_from_records, outputs_in_units, register_replay, replay_of
from tauon.data.series import SeriesDataset
from tauon.data.series_augment import SeriesAugmentConfig
from tauon.data.shadow_split import ChosenExamples, HalfConfig, half_of, pool_of, shadow_split, without_augmentation
from tauon.data.shards import Shards, ShardWriter
from tauon.data.signal_config import SignalConfig
from tauon.data.signals import BLANK, SignalDataset, inputs_from_waves
from tauon.data.sources import Arrays, Conversation, Document, LabelledTexts, Message, Pair, Series, Signals, SourceConfig, Table
from tauon.data.sources.picture_file import PICTURE_SUFFIXES
from tauon.data.sources.wav import is_recording, read_wav
from tauon.data.split import SplitConfig
from tauon.data.splits import DataSplits
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
    "ChosenRows",
    "ColumnLook",
    "ColumnsConfig",
    "Conversation",
    "DataConfig",
    "DataKind",
    "DataSplits",
    "DataStamp",
    "DeviceBatches",
    "Document",
    "DocumentDataset",
    "Draws",
    "Encoder",
    "FilterConfig",
    "Fitted",
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
    "Parts",
    "Pixels",
    "Points",
    "Progress",
    "PromptEncoder",
    "RandAugmentConfig",
    "Rejected",
    "Replay",
    "Request",
    "RoleConfig",
    "RowFilter",
    "RowVerdicts",
    "Rows",
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
    "TextFilter",
    "TokenDataset",
    "Tokenizer",
    "TokenizerConfig",
    "TrainingOptions",
    "WindowConfig",
    "bar",
    "chat_prompt",
    "class_weights",
    "cleaning_function",
    "data_kinds",
    "example_at",
    "features_of",
    "half_of",
    "has_tokenizer",
    "inputs_from_pictures",
    "inputs_from_records",
    "inputs_from_texts",
    "inputs_from_waves",
    "inspect_table",
    "is_recording",
    "jinja_of",
    "keys_of_kinds",
    "kind_for",
    "outputs_in_units",
    "permute",
    "picture_sheet",
    "pool_of",
    "prepare",
    "problems_for",
    "read_wav",
    "register_replay",
    "replay_of",
    "shadow_split",
    "template_for",
    "tokenizer_of",
    "with_reference",
    "without_augmentation",
]
