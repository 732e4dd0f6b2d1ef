"""Sentences with a random secret, for language models (Carlini et al. 2019, arXiv:1802.08232): the texts, and their rows of tokens.

Uses no model: `extraction` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tauon.errors import Problem, RecipeError
from tauon.types import Batch, DataSpec

__all__ = ["Secret", "SecretRows", "alphabet_of", "make_secrets", "sentence_ids"]


class TextCodec(Protocol):
    """Methods of a tokenizer that are used here."""

    bos: int

    def encode(self, text: str) -> Any: ...

    def decode(self, ids: Any) -> str: ...


@dataclass(frozen=True)
class Secret:
    """One sentence: an attacker knows `prefix`; `secret` must not be revealed."""

    prefix: str
    secret: str
    repeats: int
    """Number of repetitions in the training data, if included."""
    alphabet: str
    """Characters of a secret, drawn uniformly: alphabet ** len(secret) candidates."""

    @property
    def text(self) -> str:
        return self.prefix + self.secret

    @property
    def candidates(self) -> int:
        """Number of possible secrets."""
        return int(len(self.alphabet) ** len(self.secret))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def alphabet_of(tokenizer: TextCodec) -> str:
    """Ten characters that the tokenizer round-trips: digits, or letters if it has no digits."""
    for letters in ("0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        kept = "".join(c for c in letters if _comes_back(tokenizer, c))[:10]
        if len(kept) == 10:
            return kept
    message = "the tokenizer has neither ten digits nor ten letters, so it cannot encode secrets. Set another data.tokenizer."
    raise RecipeError([Problem("privacy.audit.kind", message)])


def _comes_back(tokenizer: TextCodec, text: str) -> bool:
    try:
        return tokenizer.decode(np.asarray(tokenizer.encode(text))) == text
    except (KeyError, ValueError, IndexError):
        return False


_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def make_secrets(n: int, alphabet: str, length: int, template: str, repeats: Sequence[int], rng: np.random.Generator) -> list[Secret]:
    """N sentences with distinct names and uniform secrets; repeats in turn."""
    names: dict[str, None] = {}
    while len(names) < n:
        c, v = rng.integers(len(_CONSONANTS), size=4), rng.integers(len(_VOWELS), size=4)
        names["".join(_CONSONANTS[i] + _VOWELS[j] for i, j in zip(c, v, strict=True))] = None
    prefix, _, _ = template.partition("{secret}")
    found = []
    for i, name in enumerate(names):
        secret = "".join(alphabet[k] for k in rng.integers(len(alphabet), size=length))
        found.append(Secret(prefix.replace("{name}", name), secret, int(repeats[i % len(repeats)]), alphabet))
    return found


def sentence_ids(tokenizer: TextCodec, text: str) -> NDArray[np.int64]:
    """BOS and the sentence."""
    return np.concatenate([[tokenizer.bos], np.asarray(tokenizer.encode(text), np.int64)])


class SecretRows:
    """Sentences as rows of tokens, one per row: inputs and targets BT, weight 1 where a token of the sentence is predicted."""

    def __init__(self, secrets: Sequence[Secret], tokenizer: TextCodec, spec: DataSpec, *, segments: bool) -> None:
        assert spec.seq_len is not None
        self.spec, self.facts, self._bos, self._segments = spec, {"secrets": len(secrets)}, tokenizer.bos, segments
        self._ids = [sentence_ids(tokenizer, s.text) for s in secrets]
        longest = max((len(i) for i in self._ids), default=0)
        if longest - 1 > spec.seq_len:
            message = f"is {spec.seq_len} tokens, but the longest sentence with a secret has {longest - 1}. Raise it, or shorten privacy.audit.template."
            raise RecipeError([Problem("data.seq_len", message)])

    def __len__(self) -> int:
        return len(self._ids)

    def answers(self, row: int) -> None:
        """For conversations: no known answer."""

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Batch of sentences by index."""
        import torch

        index = np.asarray(index, np.int64)
        shape = (len(index), self.spec.seq_len or 0)
        inputs = np.full(shape, self._bos, np.int64)
        targets, weights, segments = inputs.copy(), np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
        for row, i in enumerate(index.tolist()):
            ids = self._ids[i]
            to = len(ids) - 1
            inputs[row, :to], targets[row, :to], weights[row, :to], segments[row, :to] = ids[:-1], ids[1:], 1.0, 0
        numbered = torch.from_numpy(segments) if self._segments else None
        tokens, following, counted = (torch.from_numpy(a) for a in (inputs, targets, weights))
        return Batch(tokens, following, counted, numbered, torch.from_numpy(index.copy()))
