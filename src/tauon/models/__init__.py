"""Models: one file a family, plain single-device code. `materialize(config, seed=...)` builds and initialises."""

from tauon.models.base import (
    Model,
    ModelConfig,
    Shard,
    from_record,
    load_weights,
    materialize,
    parameter_count,
    record,
)
from tauon.models.cnn import CNN, CNNConfig
from tauon.models.columns import ColumnsInput, TabularConfig, refuse_codes
from tauon.models.conformer import Conformer, ConformerConfig
from tauon.models.dlinear import DLinear, DLinearConfig
from tauon.models.forecast import ForecasterConfig
from tauon.models.gpt import GPT, GPT2Config, GPTConfig, KVCache, from_gpt2
from tauon.models.lstm import LSTMConfig, LSTMForecaster
from tauon.models.mel import LogMel, SpeechConfig, mel_filters
from tauon.models.mlp import LinearConfig, LogisticConfig, MLPConfig, Perceptron
from tauon.models.norm import BatchNorm, still
from tauon.models.patchtst import PatchTST, PatchTSTConfig
from tauon.models.resnet import ResNet, ResNetConfig, published_resnet
from tauon.models.speech_cnn import SpeechCNN, SpeechCNNConfig
from tauon.models.tabular import FTTransformer, FTTransformerConfig, WideAndDeep, WideAndDeepConfig
from tauon.models.vit import ViT, ViTConfig

__all__ = [
    "CNN",
    "GPT",
    "BatchNorm",
    "CNNConfig",
    "ColumnsInput",
    "Conformer",
    "ConformerConfig",
    "DLinear",
    "DLinearConfig",
    "FTTransformer",
    "FTTransformerConfig",
    "ForecasterConfig",
    "GPT2Config",
    "GPTConfig",
    "KVCache",
    "LSTMConfig",
    "LSTMForecaster",
    "LinearConfig",
    "LogMel",
    "LogisticConfig",
    "MLPConfig",
    "Model",
    "ModelConfig",
    "PatchTST",
    "PatchTSTConfig",
    "Perceptron",
    "ResNet",
    "ResNetConfig",
    "Shard",
    "SpeechCNN",
    "SpeechCNNConfig",
    "SpeechConfig",
    "TabularConfig",
    "ViT",
    "ViTConfig",
    "WideAndDeep",
    "WideAndDeepConfig",
    "from_gpt2",
    "from_record",
    "load_weights",
    "materialize",
    "mel_filters",
    "parameter_count",
    "published_resnet",
    "record",
    "refuse_codes",
    "still",
]
