"""Requests of OpenAI's API that are understood. A field that would change the answer and is not supported is refused, never ignored."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from tauon.generate import RequestError, SamplingParams, StructuredOutputs

__all__ = ["ChatMessage", "ChatRequest", "CompletionRequest", "sampling_of"]


class _Extensions(BaseModel):
    """vLLM's extensions of the API, and fields without effect."""

    model_config = ConfigDict(extra="forbid")

    top_k: int | None = Field(None, ge=-1, description="vLLM's extension.")
    min_p: float = Field(0.0, ge=0, le=1, description="vLLM's extension.")
    repetition_penalty: float = Field(1.0, gt=0, le=100, description="vLLM's extension.")
    stop_token_ids: list[int] = Field(default_factory=list, description="vLLM's extension.")
    ignore_eos: bool = Field(False, description="vLLM's extension.")
    guided_regex: str | None = Field(None, description="vLLM's extension: a regular expression that the text matches.")
    guided_choice: list[str] | None = Field(None, description="vLLM's extension: the texts to choose from.")
    guided_json: dict[str, Any] | None = Field(None, description="vLLM's extension: a JSON Schema.")
    user: str | None = Field(None, description="Has no effect.")
    metadata: dict[str, Any] | None = Field(None, description="Has no effect.")
    store: Literal[False] | None = Field(None, description="Nothing is stored.")


class StreamOptions(BaseModel):
    """What a stream has beside its text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: StrictBool = Field(False, description="A last chunk with the numbers of tokens.")
    include_obfuscation: bool | None = Field(None, description="Has no effect.")


class _Sampled(_Extensions):
    """Fields that both kinds of requests share."""

    model: str = Field(description="Name of the served model, as /v1/models lists it.")
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int = Field(1, ge=1, le=128)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None


class ResponseFormat(BaseModel):
    """OpenAI's structured outputs."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class CompletionRequest(_Sampled):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Literal[False] = Field(False, description="Not supported.")
    best_of: None = Field(None, description="Not supported.")
    suffix: None = Field(None, description="Not supported.")


class ContentPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = Field(None, description="Has no effect.")

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(_Sampled):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: None = Field(None, description="Not supported.")
    tool_choice: None = Field(None, description="Not supported.")


def sampling_of(asked: CompletionRequest | ChatRequest, *, most_tokens: int, stops: tuple[int, ...]) -> SamplingParams:
    """Return the engine's parameters.

    Raises:
        RequestError: fields that exclude each other, or a value that is out of range.
    """
    bias: dict[int, float] = {}
    for key, value in (asked.logit_bias or {}).items():
        if not (key.isascii() and key.removeprefix("-").isdecimal() and len(key) < 12):
            raise RequestError("logit_bias", f"{key!r} is not a token id")
        bias[int(key)] = value
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    if len(stop) > 16:
        raise RequestError("stop", f"{len(stop)} texts, at most 16 are allowed")
    wanted = asked.max_tokens
    if isinstance(asked, ChatRequest):
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        if asked.top_logprobs is not None and not asked.logprobs:
            raise RequestError("top_logprobs", "needs logprobs: true")
        wanted = asked.max_completion_tokens or asked.max_tokens
    else:
        logprobs = asked.logprobs
    return SamplingParams(
        temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p, min_p=asked.min_p, repetition_penalty=asked.repetition_penalty,
        presence_penalty=asked.presence_penalty, frequency_penalty=asked.frequency_penalty, logit_bias=bias, seed=asked.seed, n=asked.n,
        max_tokens=min(wanted or most_tokens, most_tokens), stop=stop, stop_token_ids=(*stops, *asked.stop_token_ids), ignore_eos=asked.ignore_eos,
        logprobs=logprobs, structured_outputs=_constraint(asked),
    )  # fmt: skip


def _constraint(asked: CompletionRequest | ChatRequest) -> StructuredOutputs | None:
    found: dict[str, Any] = {}
    if asked.guided_regex is not None:
        found["regex"] = asked.guided_regex
    if asked.guided_choice is not None:
        found["choice"] = tuple(asked.guided_choice)
    if asked.guided_json is not None:
        found["json"] = asked.guided_json
    form = asked.response_format if isinstance(asked, ChatRequest) else None
    if form is not None and form.type == "json_object":
        found["json"] = True
    if form is not None and form.type == "json_schema":
        schema = (form.json_schema or {}).get("schema")
        if not isinstance(schema, dict):
            raise RequestError("response_format", "json_schema needs a schema: {name, schema: {...}}")
        found["json"] = schema
    return StructuredOutputs(**found) if found else None
