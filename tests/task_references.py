"""The loss of each example for every registered task, computed without Tauon: SciPy, scikit-learn, torch.distributions, full logits, NumPy.

Given to `check_task` by `test_contracts.py`. Each takes (task, model, batch) and returns the loss of each example, B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import huber, log_softmax, logsumexp, softmax
from sklearn.metrics import log_loss, mean_absolute_error, mean_pinball_loss, mean_squared_error
from torch import Tensor

from tauon.types import Batch

Reference = Callable[[Any, Any, Batch], Tensor]


def _cross_entropy(logits_BC: Tensor, targets_B: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with smoothed targets (Szegedy et al. 2015): each target is one minus the smoothing, plus an even share of it."""
    shares_BC = np.full(logits_BC.shape, smoothing / logits_BC.shape[1])
    shares_BC[np.arange(len(shares_BC)), targets_B.numpy()] += 1 - smoothing
    return torch.from_numpy(-(shares_BC * log_softmax(logits_BC.double().numpy(), 1)).sum(1))


def classification(task: Any, model: Any, batch: Batch) -> Tensor:
    return _cross_entropy(model(batch.inputs), batch.targets, task.label_smoothing)


def text_classification(task: Any, model: Any, batch: Batch) -> Tensor:
    return _cross_entropy(model(batch.inputs, batch.segments), batch.targets, task.label_smoothing)


def audio_classification(task: Any, model: Any, batch: Batch) -> Tensor:
    return _cross_entropy(model(batch.inputs, batch.lengths), batch.targets, task.label_smoothing)


def ordinal(task: Any, model: Any, batch: Batch) -> Tensor:
    """cumulative: scikit-learn's log loss of "is the class at most k?" for each step k; rps: its squared error, summed over the steps."""
    below_BS = softmax(model(batch.inputs).double().numpy(), 1).cumsum(1)[:, :-1]
    truth_BS = (batch.targets.numpy()[:, None] <= np.arange(below_BS.shape[1])).astype(float)
    of_row = {
        "cumulative": lambda t, p: log_loss(t, p, normalize=False, labels=[0, 1]),
        "rps": lambda t, p: len(t) * mean_squared_error(t, p),
    }
    return torch.tensor([of_row[task.loss_kind](t, p) for t, p in zip(truth_BS, below_BS, strict=True)])


def multi_label(task: Any, model: Any, batch: Batch) -> Tensor:
    assert not task.label_smoothing
    p_BK, truth_BK = model(batch.inputs).double().sigmoid().numpy(), batch.targets.numpy()
    return torch.tensor([log_loss(t, p, labels=[0, 1]) for t, p in zip(truth_BK, p_BK, strict=True)])


def _errors(kind: str, truth_BN: NDArray[Any], output_BN: NDArray[Any], delta: float) -> Tensor:
    """Mean error of each row."""
    if kind == "huber":
        return torch.from_numpy(huber(delta, output_BN - truth_BN).mean(1))
    error: Any = {"mse": mean_squared_error, "mae": mean_absolute_error}[kind]
    return torch.tensor([error(t, o) for t, o in zip(truth_BN, output_BN, strict=True)])


def regression(task: Any, model: Any, batch: Batch) -> Tensor:
    output_BK = model(batch.inputs).double().numpy()
    return output_BK.shape[1] * _errors(task.loss_kind, batch.targets.double().numpy().reshape(output_BK.shape), output_BK, 1.0)


def _pinball(truth_BN: NDArray[Any], output_BNQ: NDArray[Any], levels: tuple[float, ...]) -> Tensor:
    """scikit-learn's mean pinball loss of each row, averaged over the levels."""
    rows = zip(truth_BN, output_BNQ, strict=True)
    return torch.tensor([np.mean([mean_pinball_loss(t, o[:, i], alpha=q) for i, q in enumerate(levels)]) for t, o in rows])


