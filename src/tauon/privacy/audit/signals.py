"""Signals for membership attacks, per example: the loss, the logit of the true class, and for language models the loss of the least likely
tokens, and the loss relative to the compressed size of the text.

`Signals` replaces a task for prediction, so that examples are computed in the same fixed tiles as in evaluation.
Sources: Yeom et al. 2018 (arXiv:1709.01604), loss; Carlini et al. 2022 (arXiv:2112.03570), logit; Shi et al. 2023 (arXiv:2310.16789),
min-k%; Carlini et al. 2021 (arXiv:2012.07805), zlib. Shapes: B batch, T time, C classes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tauon.tasks import Task, token_nll
from tauon.types import Batch

__all__ = ["Signals", "attack_scores", "statistic"]

MIN_K = 0.2
"""Share of the least likely tokens of a text in min-k% (the paper's k = 20%)."""


class Signals:
    """Task that predicts the signals of each example: `loss` (mean over its tokens or targets), and more by kind of task."""

    def __init__(self, task: Task, decode: Callable[[list[int]], str] | None = None) -> None:
        """`decode`: token ids to text, for language models."""
        self.task, self.decode = task, decode
        self.family = task.family

    def predict(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        if self.family == "language-modelling":
            return self._language(model, batch)
        loss_B, weight_B = self.task.losses(model, batch)
        found = {"loss": loss_B.double() / weight_B.double().clamp(min=1e-12)}
        if self.family == "classification" and batch.targets.ndim == 1:
            log_p_BC = self.task.predict(model, batch)["scores"].double().clamp(min=1e-300).log()
            at_B1 = batch.targets[:, None]
            own_B = log_p_BC.gather(1, at_B1)[:, 0]
            # log p - log(1 - p), with 1 - p summed from the other classes, as it would round to 0
            rest_B = log_p_BC.scatter(1, at_B1, -torch.inf).logsumexp(1)
            found |= {"logit": own_B - rest_B, "group": batch.targets}
        return found

    def _language(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        hidden_BTD = model(batch.inputs, batch.segments)
        nll_BT = token_nll(hidden_BTD.flatten(0, 1), model.head.weight, batch.targets.flatten()).view_as(batch.weights).double()
        counted_BT = batch.weights > 0
        n_B = counted_BT.sum(1)
        total_B = (nll_BT * counted_BT).sum(1)
        # the k% least likely tokens of a row
        k_B = (n_B * MIN_K).ceil().clamp(min=1).long()
        worst_BT = nll_BT.masked_fill(~counted_BT, -torch.inf).sort(1, descending=True).values
        first_BT = torch.arange(nll_BT.shape[1], device=nll_BT.device)[None] < k_B[:, None]
        found = {
            "loss": total_B / n_B.clamp(min=1),
            "min_k": torch.where(first_BT, worst_BT, 0.0).nan_to_num(0.0, neginf=0.0).sum(1) / k_B,
            "tokens": n_B,
        }
        if self.decode is not None:
            rows = [t[w].tolist() for t, w in zip(batch.targets.cpu(), counted_BT.cpu(), strict=True)]
            sizes = [len(zlib.compress(self.decode(row).encode("utf-8", "replace"))) for row in rows]
            found["zlib"] = total_B / torch.tensor(sizes, dtype=torch.float64, device=total_B.device)
        return found


def statistic(signals: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """The statistic of each example that LiRA models as normal: the logit of the true class, otherwise minus the loss."""
    return signals["logit"].astype(np.float64) if "logit" in signals else -signals["loss"].astype(np.float64)


def attack_scores(signals: dict[str, NDArray[Any]]) -> dict[str, tuple[str, NDArray[np.float64]]]:
    """Attacks without reference models: name -> (description, scores N, larger for members)."""
    # for classes by the logit: same order as the loss, without rounding to 0 for confident predictions
    found = {"loss": ("threshold on the loss (Yeom et al. 2018)", statistic(signals))}
    if "min_k" in signals:
        found["min_k"] = ("mean log-probability of the 20% least likely tokens (Shi et al. 2023)", -signals["min_k"].astype(np.float64))
    if "zlib" in signals:
        found["zlib"] = ("loss relative to the compressed size (Carlini et al. 2021)", -signals["zlib"].astype(np.float64))
    return found
