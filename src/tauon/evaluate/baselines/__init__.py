"""Naive references that stand beside every headline figure: measured on the same examples as the model, by the same metrics."""

from tauon.evaluate.baselines.base import Baseline, BaselineTask, Training
from tauon.evaluate.baselines.fit import fit_baselines
from tauon.evaluate.baselines.verdict import Compared, compared_with_baselines, verdict

__all__ = ["Baseline", "BaselineTask", "Compared", "Training", "compared_with_baselines", "fit_baselines", "verdict"]
