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
from tauon.models.gpt import GPT, GPT2Config, GPTConfig, KVCache, from_gpt2
from tauon.models.mlp import LinearConfig, LogisticConfig, MLPConfig, Perceptron

__all__ = [
    "CNN",
    "GPT",
    "CNNConfig",
    "GPT2Config",
    "GPTConfig",
    "KVCache",
    "LinearConfig",
    "LogisticConfig",
    "MLPConfig",
    "Model",
    "ModelConfig",
    "Perceptron",
    "Shard",
    "from_gpt2",
    "from_record",
    "load_weights",
    "materialize",
    "parameter_count",
    "record",
]
