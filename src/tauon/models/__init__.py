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
from tauon.models.patchtst import PatchTST, PatchTSTConfig
from tauon.models.speech_cnn import SpeechCNN, SpeechCNNConfig
from tauon.models.tabular import FTTransformer, FTTransformerConfig, WideAndDeep, WideAndDeepConfig

__all__ = [
    "CNN",
    "GPT",
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
    "Shard",
    "SpeechCNN",
    "SpeechCNNConfig",
    "SpeechConfig",
    "TabularConfig",
    "WideAndDeep",
    "WideAndDeepConfig",
    "from_gpt2",
    "from_record",
    "load_weights",
    "materialize",
    "mel_filters",
    "parameter_count",
    "record",
    "refuse_codes",
]
