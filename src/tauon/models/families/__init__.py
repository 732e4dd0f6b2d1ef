"""The families: one file each, registered by its line here."""

from tauon.models.families.bag import TextBag, TextBagConfig
from tauon.models.families.bert import BERT, BERTConfig
from tauon.models.families.boosting import GradientBoosting, GradientBoostingConfig
from tauon.models.families.cnn import CNN, CNNConfig
from tauon.models.families.columns import ColumnsInput, TabularConfig, refuse_codes
from tauon.models.families.conformer import Conformer, ConformerConfig
from tauon.models.families.cyclenet import CycleNet, CycleNetConfig
from tauon.models.families.dlinear import DLinear, DLinearConfig
from tauon.models.families.forecast import ForecasterConfig
from tauon.models.families.gpt import GPT, GPT2Config, GPTConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from tauon.models.families.lstm import LSTMConfig, LSTMForecaster
from tauon.models.families.mel import LogMel, SpeechConfig, mel_filters
from tauon.models.families.mlp import LinearConfig, LogisticConfig, MLPConfig, Perceptron
from tauon.models.families.patchtst import PatchTST, PatchTSTConfig
from tauon.models.families.resnet import ResNet, ResNetConfig, published_resnet
from tauon.models.families.speech_cnn import SpeechCNN, SpeechCNNConfig
from tauon.models.families.tabm import TabM, TabMConfig
from tauon.models.families.tabular import FTTransformer, FTTransformerConfig, WideAndDeep, WideAndDeepConfig
from tauon.models.families.tfidf import TextLinear, TextLinearConfig
from tauon.models.families.vit import ViT, ViTConfig

__all__ = [
    "BERT",
    "CNN",
    "GPT",
    "BERTConfig",
    "CNNConfig",
    "ColumnsInput",
    "Conformer",
    "ConformerConfig",
    "CycleNet",
    "CycleNetConfig",
    "DLinear",
    "DLinearConfig",
    "FTTransformer",
    "FTTransformerConfig",
    "ForecasterConfig",
    "GPT2Config",
    "GPTConfig",
    "GradientBoosting",
    "GradientBoostingConfig",
    "LSTMConfig",
    "LSTMForecaster",
    "LinearConfig",
    "LlamaConfig",
    "LogMel",
    "LogisticConfig",
    "MLPConfig",
    "MistralConfig",
    "PatchTST",
    "PatchTSTConfig",
    "Perceptron",
    "Qwen2Config",
    "Qwen3Config",
    "ResNet",
    "ResNetConfig",
    "SpeechCNN",
    "SpeechCNNConfig",
    "SpeechConfig",
    "TabM",
    "TabMConfig",
    "TabularConfig",
    "TextBag",
    "TextBagConfig",
    "TextLinear",
    "TextLinearConfig",
    "ViT",
    "ViTConfig",
    "WideAndDeep",
    "WideAndDeepConfig",
    "mel_filters",
    "published_resnet",
    "refuse_codes",
]
