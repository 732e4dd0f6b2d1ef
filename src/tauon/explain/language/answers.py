"""Which tokens each token of an answer rests on: attribution of every next token to all tokens before it, the answer's own included.

Shapes: P tokens of the prompt, A tokens of the answer, T = P + A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauon.errors import DataError
from tauon.explain.base import Work, method_named
from tauon.explain.inputs import cases_of
from tauon.types import Batch, DataSpec

__all__ = ["AnswerAttribution", "attribute_answer"]


@dataclass(frozen=True)
class AnswerAttribution:
    """How much each token counted for each token of an answer."""

    prompt: int
    """P, tokens of the prompt."""
    tokens: Tensor
    """T, prompt and answer (int64)."""
    values: Tensor
    """AT: row a is about token P + a, of which only tokens before it can count; the others are 0."""
    probabilities: Tensor
    """A: what the model gave each token of the answer."""

    @property
    def of_prompt(self) -> Tensor:
        """How much each token of the prompt counted for the whole answer, P."""
        return self.values[:, : self.prompt].sum(0)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, rounded to 4 digits."""
        rows = [[float(f"{v:.4g}") for v in row] for row in self.values.tolist()]
        return {"prompt": self.prompt, "tokens": self.tokens.tolist(), "values": rows, "probabilities": self.probabilities.tolist()}


def attribute_answer(
    model: Any, spec: DataSpec, prompt_P: Tensor, answer_A: Tensor, *, method: str = "integrated_gradients", work: Work | None = None
) -> AnswerAttribution:
    """Attribute each token of an answer to the tokens before it.

    Args:
        model: a language model of `tauon.models`.
        spec: of its data.
        prompt_P: token ids, at least one.
        answer_A: token ids that follow; what the model wrote, or any other continuation.
        method: an attribution method.
        work: how to compute.

    Raises:
        DataError: an empty prompt or answer, or more tokens than the model takes.
    """
    P, A = len(prompt_P), len(answer_A)
    if not P or not A:
        raise DataError(f"{P} tokens of prompt and {A} of answer: both need at least one")
    most = spec.seq_len or P + A
    if most < P + A - 1:
        raise DataError(f"prompt and answer have {P + A} tokens, and the model reads at most {most}. Shorten them.")
    tokens_T = torch.cat([prompt_P, answer_A]).long()
    inputs = tokens_T[:-1].expand(A, -1)
    lengths = torch.arange(P, P + A)
    batch = Batch(inputs, inputs, torch.ones(inputs.shape), lengths=lengths)
    cases = cases_of(model, "tokens", spec, batch, targets=answer_A.long())
    work = work or Work()
    found = method_named(method).run(cases, work)
    values = torch.where(torch.arange(P + A - 1) < lengths.unsqueeze(1), found.values.cpu(), 0)
    with torch.no_grad():
        rows = torch.arange(A, device=cases.inputs.device)
        probabilities = torch.cat([cases.probability(cases.inputs[part], rows[part]) for part in work.chunks(A)]).cpu()
    return AnswerAttribution(P, tokens_T.cpu(), torch.cat([values, torch.zeros(A, 1)], 1), probabilities)
