"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290).

An answer's reward is r = beta (log p(answer | prompt) - log p_ref(answer | prompt)); the loss of a pair is -log sigmoid(r_chosen - r_rejected).
p_ref is the reference model, from which training starts; its log-probabilities come with the data (`Batch.reference`).

Shapes: B pairs, 2 chosen and rejected, T time, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Fraction, register
from tauon.metrics import Scores, Scoring, need
from tauon.metrics.preference import preference
from tauon.tasks.base import Task
from tauon.tasks.losses import next_token_nll
from tauon.types import Batch, DataSpec

__all__ = ["DPO", "answer_log_probs"]


@register("dpo")
class DPO(Task):
    """Prefer chosen answers over rejected ones, and stay close to the reference model."""

    family = "preference"
    input_kind = "pairs"
    reads_hidden_states = True

    beta: float = Field(0.1, gt=0)
    """Strength of the penalty for leaving the reference model: smaller allows larger changes."""
    label_smoothing: Fraction = Field(0.0, ge=0, lt=0.5)
    """Share of pairs whose preference may be wrong (conservative DPO)."""

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        rewards_B2 = self.rewards(model, batch)
        margin_B = rewards_B2[:, 0] - rewards_B2[:, 1]
        loss_B = -(1 - self.label_smoothing) * F.logsigmoid(margin_B) - self.label_smoothing * F.logsigmoid(-margin_B)
        counts_B = pair_weights(batch)
        return loss_B * counts_B, counts_B

    def weight(self, batch: Batch) -> Tensor:
        return pair_weights(batch).sum()

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """rewards: B2, chosen first; loss: B."""
        rewards_B2 = self.rewards(model, batch)
        margin_B = rewards_B2[:, 0] - rewards_B2[:, 1]
        loss_B = -(1 - self.label_smoothing) * F.logsigmoid(margin_B) - self.label_smoothing * F.logsigmoid(-margin_B)
        return {"rewards": rewards_B2, "loss": loss_B}

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        return preference(need(outputs, self.family, "rewards"), need(outputs, self.family, "loss"), **scoring.how)

    def rewards(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return beta (log p - log p_ref) of both answers, B2."""
        if batch.reference is None:
            raise ValueError(
                "the pairs have no log-probabilities of the reference model. Attach them to the data first (data.with_reference)"
            )
        return self.beta * (answer_log_probs(model, batch) - batch.reference)

    def observe(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        rewards_B2 = self.rewards(model, batch)
        margin_B, counts_B = rewards_B2[:, 0] - rewards_B2[:, 1], pair_weights(batch)
        weight = counts_B.sum()
        right_B = (margin_B > 0).float() + 0.5 * (margin_B == 0)  # ties count half, as all pairs are ties at the start
        return {"reward_margin": ((margin_B * counts_B).sum(), weight), "reward_accuracy": ((right_B * counts_B).sum(), weight)}

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        if spec.vocab is None:
            yield "task", "dpo needs pairs of answers, but this data has no text. Use a source of kind pairs, or another task."


def pair_weights(batch: Batch) -> Tensor:
    """Return B: 1 for real pairs, 0 for padding rows."""
    return (batch.weights.flatten(1).amax(1) > 0).float()


def answer_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """Return log p of the tokens of weight one, summed over each answer: B2, fp32."""
    segments = None if batch.segments is None else batch.segments.flatten(0, 1)
    hidden_NTD = model(batch.inputs.flatten(0, 1), segments)
    nll_NT = next_token_nll(model, hidden_NTD, batch.targets.flatten(0, 1))
    log_p_N: Tensor = -(nll_NT * (batch.weights.flatten(0, 1) > 0)).sum(1)
    return log_p_N.view(batch.inputs.shape[:2])
