"""Tasks: what is learned. Each says its loss, its predictions, and how they are scored."""

from tauon.tasks.arrays import Classification, Regression
from tauon.tasks.base import Task
from tauon.tasks.forecasting import Forecasting
from tauon.tasks.language import CountingBytes, LanguageModelling
from tauon.tasks.losses import linear_cross_entropy, token_nll
from tauon.tasks.masked import MaskedLanguageModelling
from tauon.tasks.multilabel import MultiLabel
from tauon.tasks.ordinal import Ordinal
from tauon.tasks.quantiles import QuantileRegression, pinball
from tauon.tasks.speech import AudioClassification, SpeechRecognition

__all__ = [
    "AudioClassification",
    "Classification",
    "CountingBytes",
    "Forecasting",
    "LanguageModelling",
    "MaskedLanguageModelling",
    "MultiLabel",
    "Ordinal",
    "QuantileRegression",
    "Regression",
    "SpeechRecognition",
    "Task",
    "linear_cross_entropy",
    "pinball",
    "token_nll",
]
