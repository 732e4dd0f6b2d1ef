"""Measure a trained model: every metric with a confidence interval, bit-identical for every batch size; and its baselines beside it."""

from tauon.evaluate.config import EvaluateConfig
from tauon.evaluate.evaluation import Difference, Evaluation, compare
from tauon.evaluate.run import evaluate
from tauon.evaluate.text_baseline import text_baseline
from tauon.evaluate.tiles import Predictor, ScoredTask, predict_all
from tauon.metrics import Metric

__all__ = [
    "Difference",
    "EvaluateConfig",
    "Evaluation",
    "Metric",
    "Predictor",
    "ScoredTask",
    "compare",
    "evaluate",
    "predict_all",
    "text_baseline",
]