def quantile_regression(task: Any, model: Any, batch: Batch) -> Tensor:
    truth_BK = batch.targets.double().numpy().reshape(len(batch), -1)
    output_BKQ = model(batch.inputs).double().numpy().reshape(*truth_BK.shape, -1)
    return truth_BK.shape[1] * _pinball(truth_BK, output_BKQ, task.quantiles)


def forecasting(task: Any, model: Any, batch: Batch) -> Tensor:
    truth_BN = batch.targets.double().numpy().reshape(len(batch), -1)
    output = model(batch.inputs).double().numpy()
    if task.loss_kind == "quantile":
        return _pinball(truth_BN, output.reshape(*truth_BN.shape, -1), task.levels)
    return _errors(task.loss_kind, truth_BN, output.reshape(truth_BN.shape), task.delta)


def _log_p(model: Any, inputs_NT: Tensor, segments: Tensor | None, targets_NT: Tensor) -> Tensor:
    """Log-probability of each target from the full logits, NT."""
    logits_NTV = model.head(model(inputs_NT, segments)).double()
    return torch.distributions.Categorical(logits=logits_NTV).log_prob(targets_NT)


def tokens(task: Any, model: Any, batch: Batch) -> Tensor:
    """Of language modelling, instruction tuning, masked language modelling: summed over the tokens of weight one."""
    return -(_log_p(model, batch.inputs, batch.segments, batch.targets) * batch.weights).sum(1)


def dpo(task: Any, model: Any, batch: Batch) -> Tensor:
    """Equation 7 of Rafailov et al. 2023; with label smoothing equation 3 of Mitchell 2023 (conservative DPO)."""
    assert batch.reference is not None
    assert batch.segments is not None
    log_p_B2 = torch.stack(
        [(_log_p(model, batch.inputs[:, i], batch.segments[:, i], batch.targets[:, i]) * batch.weights[:, i]).sum(1) for i in range(2)], 1
    )
    ratio_B2 = (log_p_B2 - batch.reference).numpy()
    margin_B = task.beta * (ratio_B2[:, 0] - ratio_B2[:, 1])
    wrong = task.label_smoothing
    return torch.from_numpy((1 - wrong) * np.logaddexp(0, -margin_B) + wrong * np.logaddexp(0, margin_B))


def speech_recognition(task: Any, model: Any, batch: Batch) -> Tensor:
    """CTC by the forward recursion over the transcript with blanks (Graves et al. 2006, equations 6 to 8), in log space."""
    logits_BSC, frames_B = model(batch.inputs, batch.lengths, frames=True)
    losses = []
    for logits_SC, frames, target in zip(logits_BSC.double().numpy(), frames_B.tolist(), batch.targets.tolist(), strict=True):
        said = [c for c in target if c >= 0]
        path = [0, *(x for c in said for x in (c, 0))]
        log_p_SC = log_softmax(logits_SC[:frames], 1)
        alpha = np.full(len(path), -np.inf)
        alpha[:2] = log_p_SC[0, path[:2]]
        for frame in log_p_SC[1:]:
            before = alpha
            alpha = np.array(
                [
                    logsumexp([before[i], *before[max(0, i - 1) : i], *([before[i - 2]] if i > 1 and c != 0 and c != path[i - 2] else [])])
                    + frame[c]
                    for i, c in enumerate(path)
                ]
            )
        losses.append(-logsumexp(alpha[-2:]) / len(said))
    return torch.tensor(losses)


REFERENCES: dict[str, Reference] = {
    "classification": classification,
    "ordinal": ordinal,
    "multi-label": multi_label,
    "regression": regression,
    "quantile-regression": quantile_regression,
    "forecasting": forecasting,
    "language-modelling": tokens,
    "instruction-tuning": tokens,
    "masked-language-modelling": tokens,
    "dpo": dpo,
    "text-classification": text_classification,
    "audio-classification": audio_classification,
    "speech-recognition": speech_recognition,
}
