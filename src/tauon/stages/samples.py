"""Samples of a language model for the report: continuations of prompts, and answers to held-out questions."""

from __future__ import annotations

from typing import Any

from tauon.data import Message, chat_prompt
from tauon.generate import Sampling, generate
from tauon.models import GPT
from tauon.stages.context import Context
from tauon.train import Precision

__all__ = ["sample_answers", "sample_texts"]

_QUESTIONS = 2
_MAX_TOKENS = 160


def sample_texts(ctx: Context, model: GPT, precision: Precision) -> list[dict[str, Any]]:
    """Continue each prompt of the recipe; without prompts, generate from the start of a document."""
    config, tokenizer = ctx.recipe.evaluate, ctx.splits.tokenizer
    assert tokenizer is not None
    out: list[dict[str, Any]] = []
    for prompt in config.prompts or ("",):
        ids = [tokenizer.bos, *tokenizer.encode(prompt).tolist()]
        for new in generate(
            model, ids, max_tokens=_MAX_TOKENS, samples=config.samples, sampling=_sampling(ctx), stop_id={tokenizer.bos, tokenizer.eos},
            context=precision.context,
        ) if config.samples else []:  # fmt: skip
            out.append({"prompt": prompt, "text": tokenizer.decode(new), "temperature": 0.8, "top_p": 0.95})
            ctx.on_event("sample", **out[-1])
    return out


def sample_answers(ctx: Context, model: GPT, precision: Precision, dataset: Any) -> list[dict[str, Any]]:
    """Answer each prompt of the recipe; without prompts, the first questions of the evaluated part."""
    config, splits = ctx.recipe.evaluate, ctx.splits
    tokenizer = splits.tokenizer
    assert tokenizer is not None
    questions = [(Message("user", p),) for p in config.prompts] or dataset.prompts(_QUESTIONS)
    out: list[dict[str, Any]] = []
    for messages in questions if config.samples else ():
        ids, end = chat_prompt(splits.preprocess, messages)
        for new in generate(
            model, ids, max_tokens=_MAX_TOKENS, samples=config.samples, sampling=_sampling(ctx), stop_id=end, context=precision.context,
        ):  # fmt: skip
            question = "\n".join(m.content for m in messages if m.role != "system")
            out.append({"prompt": question, "text": tokenizer.decode(new), "temperature": 0.8, "top_p": 0.95})
            ctx.on_event("sample", **out[-1])
    return out


def _sampling(ctx: Context) -> Sampling:
    return Sampling(temperature=0.8, top_p=0.95, seed=ctx.recipe.seed)
