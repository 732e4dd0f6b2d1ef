"""Tasks: the training objectives. Each defines its loss, its predictions, and its metrics."""

from tauon.tasks.arrays import Classification, Regression
from tauon.tasks.base import Task
from tauon.tasks.forecasting import Forecasting
from tauon.tasks.language import CountingBytes, InstructionTuning, LanguageModelling
from tauon.tasks.losses import linear_cross_entropy, token_nll
from tauon.tasks.masked import MaskedLanguageModelling
from tauon.tasks.multilabel import MultiLabel
from tauon.tasks.ordinal import Ordinal
from tauon.tasks.preferences import DPO, answer_log_probs
from tauon.tasks.quantiles import QuantileRegression, pinball
from tauon.tasks.speech import AudioClassification, SpeechRecognition
from tauon.tasks.texts import TextClassification

__all__ = [
    "DPO",
    "AudioClassification",
    "Classification",
    "CountingBytes",
    "Forecasting",
    "InstructionTuning",
    "LanguageModelling",
    "MaskedLanguageModelling",
    "MultiLabel",
    "Ordinal",
    "QuantileRegression",
    "Regression",
    "SpeechRecognition",
    "Task",
    "TextClassification",
    "answer_log_probs",
    "linear_cross_entropy",
    "pinball",
    "token_nll",
]
