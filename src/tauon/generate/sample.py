"""Sampling text from a causal language model, token by token, with a KV cache.

Each sample is a pure function of (seed, sample number), independent of how many are drawn. Works on token ids;
the tokenizer converts text to ids and back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauon.errors import CheckpointError, DataError
from tauon.models import GPT, KVCache

__all__ = ["Sampling", "generate", "next_token_distribution"]


def next_token_distribution(logits_V: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Probabilities V (float64) after temperature, then top-k (Fan et al. 2018), then nucleus top-p (Holtzman et al. 2020).

    temperature 0 puts all mass on the most likely token.
    """
    logits_V = logits_V.double()
    if temperature == 0:
        return torch.nn.functional.one_hot(logits_V.argmax(), logits_V.shape[0]).double()
    p_V = ((logits_V - logits_V.max()) / temperature).softmax(0)  # maximum at 0, so that a tiny temperature does not overflow
    if top_k is not None and top_k < p_V.shape[0]:
        floor = p_V.topk(top_k).values[-1]
        p_V = torch.where(p_V < floor, 0.0, p_V)
    if top_p is not None:
        sorted_p, order = p_V.sort(descending=True)
        before = sorted_p.cumsum(0) - sorted_p  # mass of more likely tokens: the first is always kept
        p_V = p_V.index_fill(0, order[before >= top_p * p_V.sum()], 0.0)
    return p_V / p_V.sum()


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled."""

    temperature: float = 0.8
    """0: always the most likely token."""
    top_k: int | None = None
    """Sample only from the k most likely tokens."""
    top_p: float | None = None
    """Sample only from the most likely tokens that add up to this probability."""
    seed: int = 0

    def generator(self, sample: int) -> torch.Generator:
        """Return the random generator of sample number `sample`."""
        digest = hashlib.blake2b(f"{self.seed}/sample/{sample}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@torch.no_grad()
def generate(
    model: GPT, prompt: Sequence[int], *, max_tokens: int, samples: int = 1, sampling: Sampling = Sampling(),
    stop_id: int | Collection[int] | None = None, context: Callable[[], AbstractContextManager[object]] = nullcontext,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Continue `prompt` by sampling token after token, with a KV cache.

    When the model's longest sequence is full, its last half stays as context.

    Args:
        model: a language model.
        prompt: token ids, at least one.
        max_tokens: most tokens that are written.
        samples: number of continuations.
        sampling: how the next token is chosen.
        stop_id: a token, or several, that end a sample; they are not returned.
        context: opened around each forward pass (autocast, say).
        on_token: called with (sample, id) for each token, sample after sample.

    Returns:
        The new ids of each sample.

    Raises:
        DataError: an empty prompt, or ids outside the vocabulary.

    >>> from tauon.models import GPTConfig, materialize
    >>> from tauon.types import DataSpec
    >>> config = GPTConfig(layers=1, width=16, heads=2).resolve(DataSpec(vocab=11, seq_len=8))
    >>> (new,) = generate(materialize(config, seed=0).eval(), [1, 2], max_tokens=5)
    >>> len(new), all(0 <= token < 11 for token in new)
    (5, True)
    """
    refuse_prompt(prompt, model.embed.num_embeddings)
    stops = {stop_id} if isinstance(stop_id, int) else set(stop_id or ())
    was_training = model.training
    model.eval()
    ids = list(prompt)[-model.seq_len :]
    capacity = min(model.seq_len, len(ids) + max_tokens)  # a short text needs no cache for the longest one
    start = KVCache(model, 1, capacity)
    try:
        first_V = _next_token(model, ids, start, sampling, context)  # the prompt is read once for all samples
        # One sample after another: in a batch, the number of rows would change the last bits of a row, and therefore the text
        # where two tokens are almost equally likely.
        out = []
        for i in range(samples):
            new: list[int] = []
            for token in _continue(model, list(ids), first_V, start.copy(), i, max_tokens, sampling, context):
                if token in stops:
                    break
                new.append(token)
                if on_token is not None:
                    on_token(i, token)
            out.append(new)
    finally:
        model.train(was_training)
    return out


def refuse_prompt(prompt: Sequence[int], vocab: int) -> None:
    """Raise `DataError` if a prompt is empty or has ids outside the vocabulary."""
    if not len(prompt):
        raise DataError("the prompt has no token. Start with the tokenizer's beginning-of-document token.")
    odd = next((i for i in prompt if not 0 <= i < vocab), None)
    if odd is not None:
        raise DataError(f"the prompt has token id {odd}, but the model's ids are 0 to {vocab - 1}. Use the tokenizer it was trained with.")


def _continue(
    model: GPT, ids: list[int], p_V: Tensor, cache: KVCache, sample: int, max_tokens: int, sampling: Sampling, context: Any
) -> Iterator[int]:
    """Yield the tokens of one sample, up to `max_tokens`. `ids`: the prompt, `cache`: its cache, `p_V`: distribution of the first token."""
    draw = sampling.generator(sample)
    for count in range(1, max_tokens + 1):
        u = torch.rand(1, generator=draw, dtype=torch.float64)
        token = min(int(torch.searchsorted(p_V.cumsum(0), u, right=True)), int(p_V.nonzero()[-1]))
        ids.append(token)
        yield token
        if count == max_tokens:
            return
        pending = ids[-1:]
        if cache.length == model.seq_len:
            cache, pending = KVCache(model, 1, model.seq_len), ids[-max(1, model.seq_len // 2) :]
        p_V = _next_token(model, pending, cache, sampling, context)


def _next_token(model: GPT, pending: list[int], cache: KVCache, sampling: Sampling, context: Any) -> Tensor:
    """Return the probabilities of the token after `pending`, and add `pending` to the cache."""
    tokens = torch.tensor([pending], dtype=torch.int64, device=model.embed.weight.device)
    with context():
        logits_V = model.logits(model(tokens, cache=cache)[0, -1]).float().cpu()
    if not torch.isfinite(logits_V).all():
        raise CheckpointError(
            "the model's logits are not finite: training diverged. Use an earlier checkpoint, or train again with a lower optim.lr."
        )
    return next_token_distribution(logits_V, sampling.temperature, sampling.top_k, sampling.top_p)
