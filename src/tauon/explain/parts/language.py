"""What is said about single prompts of a language model: the logit lens, attention patterns, and which tokens a whole answer rests on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tauon.errors import DataError, Problem, RecipeError
from tauon.explain.base import Work
from tauon.explain.language import attribute_answer, logit_lens, patch_activations
from tauon.explain.methods import attention_weights
from tauon.explain.parts.shown import visible
from tauon.explain.subject import Subject
from tauon.types import Batch

__all__ = ["add_language", "contrast"]

_HEADS = 16
"""Most attention patterns that are kept of a prompt."""
_LONGEST = 128
"""Tokens up to which attention patterns are kept."""


def add_language(
    subject: Subject, batch: Batch, cases: list[dict[str, Any]], arrays: dict[str, NDArray[Any]], *, answer: int, work: Work
) -> None:
    """Add to each case, in place: what each layer would say, attention patterns, and for `answer` tokens of continuation what they rest on."""
    for i, case in enumerate(cases):
        tokens = prompt_of(batch, i)
        try:
            lens = logit_lens(subject.model, tokens)
        except DataError as err:  # a language model of another build
            case["lens_problem"] = str(err)
            return
        case["lens"] = [row.to_json() | {"tokens": [visible(subject, t) for t in row.tokens]} for row in lens]
        _attention(subject, tokens, i, case, arrays)
        if answer:
            _answer(subject, tokens, answer, i, case, arrays, work)


def prompt_of(batch: Batch, i: int) -> torch.Tensor:
    """Return the tokens of one row, without padding."""
    row = batch.inputs[i]
    return row if batch.lengths is None else row[: int(batch.lengths[i])]


def _attention(subject: Subject, tokens: torch.Tensor, i: int, case: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    if len(tokens) > _LONGEST:
        return
    weights = attention_weights(subject.model, lambda: subject.model(tokens.unsqueeze(0)))
    heads = [(layer, head) for layer, w in weights.items() for head in range(w.shape[1])]
    kept = heads if len(heads) <= _HEADS else [heads[j] for j in np.linspace(0, len(heads) - 1, _HEADS).round().astype(int)]
    if not kept:
        return
    arrays[f"{i}.attention"] = np.stack([weights[layer][0, head].float().cpu().numpy() for layer, head in kept])
    case["attention"] = {"array": f"{i}.attention", "heads": [f"{layer}, head {head}" for layer, head in kept], "of": len(heads)}


def _answer(
    subject: Subject, tokens: torch.Tensor, length: int, i: int, case: dict[str, Any], arrays: dict[str, NDArray[Any]], work: Work
) -> None:  # fmt: skip
    most = subject.spec.seq_len or len(tokens) + length
    room = min(length, most - len(tokens) + 1)
    if room < 1:
        case["answer_problem"] = f"the prompt already has the {most} tokens that the model reads, so no answer was written"
        return
    written: list[int] = []
    with torch.no_grad():
        for _ in range(room):
            so_far = torch.cat([tokens, torch.tensor(written, dtype=torch.int64, device=tokens.device)])
            written.append(int(subject.model.logits(subject.model(so_far.unsqueeze(0))[0, -1]).argmax()))  # type: ignore[operator]
    found = attribute_answer(subject.model, subject.spec, tokens, torch.tensor(written, device=tokens.device), work=work)
    arrays[f"{i}.written"] = found.values.float().numpy()
    case["written"] = {
        "array": f"{i}.written", "prompt": found.prompt, "tokens": [visible(subject, t) for t in found.tokens.tolist()],
        "probabilities": found.probabilities.tolist(), "method": "integrated_gradients",
    }  # fmt: skip


def contrast(subject: Subject, prompts: tuple[str, ...], work: Work) -> dict[str, Any]:
    """Return what activation patching says about two prompts. `RecipeError` if they cannot be compared."""
    if subject.input_kind != "tokens" or subject.tokenizer is None:
        raise RecipeError(
            [Problem("explain.language.contrast", f"is for language models, and this run reads {subject.input_kind}. Remove it.")]
        )
    if len(prompts) != 2:
        raise RecipeError([Problem("explain.language.contrast", f"has {len(prompts)} prompts, expected 2")])
    first, second = (torch.from_numpy(subject.tokenizer.encode(p).astype(np.int64)).to(subject.device) for p in prompts)
    try:
        found = patch_activations(subject.model, first, second, work=work)
    except DataError as err:
        raise RecipeError([Problem("explain.language.contrast", str(err))]) from None
    said = [visible(subject, t) for t in found.answers]
    return found.to_json() | {
        "prompts": list(prompts), "answers": said, "tokens": [[visible(subject, t) for t in p.tolist()] for p in (first, second)],
    }  # fmt: skip
