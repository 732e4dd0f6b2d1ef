"""Measures a trained model: every metric with a confidence interval, the same to the last bit for every batch size."""

from tauon.evaluate.config import EvaluateConfig
from tauon.evaluate.evaluation import Difference, Evaluation, Metric, compare
from tauon.evaluate.run import evaluate
from tauon.tasks.tiles import Predictor, predict_all

__all__ = ["Difference", "EvaluateConfig", "Evaluation", "Metric", "Predictor", "compare", "evaluate", "predict_all"]
