"""Baselines of preferences, which read no text: chance, and the number of tokens of both answers.

Chosen answers are often the longer ones, and preference tuning often learns little else (Singhal et al. 2023, arXiv:2310.03716).
Shapes: B pairs, 2 chosen and rejected.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tauon.evaluate.baselines.base import Baseline
from tauon.types import Batch

__all__ = ["equal_rewards", "longer_answer"]


def equal_rewards() -> Baseline:
    """Both answers of a pair get the same reward, as before training: half of the pairs are right."""

    def predict(batch: Batch) -> dict[str, Tensor]:
        return _outputs(torch.zeros(len(batch), 2))

    return Baseline("chance", "Both answers of every pair get the same reward, as before training: half of the pairs are right.", predict)


def longer_answer() -> Baseline:
    """The answer of more tokens gets reward 1, the other 0; of equally long ones each gets one half."""

    def predict(batch: Batch) -> dict[str, Tensor]:
        lengths_B2 = (batch.weights > 0).sum(-1)
        return _outputs(0.5 + 0.5 * torch.sign(lengths_B2 - lengths_B2.flip(1)).float())

    return Baseline("always the longer answer", "The answer of more tokens gets reward 1, the other 0.", predict)


def _outputs(rewards_B2: Tensor) -> dict[str, Tensor]:
    return {"rewards": rewards_B2, "loss": -F.logsigmoid(rewards_B2[:, 0] - rewards_B2[:, 1])}
