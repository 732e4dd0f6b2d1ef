"""Small models and tokenizers for the tests of the serving engine."""

from __future__ import annotations

from typing import Any

import torch

from tauon.data.tokenizer import ByteTokenizer, CharTokenizer, SubwordTokenizer, Tokenizer
from tauon.data.tokenizer_config import BpeConfig
from tauon.generate import Engine, EngineConfig, Request, SamplingParams, Stream
from tauon.models import GPT, GPT2Config, GPTConfig, LlamaConfig, materialize
from tauon.models.families.transformer import RopeScaling

VOCAB, SEQ = 61, 96
LAYOUTS: dict[str, Any] = {
    "gpt": GPTConfig(layers=2, width=32, heads=4, vocab=VOCAB, seq_len=SEQ),
    "gpt2": GPT2Config(layers=2, width=32, heads=4, vocab=VOCAB, seq_len=SEQ),
    "llama": LlamaConfig(
        layers=2, width=32, heads=4, kv_heads=2, head_size=16, vocab=VOCAB, seq_len=SEQ, mlp_width=48,
        rope_scaling=RopeScaling(factor=4, trained_for=32),
    ),
    "window": LlamaConfig(layers=2, width=32, heads=4, kv_heads=1, vocab=VOCAB, seq_len=SEQ, window=13),
}  # fmt: skip


def small(layout: str = "gpt", seed: int = 0, **changes: Any) -> GPT:
    """A model whose tokens are about equally likely: close decisions show the last bits."""
    model = materialize(LAYOUTS[layout].model_copy(update=changes), seed=seed)
    assert isinstance(model, GPT)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
    return model.eval()


def tokenizers() -> dict[str, Tokenizer]:
    text = 'The quick brown fox said: {"name": "Zoë", "age": 12, "tags": ["a", "b"], "ok": true} jumps over 3 lazy dogs — naïve café.\n'
    text += "".join(map(chr, range(32, 127)))
    bpe = BpeConfig(vocab=300, min_count=1).build(lambda: iter([text * 3]))
    assert isinstance(bpe, SubwordTokenizer)
    return {"bytes": ByteTokenizer(), "chars": CharTokenizer(text), "bpe": bpe}


def prompt(length: int, seed: int, vocab: int = VOCAB) -> list[int]:
    return torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def answers(model: GPT, requests: list[Request], config: EngineConfig | None = None) -> tuple[list[Any], Any]:
    """(each answer's tokens and log-probabilities, figures after all have ended), all submitted at once."""
    with Engine(model, None, config) as engine:
        streams = [engine.submit(r) for r in requests]
        found = [[(c.ids, c.logprobs, c.top_logprobs, c.finish_reason) for c in s.result(60)] for s in streams]
        return found, engine.stats()


__all__ = [
    "LAYOUTS",
    "SEQ",
    "VOCAB",
    "Engine",
    "EngineConfig",
    "Request",
    "SamplingParams",
    "Stream",
    "answers",
    "prompt",
    "small",
    "tokenizers",
]
