"""Memorization of secrets by a language model: exposure, and extraction (Carlini et al. 2019, arXiv:1802.08232).

exposure = log2 |R| - log2 rank: R is the set of all possible secrets, ranked by the model's log-perplexity; a model without the secret has 1.44
bits on average, one that memorized it log2 |R|. If R is too large to rank completely, the rank is estimated from a skew normal distribution
fitted to a sample (section 4.3 of the paper).

Extraction: greedy decoding (`tauon.generate`) and beam search from the prefix that the attacker knows. Trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tauon.generate import Sampling, generate
from tauon.privacy.audit.secrets import Secret, sentence_ids
from tauon.tasks import token_nll

__all__ = ["SkewNormal", "exposure", "extract", "fit_skew_normal", "surprise"]

EXACT = 20_000
"""Maximum number of candidates for ranking all."""
SAMPLE = 2_000
"""Sample size if there are more."""
_ROWS = 64
BEAM = 16


@torch.no_grad()
def surprise(
    model: Any, tokenizer: Any, texts: Sequence[str], *, context: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> NDArray[np.float64]:
    """-log p of each text after the start of a document, in nats: log-perplexity, not divided by the length."""
    ids = [sentence_ids(tokenizer, t) for t in texts]
    device = next(model.parameters()).device
    found = np.empty(len(ids))
    by_length = np.argsort([len(i) for i in ids], kind="stable")
    for start in range(0, len(ids), _ROWS):
        rows = by_length[start : start + _ROWS]
        longest = max(len(ids[r]) for r in rows)
        tokens = torch.full(
            (_ROWS, longest), tokenizer.bos, dtype=torch.int64
        )  # one shape: the rounding of a text must not depend on the number of others
        for at, r in enumerate(rows):
            tokens[at, : len(ids[r])] = torch.from_numpy(ids[r])
        tokens = tokens.to(device)
        with context():
            hidden_BTD = model(tokens[:, :-1].contiguous())
            nll_BT = token_nll(hidden_BTD.flatten(0, 1), model.head.weight, tokens[:, 1:].flatten()).view(_ROWS, -1).double().cpu()
        for at, r in enumerate(rows):
            found[r] = float(nll_BT[at, : len(ids[r]) - 1].sum())
    return found


@dataclass(frozen=True)
class SkewNormal:
    """Density 2 / w phi(z) Phi(a z), z = (x - place) / w (Azzalini 1985)."""

    place: float
    width: float
    shape: float

    def log_cdf(self, x: float) -> float:
        """Log P[X <= x]; by quadrature on the logarithm, accurate far out in the tail."""
        z = (x - self.place) / self.width
        t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
        # far below, nearly all mass lies within a few 1/|z| of z; near the middle, within ten widths
        reach = 60.0 / max(abs(z) if z < 0 else 1.0, 4.0) + (max(z, 0.0) + 12.0)
        u = z - reach * t**2
        log_density = math.log(2) - 0.5 * u**2 - 0.5 * math.log(2 * math.pi) + torch.special.log_ndtr(self.shape * u)
        steps = -(u[1:] - u[:-1])
        middle = torch.logaddexp(log_density[1:], log_density[:-1]) - math.log(2)
        return min(0.0, float(torch.logsumexp(middle + steps.log(), 0)))


def fit_skew_normal(values: NDArray[np.float64]) -> SkewNormal:
    """Fit by maximum likelihood, starting from the moments."""
    mean, std = float(values.mean()), float(values.std()) or 1e-12
    skew = float(np.clip(((values - mean) ** 3).mean() / std**3, -0.97, 0.97))
    root = abs(skew) ** (2 / 3)
    delta = math.copysign(math.sqrt(math.pi / 2 * root / (root + ((4 - math.pi) / 2) ** (2 / 3))), skew)
    delta = max(-0.995, min(0.995, delta))
    width = 1 / math.sqrt(1 - 2 * delta**2 / math.pi)  # in standard deviations
    start = [-width * delta * math.sqrt(2 / math.pi), math.log(width), delta / math.sqrt(1 - delta**2)]
    x = torch.from_numpy((values - mean) / std)
    p = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([p], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        z = (x - p[0]) / p[1].exp()
        nll: torch.Tensor = (p[1] + 0.5 * z**2 - torch.special.log_ndtr(p[2] * z)).mean() + 1e-8 * p[2] ** 2
        nll.backward()  # type: ignore[no-untyped-call]
        return nll

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = p.detach() if torch.isfinite(p).all() else torch.tensor(start, dtype=torch.float64)
    return SkewNormal(mean + std * float(found[0]), std * math.exp(float(found[1])), float(found[2]))


def candidates_of(secret: Secret, rng: np.random.Generator) -> tuple[list[str], bool]:
    """(texts with other possible secrets, whether these are all of them)."""
    a, n = len(secret.alphabet), len(secret.secret)
    whole = secret.candidates <= EXACT
    numbers = np.arange(secret.candidates) if whole else None
    if numbers is not None:
        digits = (numbers[:, None] // a ** np.arange(n - 1, -1, -1)) % a
    else:
        digits = rng.integers(0, a, (SAMPLE, n))
    found = ["".join(secret.alphabet[d] for d in row) for row in digits.tolist()]
    return [secret.prefix + f for f in found if f != secret.secret], whole


def exposure(
    model: Any, tokenizer: Any, secret: Secret, *, seed: int = 0, context: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> tuple[float, str]:
    """(exposure in bits, method): exact for up to 20,000 candidates, otherwise from a sample and a skew normal."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    others, whole = candidates_of(secret, rng)
    found = surprise(model, tokenizer, [secret.text, *others], context=context)
    mine, theirs = float(found[0]), found[1:]
    most = math.log2(secret.candidates)
    if whole:
        rank = 1 + float((theirs < mine).sum()) + 0.5 * float((theirs == mine).sum())
        return most - math.log2(rank), "exact rank"
    if theirs.std() == 0:
        return (most if mine < theirs[0] else 0.0), f"a sample of {len(theirs):,}, all equal"
    bits = -fit_skew_normal(theirs).log_cdf(mine) / math.log(2)
    return min(most, max(0.0, bits)), f"skew normal of {len(theirs):,} candidates"


