"""The next token of each text from the logits of a step. Bias, penalties and constraint first, then temperature, top_k, top_p, min_p, as in
transformers; drawn as `tauon.generate.generate` draws. Each row is computed by itself: it does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tauon.generate.constrain import Constraint
from tauon.generate.request import SamplingParams

__all__ = ["Chosen", "Draw", "choose", "distribution"]

_FEW = 256
"""Tokens that are sorted first for `top_p`; all of them only where these do not reach it."""


@dataclass
class Draw:
    """What one text's choices depend on."""

    params: SamplingParams
    generator: torch.Generator
    prompt: Sequence[int]
    answer: list[int] = field(default_factory=list)
    constraint: Constraint | None = None


@dataclass(frozen=True)
class Chosen:
    """A token; its log-probability and the most likely tokens' if asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choose(logits_NV: Tensor, draws: Sequence[Draw]) -> list[Chosen]:
    """Choose the next token of each row (float32, on the CPU). A random number is taken for each row that samples."""
    tokens = [-1] * len(draws)
    plain: list[int] = []  # rows that sample from the whole distribution: all at once
    adjusted_NV = logits_NV
    if any(_adjusts(d) for d in draws):
        adjusted_NV = logits_NV.clone()
        for row, d in enumerate(draws):
            if _adjusts(d):
                _adjust(adjusted_NV[row], d)
    best = adjusted_NV.argmax(1).tolist()
    for row, d in enumerate(draws):
        p = d.params
        if p.temperature == 0:
            tokens[row] = best[row]
        elif (p.top_k or 0) <= 0 and p.top_p >= 1 and p.min_p <= 0:
            plain.append(row)
        else:
            tokens[row] = _draw(distribution(adjusted_NV[row], p)[None], [d])[0]
    if plain:
        rows_NV = (adjusted_NV if len(plain) == len(draws) else adjusted_NV[plain]).double()
        heat_N1 = torch.tensor([draws[row].params.temperature for row in plain], dtype=torch.float64)[:, None]
        p_NV = ((rows_NV - rows_NV.amax(1, keepdim=True)) / heat_N1).softmax(1)
        for row, token in zip(plain, _draw(p_NV, [draws[row] for row in plain]), strict=True):
            tokens[row] = token
    return [_with_logprobs(logits_NV[row], token, d.params.logprobs) for row, (token, d) in enumerate(zip(tokens, draws, strict=True))]


def distribution(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities V (float64) after temperature (above 0), top_k, top_p and min_p."""
    logits_V = logits_V.double()
    p_V = ((logits_V - logits_V.max()) / params.temperature).softmax(0)
    k, V = params.top_k or 0, p_V.shape[0]
    if 0 < k < V:
        p_V = torch.where(p_V < p_V.topk(k).values[-1], 0.0, p_V)
    if params.top_p < 1:
        goal = params.top_p * float(p_V.sum())
        sorted_p, order = p_V.topk(min(_FEW, V))
        if float(sorted_p.sum()) < goal:
            sorted_p, order = p_V.sort(descending=True)
        before = sorted_p.cumsum(0) - sorted_p  # mass of more likely tokens: the first is always kept
        likely = order[before < goal]
        p_V = torch.zeros_like(p_V).index_copy_(0, likely, p_V[likely])
    if params.min_p > 0:
        p_V = torch.where(p_V < params.min_p * p_V.max(), 0.0, p_V)
    return p_V / p_V.sum()


def _draw(p_NV: Tensor, draws: Sequence[Draw]) -> list[int]:
    u_N1 = torch.cat([torch.rand(1, generator=d.generator, dtype=torch.float64) for d in draws])[:, None]
    at: list[int] = torch.searchsorted(p_NV.cumsum(1), u_N1, right=True)[:, 0].tolist()
    V = p_NV.shape[1]
    return [token if token < V and float(p_NV[row, token]) > 0 else int(p_NV[row].nonzero()[-1]) for row, token in enumerate(at)]


def _adjusts(d: Draw) -> bool:
    p = d.params
    return bool(d.constraint or p.logit_bias or p.repetition_penalty != 1 or ((p.presence_penalty or p.frequency_penalty) and d.answer))


def _adjust(logits_V: Tensor, d: Draw) -> None:
    """Apply penalties, bias and constraint, in place."""
    p, V = d.params, logits_V.shape[0]
    if p.repetition_penalty != 1:
        seen = torch.tensor([*d.prompt, *d.answer]).unique()
        l = logits_V[seen]
        logits_V[seen] = torch.where(l > 0, l / p.repetition_penalty, l * p.repetition_penalty)
    if (p.presence_penalty or p.frequency_penalty) and d.answer:
        ids, counts = torch.tensor(d.answer).unique(return_counts=True)
        logits_V[ids] -= p.presence_penalty + p.frequency_penalty * counts.to(logits_V.dtype)
    for token, bias in p.logit_bias.items():
        if 0 <= token < V:
            logits_V[token] = -torch.inf if bias <= -100 else logits_V[token] + bias
    if d.constraint is not None:
        logits_V.masked_fill_(~d.constraint.allowed(V), -torch.inf)
    if not bool((logits_V > -torch.inf).any()):
        raise ValueError("no token is left: logit_bias and the constraint exclude all of them")


def _with_logprobs(logits_V: Tensor, token: int, alternatives: int | None) -> Chosen:
    if alternatives is None:
        return Chosen(token)
    logprobs_V = logits_V.log_softmax(0)
    top: tuple[tuple[int, float], ...] = ()
    if alternatives:
        values, ids = logprobs_V.topk(min(alternatives, len(logprobs_V)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Chosen(token, float(logprobs_V[token]), top)
