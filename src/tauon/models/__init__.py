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
from tauon.models.norm import BatchNorm, still
from tauon.models.resnet import ResNet, ResNetConfig, published_resnet
from tauon.models.vit import ViT, ViTConfig

__all__ = [
    "CNN",
    "GPT",
    "BatchNorm",
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
    "ResNet",
    "ResNetConfig",
    "Shard",
    "ViT",
    "ViTConfig",
    "from_gpt2",
    "from_record",
    "load_weights",
    "materialize",
    "parameter_count",
    "published_resnet",
    "record",
    "still",
]
