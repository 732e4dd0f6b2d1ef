"""Metrics, one file a family: arrays of predictions and targets in, numbers with confidence intervals out. Knows no model, task or data set."""

from tauon.metrics.metric import Better, Metric, Scores
from tauon.metrics.scoring import Scorer, Scoring, need

__all__ = ["Better", "Metric", "Scorer", "Scores", "Scoring", "need"]
