"""Models: one file a family, plain single-device code. `materialize(config, seed=...)` builds and initialises, or loads."""

from tauon.models.adapters import AdaptConfig, AdaptedLinear, DoraConfig, LoraConfig, is_adapter, merged, saved_weights
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
from tauon.models.gpt import GPT, GPT2Config, GPTConfig, KVCache, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from tauon.models.huggingface import open_huggingface, write_huggingface
from tauon.models.mlp import LinearConfig, LogisticConfig, MLPConfig, Perceptron
from tauon.models.peft import adapt_like, peft_kind, read_peft, write_peft
from tauon.models.start import CheckpointConfig, Start, fit, open_start, resolved, saved_start

__all__ = [
    "BERT",
    "CNN",
    "GPT",
    "AdaptConfig",
    "AdaptedLinear",
    "BERTConfig",
    "CNNConfig",
    "CheckpointConfig",
    "DoraConfig",
    "GPT2Config",
    "GPTConfig",
    "KVCache",
    "LinearConfig",
    "LlamaConfig",
    "LogisticConfig",
    "LoraConfig",
    "MLPConfig",
    "MistralConfig",
    "Model",
    "ModelConfig",
    "Perceptron",
    "Qwen2Config",
    "Qwen3Config",
    "Shard",
    "Start",
    "adapt_like",
    "fit",
    "from_record",
    "is_adapter",
    "load_weights",
    "materialize",
    "merged",
    "open_huggingface",
    "open_start",
    "parameter_count",
    "peft_kind",
    "read_peft",
    "record",
    "refuse_misfits",
    "resolved",
    "saved_start",
    "saved_weights",
    "write_huggingface",
    "write_peft",
]
