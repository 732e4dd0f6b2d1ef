"""Output that follows a JSON Schema, a regular expression, a grammar or a choice: which tokens may come next, by `llguidance` (extra `serve`).

The vocabulary is given to llguidance as the bytes of each token, so that any tokenizer works: characters, bytes, or subwords.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauon.data import Tokenizer
from tauon.errors import MissingExtra
from tauon.generate.request import RequestError, StructuredOutputs
from tauon.generate.text_output import special_ids, token_texts

__all__ = ["Constraint", "GrammarCompiler"]


class Constraint:
    """State of one text within its grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self, vocab: int) -> Tensor:
        """V, true where a token may follow. Raises `ValueError` where the grammar has become too complex to follow."""
        self._check()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.zeros(vocab, bool)
        flags = np.unpackbits(bits, bitorder="little")[:vocab]
        allowed[: len(flags)] = flags
        return torch.from_numpy(allowed)

    def add(self, token: int) -> None:
        """Continue with a token."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def ended(self) -> bool:
        """Whether nothing may follow: the text is complete."""
        return bool(self._matcher.is_stopped())

    def copy(self) -> Constraint:
        """Return an independent state at the same place."""
        return Constraint(self._matcher.deep_copy())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"the constraint cannot be followed: {self._matcher.get_error()}")


class GrammarCompiler:
    """Compiles constraints for one tokenizer. The vocabulary is read on first use; from any thread.

    >>> from tauon.data.tokenizer import ByteTokenizer
    >>> constraint = GrammarCompiler(ByteTokenizer()).compile(StructuredOutputs(choice=("yes", "no")))
    >>> [chr(i) for i in constraint.allowed(257).nonzero().flatten().tolist()]
    ['n', 'y']
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiled: Any = None
        self._lock = threading.Lock()

    def compile(self, outputs: StructuredOutputs) -> Constraint:
        """Return the state at the start of a text. Raises `RequestError` with llguidance's words where it cannot be compiled."""
        try:
            from llguidance import LLMatcher
        except ImportError as err:
            raise MissingExtra("constrained output", "serve") from err
        with self._lock:
            if self._compiled is None:
                self._compiled = self._read_vocabulary()
        try:
            matcher = LLMatcher(self._compiled, _grammar(outputs, LLMatcher), log_level=0)
        except ValueError as err:
            raise RequestError("structured_outputs", str(err)) from None
        if matcher.is_error():
            raise RequestError("structured_outputs", _first_lines(matcher.get_error()))
        return Constraint(matcher)

    def _read_vocabulary(self) -> Any:
        from llguidance import LLTokenizer
        from llguidance._tokenizer import TokenizerWrapper

        tokenizer, texts = self._tokenizer, token_texts(self._tokenizer)
        special = special_ids(tokenizer) | {i for i, text in enumerate(texts) if not text}
        tokens = [f"<|{i}|>".encode() if i in special else text for i, text in enumerate(texts)]
        return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, tokens, sorted(special))), eos_token=tokenizer.eos)


class _Vocabulary:
    """What `TokenizerWrapper` of llguidance reads."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], special: list[int]) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos, tokenizer.bos
        self.tokens, self.special_token_ids, self._tokenizer = tokens, special, tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        return [int(i) for i in self._tokenizer.encode(text.decode(errors="replace") if isinstance(text, bytes) else text)]


def _grammar(outputs: StructuredOutputs, matcher: Any) -> str:
    if outputs.json is not None and outputs.json is not False:
        schema = {"type": "object"} if outputs.json is True else dict(outputs.json)
        # no blanks of the model's own choice: a model may write blanks for ever
        return str(matcher.grammar_from_json_schema(json.dumps(schema), defaults={"whitespace_flexible": False}))
    if outputs.regex is not None:
        return str(matcher.grammar_from_regex(outputs.regex))
    if outputs.grammar is not None:
        return str(matcher.grammar_from_lark(outputs.grammar))
    return str(matcher.grammar_from_lark("start: " + " | ".join(json.dumps(text) for text in outputs.choice or ())))


def _first_lines(message: str) -> str:
    return " ".join(message.split("\n")[:3]).strip()
