"""Tasks: what is learned. Each says its loss, its predictions, and how they are scored."""

from tauon.tasks.arrays import Classification, Regression
from tauon.tasks.base import Task
from tauon.tasks.language import CountingBytes, LanguageModelling
from tauon.tasks.losses import linear_cross_entropy, token_nll
from tauon.tasks.multilabel import MultiLabel
from tauon.tasks.ordinal import Ordinal

__all__ = [
    "Classification",
    "CountingBytes",
    "LanguageModelling",
    "MultiLabel",
    "Ordinal",
    "Regression",
    "Task",
    "linear_cross_entropy",
    "token_nll",
]
