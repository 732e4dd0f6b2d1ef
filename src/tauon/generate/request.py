"""What a client asks of the serving engine, and what comes back. Names are those of OpenAI's API and of vLLM's `SamplingParams`.

Plain data: no model, no thread, no HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tauon.errors import DataError, TauonError

__all__ = ["Completion", "FinishReason", "QueueFull", "Request", "RequestError", "SamplingParams", "StructuredOutputs", "Token", "Usage"]

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""`stop`: a stop string or stop token, the end of the constraint, or the tokenizer's end token; `length`: `max_tokens`, or the model's
longest sequence; `cancelled`: by `Stream.cancel` or a closed engine; `error`: see `Stream.error`."""
MOST_LOGPROBS = 20
"""Alternatives a token, as in OpenAI's API."""


class RequestError(DataError):
    """A request that cannot be served as asked (HTTP: 400). `parameter` names the field."""

    def __init__(self, parameter: str, message: str) -> None:
        self.parameter = parameter
        super().__init__(f"{parameter}: {message}")


class QueueFull(TauonError):
    """The engine has as many requests waiting as it may (HTTP: 429). Nothing was queued; try again later."""


@dataclass(frozen=True)
class StructuredOutputs:
    """What the text must look like: exactly one of the four. Needs the extra `serve` (llguidance)."""

    json: Mapping[str, Any] | bool | None = None
    """A JSON Schema; `True`: any JSON object."""
    regex: str | None = None
    """A regular expression (Rust's syntax) that the whole text matches."""
    grammar: str | None = None
    """A context-free grammar in llguidance's variant of Lark."""
    choice: tuple[str, ...] | None = None
    """The texts to choose from."""

    def __post_init__(self) -> None:
        given = [name for name in ("json", "regex", "grammar", "choice") if getattr(self, name) not in (None, ())]
        if len(given) != 1:
            raise RequestError(
                "structured_outputs", f"expected exactly one of json, regex, grammar, choice, got {', '.join(given) or 'none'}"
            )


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of a request are chosen and where they end. Errors: `RequestError`, from the constructor.

    Order, as in transformers: penalties, `logit_bias` and constraint, temperature, top_k, top_p, min_p. The drawing is that of
    `tauon.generate.generate`: answer i of a seed uses `Sampling(seed=seed).generator(i)`.

    >>> SamplingParams(temperature=-1)
    Traceback (most recent call last):
    tauon.generate.request.RequestError: temperature: -1 is outside 0 to 100
    """

    temperature: float = 1.0
    """0: always the most likely token."""
    top_k: int | None = None
    """Sample only from the k most likely tokens. None, 0 and -1: from all."""
    top_p: float = 1.0
    """Sample only from the most likely tokens that add up to this probability."""
    min_p: float = 0.0
    """Leave out tokens less likely than this share of the most likely token's probability."""
    repetition_penalty: float = 1.0
    """Divides positive logits, multiplies negative ones, of tokens in the prompt or the answer so far (arXiv:1909.05858)."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token in the answer so far."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of each token once for each time that it is in the answer so far."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id to what is added to its logit; -100 or less excludes it."""
    seed: int | None = None
    """The same request with the same seed gives the same tokens, whatever else runs. None: a new one each time."""
    n: int = 1
    """Number of answers."""
    max_tokens: int | None = None
    """Most tokens of an answer. None: up to the model's longest sequence."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer, beside the tokenizer's end token; their text is not part of it."""
    ignore_eos: bool = False
    """Continue after the tokenizer's end token."""
    logprobs: int | None = None
    """Number of most likely alternatives reported with each token, 0 to 20; None: no log-probabilities. They are those of the model's
    own distribution, before bias, penalties and temperature, as in vLLM."""
    structured_outputs: StructuredOutputs | None = None
    """What the text must look like."""

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and low <= value <= high):
                raise RequestError(name, f"{value!r} is outside {low:g} to {high:g}")
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) <= 0:
                raise RequestError(name, f"{getattr(self, name)!r} is not above 0")
        if any(not text for text in self.stop):
            raise RequestError("stop", "an empty text would end every answer at once")
        if any(not math.isfinite(bias) for bias in self.logit_bias.values()):
            raise RequestError("logit_bias", "expected finite numbers")


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0, 100), ("top_k", -1, 2**31), ("top_p", 0, 1), ("min_p", 0, 1), ("repetition_penalty", 0, 100),
    ("presence_penalty", -100, 100), ("frequency_penalty", -100, 100), ("seed", -(2**63), 2**64 - 1), ("n", 1, 128),
    ("max_tokens", 1, 2**31), ("logprobs", 0, MOST_LOGPROBS),
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it."""

    prompt: Sequence[int]
    """Token ids, at least one; begin-of-text and chat template are applied by the caller."""
    params: SamplingParams = SamplingParams()
    request_id: str = ""
    """For logs. Left out: a number of the engine's."""


@dataclass(frozen=True)
class Token:
    """One event of a stream: a token of one answer, and the text that it completed."""

    index: int
    """Number of the answer, 0 to n - 1."""
    id: int | None
    """None: no token, only what remained of the text, or why the answer ended."""
    text: str
    """What may be shown now. May be empty: part of a character, or of what could become a stop string, waits for the next tokens."""
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """(id, log-probability) of the most likely tokens, most likely first."""
    finish_reason: FinishReason | None = None
    """Set on the last event of each answer."""
    stop_reason: int | str | None = None
    """The stop string or stop token that ended the answer; None for the end token."""


@dataclass
class Usage:
    """Tokens of a request."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt whose keys and values were already in the cache."""
    completion_tokens: int = 0
    """Of all answers, the tokens that ended them included."""


@dataclass
class Completion:
    """One whole answer."""

    index: int
    text: str = ""
    ids: list[int] = field(default_factory=list)
    """Token ids, the one that ended the answer included."""
    logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def add(self, token: Token) -> None:
        """Append an event of the stream."""
        self.text += token.text
        if token.id is not None:
            self.ids.append(token.id)
            self.logprobs.append(token.logprob)
            self.top_logprobs.append(token.top_logprobs)
        if token.finish_reason is not None:
            self.finish_reason, self.stop_reason = token.finish_reason, token.stop_reason