def extract(
    model: Any, tokenizer: Any, secret: Secret, *, context: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> dict[str, bool]:
    """Whether the model generates the secret after its prefix: `greedy`, and `beam` (among the 16 most likely texts)."""
    prefix = sentence_ids(tokenizer, secret.prefix).tolist()
    length = len(sentence_ids(tokenizer, secret.text)) - len(prefix) + 2  # tokenization may differ after a prefix
    written = generate(model, prefix, max_tokens=max(1, length), sampling=Sampling(temperature=0.0), context=context)[0]
    greedy = tokenizer.decode(np.asarray(written)).startswith(secret.secret)
    return {"greedy": greedy, "beam": greedy or secret.secret in beam(model, tokenizer, prefix, secret, max(1, length), context)}


@torch.no_grad()
def beam(
    model: Any, tokenizer: Any, prefix: list[int], secret: Secret, length: int, context: Callable[[], AbstractContextManager[Any]]
) -> set[str]:
    """The 16 most likely continuations by beam search, cut to the length of the secret."""
    device = next(model.parameters()).device
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    found: set[str] = set()
    for _ in range(length):
        rows = torch.tensor([prefix + ids for _, ids in alive], dtype=torch.int64, device=device)
        with context():
            log_p = model.logits(model(rows)[:, -1]).float().log_softmax(-1)
        top = log_p.topk(min(BEAM, log_p.shape[1]), dim=1)
        grown = [
            (score + float(v), [*ids, int(t)])
            for (score, ids), values, tokens in zip(alive, top.values, top.indices, strict=True)
            for v, t in zip(values, tokens, strict=True)
        ]
        alive = sorted(grown, key=lambda g: -g[0])[:BEAM]
        found |= {tokenizer.decode(np.asarray(ids))[: len(secret.secret)] for _, ids in alive}
    return found
