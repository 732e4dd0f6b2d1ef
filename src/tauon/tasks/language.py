"""Language modelling: predict the next token. Shapes: B batch, T time, D width, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from tauon.config import register
from tauon.distributed import is_dtensor
from tauon.metrics import Scorer, Scores, Scoring, need
from tauon.metrics.language import language_modelling
from tauon.tasks.base import Task
from tauon.tasks.losses import linear_cross_entropy, next_token_nll
from tauon.types import Batch, Dataset, DataSpec

__all__ = ["CountingBytes", "InstructionTuning", "LanguageModelling"]


@register("language-modelling")
class LanguageModelling(Task):
    """Cross-entropy of the next token, averaged over tokens of weight one."""

    family = "language-modelling"
    input_kind = "tokens"
    reads_hidden_states = True

    z_loss: float = Field(0.0, ge=0)
    """Weight of log(Z)^2, which keeps the softmax normaliser near one in long bf16 runs (PaLM, arXiv:2204.02311); 1e-4 is usual."""

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        hidden_BTD = model(batch.inputs, batch.segments)
        loss_BT = next_token_nll(model, hidden_BTD, batch.targets) * batch.weights
        if self.z_loss:
            head: Any = model.head
            loss_BT = loss_BT + self._z(hidden_BTD, head.weight) * batch.weights
        return loss_BT.sum(1), batch.weights.sum(1)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.z_loss:
            return super().loss(model, batch)
        hidden_BTD = model(batch.inputs, batch.segments)
        head: Any = model.head
        total = linear_cross_entropy(hidden_BTD.flatten(0, 1), head.weight, batch.targets.flatten(), batch.weights.flatten())
        return total, batch.weights.sum()

    def _z(self, hidden_BTD: Tensor, weight_VD: Tensor) -> Tensor:
        if is_dtensor(weight_VD):
            weight_VD = weight_VD.full_tensor()
        logits_BTV = (hidden_BTD @ weight_VD.to(hidden_BTD.dtype).t()).float()
        return self.z_loss * logits_BTV.logsumexp(-1).square()

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """nll: B, nats summed over tokens of weight one (float64); tokens: B, their number."""
        hidden_BTD = model(batch.inputs, batch.segments)
        nll_BT = next_token_nll(model, hidden_BTD, batch.targets)
        return {"nll": (nll_BT.double() * batch.weights).sum(1), "tokens": (batch.weights > 0).sum(1)}

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        nll, tokens, n_bytes = (need(outputs, self.family, k) for k in ("nll", "tokens", "bytes"))
        return language_modelling(nll, tokens, n_bytes, scoring.facts, **scoring.how)

    def counted(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        counts: np.ndarray = need(outputs, self.family, "tokens") > 0
        return counts

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        if spec.vocab is None:
            yield (
                "task",
                "language-modelling needs text, but this data source provides arrays. Set task: classification or regression, or use a text source.",
            )


@register("instruction-tuning")
class InstructionTuning(LanguageModelling):
    """Cross-entropy of the next token on answers only: prompts are context (the weights come from the data)."""

    input_kind = "chat"


@dataclass(frozen=True)
class CountingBytes:
    """A language-modelling task whose predictions include the UTF-8 bytes of the targets, for bits per byte."""

    task: LanguageModelling
    token_bytes_V: Tensor
    """Bytes of each token id; 0 for special tokens."""
    family = "language-modelling"

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        counts_BT = self.token_bytes_V.to(batch.targets.device)[batch.targets] * (batch.weights > 0)
        return self.task.predict(model, batch) | {"bytes": counts_BT.sum(1)}

    def scorer(self, dataset: Dataset, scoring: Scoring) -> Scorer:
        """The task's own metrics: its predictions now include the bytes."""
        return self.task.scorer(dataset, scoring)
