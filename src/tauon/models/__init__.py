"""Models: one file a family, plain single-device code. `materialize(config, seed=...)` builds and initialises, or loads."""

from tauon.models.adapters import AdaptConfig, AdaptedLinear, DoraConfig, LoraConfig, is_adapter, merged, saved_weights
from tauon.models.bag import TextBag, TextBagConfig
from tauon.models.base import (
    Model,
    ModelConfig,
    Shard,
    from_record,
    load_weights,
    materialize,
    parameter_count,
    record,
    refuse_misfits,
)
from tauon.models.bert import BERT, BERTConfig
from tauon.models.cnn import CNN, CNNConfig
from tauon.models.columns import ColumnsInput, TabularConfig, refuse_codes
from tauon.models.conformer import Conformer, ConformerConfig
from tauon.models.dlinear import DLinear, DLinearConfig
from tauon.models.forecast import ForecasterConfig
from tauon.models.gpt import GPT, GPT2Config, GPTConfig, KVCache, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from tauon.models.huggingface import open_huggingface
from tauon.models.huggingface_write import write_huggingface
from tauon.models.lstm import LSTMConfig, LSTMForecaster
from tauon.models.mel import LogMel, SpeechConfig, mel_filters
from tauon.models.mlp import LinearConfig, LogisticConfig, MLPConfig, Perceptron
from tauon.models.norm import BatchNorm, still
from tauon.models.patchtst import PatchTST, PatchTSTConfig
from tauon.models.peft import adapt_like, peft_kind, read_peft, write_peft
from tauon.models.resnet import ResNet, ResNetConfig, published_resnet
from tauon.models.speech_cnn import SpeechCNN, SpeechCNNConfig
from tauon.models.start import CheckpointConfig, Start, fit, is_checkpoint, open_start, resolved, saved_start, start_of
from tauon.models.tabular import FTTransformer, FTTransformerConfig, WideAndDeep, WideAndDeepConfig
from tauon.models.vit import ViT, ViTConfig

__all__ = [
    "BERT",
    "CNN",
    "GPT",
    "AdaptConfig",
    "AdaptedLinear",
    "BERTConfig",
    "BatchNorm",
    "CNNConfig",
    "CheckpointConfig",
    "ColumnsInput",
    "Conformer",
    "ConformerConfig",
    "DLinear",
    "DLinearConfig",
    "DoraConfig",
    "FTTransformer",
    "FTTransformerConfig",
    "ForecasterConfig",
    "GPT2Config",
    "GPTConfig",
    "KVCache",
    "LSTMConfig",
    "LSTMForecaster",
    "LinearConfig",
    "LlamaConfig",
    "LogMel",
    "LogisticConfig",
    "LoraConfig",
    "MLPConfig",
    "MistralConfig",
    "Model",
    "ModelConfig",
    "PatchTST",
    "PatchTSTConfig",
    "Perceptron",
    "Qwen2Config",
    "Qwen3Config",
    "ResNet",
    "ResNetConfig",
    "Shard",
    "SpeechCNN",
    "SpeechCNNConfig",
    "SpeechConfig",
    "Start",
    "TabularConfig",
    "TextBag",
    "TextBagConfig",
    "ViT",
    "ViTConfig",
    "WideAndDeep",
    "WideAndDeepConfig",
    "adapt_like",
    "fit",
    "from_record",
    "is_adapter",
    "is_checkpoint",
    "load_weights",
    "materialize",
    "mel_filters",
    "merged",
    "open_huggingface",
    "open_start",
    "parameter_count",
    "peft_kind",
    "published_resnet",
    "read_peft",
    "record",
    "refuse_codes",
    "refuse_misfits",
    "resolved",
    "saved_start",
    "saved_weights",
    "start_of",
    "still",
    "write_huggingface",
    "write_peft",
]
