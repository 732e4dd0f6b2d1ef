"""Masked language modelling: predict masked tokens (Devlin et al. 2018). Masking is done by the data package (`data/masking.py`).

Shapes: B batch, T time, N masked tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tauon.config import register
from tauon.distributed import is_dtensor
from tauon.metrics import Scores, Scoring, need
from tauon.metrics.masked import masked_language_modelling
from tauon.tasks.base import Task
from tauon.tasks.losses import chunk_rows
from tauon.types import Batch, DataSpec

__all__ = ["MaskedLanguageModelling"]


@register("masked-language-modelling")
class MaskedLanguageModelling(Task):
    """Cross-entropy of masked tokens, averaged over them."""

    family = "masked-language-modelling"
    input_kind = "masked-tokens"
    reads_hidden_states = True

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        nll_BT, _ = self._scored(model, batch)
        return (nll_BT * batch.weights).sum(1), batch.weights.sum(1)

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """nll: B, nats summed over masked tokens (float64); tokens: B, their number; correct: B, number of correct most likely tokens."""
        nll_BT, hit_BT = self._scored(model, batch)
        return {
            "nll": (nll_BT.double() * batch.weights).sum(1),
            "tokens": (batch.weights > 0).sum(1),
            "correct": (hit_BT & (batch.weights > 0)).sum(1),
        }

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        nll, tokens, correct = (need(outputs, self.family, k) for k in ("nll", "tokens", "correct"))
        return masked_language_modelling(nll, tokens, correct, **scoring.how)

    def counted(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        counts: np.ndarray = need(outputs, self.family, "tokens") > 0
        return counts

    def _scored(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(-log p, whether the most likely token is correct), BT, at masked tokens; zero elsewhere. Logits are computed only there."""
        hidden_BTD = model(batch.inputs, batch.segments)
        if getattr(model, "gives_logits", False):  # a model in another runtime
            nll_BT = nn.functional.cross_entropy(hidden_BTD.float().transpose(1, 2), batch.targets, reduction="none")
            return nll_BT * (batch.weights > 0), hidden_BTD.argmax(-1) == batch.targets
        head: Any = model.head
        weight_VD, bias_V = (p.full_tensor() if is_dtensor(p) else p for p in (head.weight, head.bias))
        where_BT = batch.weights > 0
        h_ND, target_N = hidden_BTD[where_BT], batch.targets[where_BT]
        tapped = getattr(weight_VD, "tapped", None)  # clipped by example: see tauon.privacy.clipped
        step = chunk_rows(len(h_ND), len(weight_VD), h_ND.device)
        nll, hit = [], []
        for i in range(0, len(h_ND), step):
            if tapped is not None:
                logits_NV = tapped.of_examples(h_ND[i : i + step], bias_V, where_BT.nonzero()[i : i + step, 0]).float()
            else:
                logits_NV = torch.addmm(bias_V.to(h_ND.dtype), h_ND[i : i + step], weight_VD.to(h_ND.dtype).t()).float()
            nll.append(nn.functional.cross_entropy(logits_NV, target_N[i : i + step], reduction="none"))
            hit.append(logits_NV.argmax(1) == target_N[i : i + step])
        nll_BT = hidden_BTD.new_zeros(where_BT.shape, dtype=torch.float32)
        if not nll and tapped is not None:
            return nll_BT + 0.0 * hidden_BTD.float().sum(), torch.zeros_like(where_BT)
        if not nll:  # no masked token: return a zero loss that still has a gradient, because other ranks wait for one
            return nll_BT + 0.0 * hidden_BTD.float().sum() + 0.0 * (weight_VD.sum() + bias_V.sum()), torch.zeros_like(where_BT)
        return nll_BT.masked_scatter(where_BT, torch.cat(nll)), torch.zeros_like(where_BT).masked_scatter(where_BT, torch.cat(hit))

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        if spec.vocab is None:
            yield "task", "masked-language-modelling needs text, but this data source provides arrays. Use a text source, or another task."
