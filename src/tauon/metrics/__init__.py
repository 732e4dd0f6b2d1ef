"""Metrics, one file per family: arrays of predictions and targets in, numbers with confidence intervals out. Independent of models, tasks and data sets."""

from tauon.metrics.metric import Better, Metric, Scores
from tauon.metrics.scoring import Scorer, Scoring, need

__all__ = ["Better", "Metric", "Scorer", "Scores", "Scoring", "need"]
