"""Sampling text from a causal language model, token by token, with a KV cache.

Each sample's random draws are a pure function of (seed, sample number), whatever else is in the batch. Works on token ids;
turning text into ids and back is the tokenizer's work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from tauon.errors import CheckpointError, DataError
from tauon.models import GPT, KVCache

__all__ = ["generate", "next_token_distribution"]


def next_token_distribution(logits_V: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Probabilities V (float64) after temperature, then top-k (Fan et al. 2018), then nucleus top-p (Holtzman et al. 2020).

    temperature 0 puts all mass on the most likely token.
    """
    logits_V = logits_V.double()
    if temperature == 0:
        return torch.nn.functional.one_hot(logits_V.argmax(), logits_V.shape[0]).double()
    p_V = ((logits_V - logits_V.max()) / temperature).softmax(0)  # the largest at 0: a tiny temperature does not overflow
    if top_k is not None and top_k < p_V.shape[0]:
        floor = p_V.topk(top_k).values[-1]
        p_V = torch.where(p_V < floor, 0.0, p_V)
    if top_p is not None:
        sorted_p, order = p_V.sort(descending=True)
        before = sorted_p.cumsum(0) - sorted_p  # mass of likelier tokens: the first is always kept
        p_V = p_V.index_fill(0, order[before >= top_p * p_V.sum()], 0.0)
    return p_V / p_V.sum()


@torch.no_grad()
def generate(
    model: GPT,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    samples: int = 1,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_id: int | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue `prompt` (at least one token id) `samples` times by up to `max_tokens`; returns the new ids of each sample.

    Ends a sample at `stop_id` (not returned). When the model's longest sequence is full, the last half goes on as context.
    `on_token(sample, id)` is told each token as it comes. Raises `DataError` on an empty prompt or ids outside the vocabulary.
    """
    vocab = model.embed.num_embeddings
    if not len(prompt):
        raise DataError("the prompt has no token; start from the tokenizer's beginning-of-document token")
    if max(prompt) >= vocab or min(prompt) < 0:
        raise DataError(f"the prompt holds token {max(prompt)}, the model knows 0 to {vocab - 1}: use the tokenizer it was trained with")
    was = model.training
    model.eval()
    device = model.embed.weight.device
    draws = [
        torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(f"{seed}/sample/{i}".encode(), digest_size=8).digest(), "little") >> 1)
        for i in range(samples)
    ]
    tokens = torch.tensor([list(prompt)] * samples, dtype=torch.int64, device=device)[:, -model.seq_len :]
    out: list[list[int]] = [[] for _ in range(samples)]
    going = [True] * samples
    cache, pending = KVCache(model, samples, model.seq_len), tokens
    try:
        for _ in range(max_tokens):
            with context():
                logits_BV = model.logits(model(pending, cache=cache)[:, -1]).float().cpu()
            if not torch.isfinite(logits_BV).all():
                raise CheckpointError("the model's logits are not finite: training diverged. Use an earlier checkpoint, or train anew.")
            ids = []
            for i in range(samples):
                p_V = next_token_distribution(logits_BV[i], temperature, top_k, top_p)
                u = torch.rand(1, generator=draws[i], dtype=torch.float64)
                ids.append(min(int(torch.searchsorted(p_V.cumsum(0), u, right=True)), int(p_V.nonzero()[-1])))
                if going[i] and ids[i] == stop_id:
                    going[i] = False
                if going[i]:
                    out[i].append(ids[i])
                    if on_token is not None:
                        on_token(i, ids[i])
            if not any(going):
                break
            pending = torch.tensor(ids, dtype=torch.int64, device=device)[:, None]
            tokens = torch.cat((tokens, pending), dim=1)
            if cache.length == model.seq_len:
                cache, pending = KVCache(model, samples, model.seq_len), tokens[:, -max(1, model.seq_len // 2) :]
    finally:
        model.train(was)
    return out
