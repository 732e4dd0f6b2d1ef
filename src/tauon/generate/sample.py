"""Sampling text from a causal language model, token by token, with a KV cache.

Each sample is a pure function of (seed, sample number), however many there are. Works on token ids;
turning text into ids and back is the tokenizer's work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
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


def _generator(seed: int, sample: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/sample/{sample}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


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
    stop_id: int | Collection[int] | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue `prompt` (at least one token id) `samples` times by up to `max_tokens`; returns the new ids of each sample.

    Ends a sample at `stop_id`, or any of them (not returned). When the model's longest sequence is full, the last half goes on as context.
    `on_token(sample, id)` is told each token as it comes, sample after sample. Raises `DataError` on an empty prompt or ids outside the vocabulary.
    """
    vocab = model.embed.num_embeddings
    if not len(prompt):
        raise DataError("the prompt has no token; start from the tokenizer's beginning-of-document token")
    odd = next((i for i in prompt if not 0 <= i < vocab), None)
    if odd is not None:
        raise DataError(f"the prompt holds token {odd}, the model knows 0 to {vocab - 1}: use the tokenizer it was trained with")
    stops = {stop_id} if isinstance(stop_id, int) else set(stop_id or ())
    was = model.training
    model.eval()
    device = model.embed.weight.device
    tokens = torch.tensor([list(prompt)[-model.seq_len :]], dtype=torch.int64, device=device)
    room = min(model.seq_len, tokens.shape[1] + max_tokens)  # a model for very long texts need not pay for them in short ones
    start = KVCache(model, 1, room)

    def following(pending: Tensor, cache: KVCache) -> Tensor:
        with context():
            logits_V = model.logits(model(pending, cache=cache)[0, -1]).float().cpu()
        if not torch.isfinite(logits_V).all():
            raise CheckpointError("the model's logits are not finite: training diverged. Use an earlier checkpoint, or train anew.")
        return next_token_distribution(logits_V, temperature, top_k, top_p)

    try:
        first_V = following(tokens, start)  # the prompt is read once for all samples
        out = []
        # One sample after the other: in a batch, the number of rows would change the last bits of a row, and with them,
        # where two tokens are about equally likely, the text.
        for i in range(samples):
            draw, ids = _generator(seed, i), tokens[0].tolist()
            new: list[int] = []
            p_V, cache = first_V, start.copy()
            while len(new) < max_tokens:
                u = torch.rand(1, generator=draw, dtype=torch.float64)
                token = min(int(torch.searchsorted(p_V.cumsum(0), u, right=True)), int(p_V.nonzero()[-1]))
                if token in stops:
                    break
                new.append(token)
                ids.append(token)
                if on_token is not None:
                    on_token(i, token)
                if len(new) == max_tokens:
                    break
                pending = ids[-1:]
                if cache.length == model.seq_len:
                    cache, pending = KVCache(model, 1, model.seq_len), ids[-max(1, model.seq_len // 2) :]
                p_V = following(torch.tensor([pending], dtype=torch.int64, device=device), cache)
            out.append(new)
    finally:
        model.train(was)
    return out
