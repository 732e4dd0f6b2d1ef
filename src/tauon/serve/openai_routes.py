"""OpenAI's API: `/v1/models`, `/v1/completions`, `/v1/chat/completions`, streaming too. The `openai` client works unchanged."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response, StreamingResponse

from tauon.data import Message
from tauon.generate import Completion, QueueFull, RequestError, SamplingParams, Stream, Token
from tauon.generate import Request as TextRequest
from tauon.serve.errors import HttpError, json_bytes, json_response
from tauon.serve.language import ServedLanguage
from tauon.serve.limits import read_body
from tauon.serve.openai_schemas import ChatRequest, CompletionRequest, StreamOptions, sampling_of
from tauon.serve.schemas import answer_schema
from tauon.serve.state import ServerState
from tauon.serve.uploads import parse_json

__all__ = ["add_openai_routes"]

SMALL = 32_768
"""Bodies and prompts up to this size are read on the event loop; longer ones in a thread."""
LOWEST = -9999.0
"""Stands for a log-probability of minus infinity, which JSON has not; OpenAI's API has the same value."""

M = TypeVar("M", bound=BaseModel)
Shape = Callable[[Token, int], dict[str, Any]]
"""Part of a streamed chunk for an event of a prompt's stream: (event, number of the choice)."""


def add_openai_routes(app: FastAPI, state: ServerState) -> None:
    """Add the routes."""
    assert state.language is not None
    language = state.language

    @app.get("/v1/models", tags=["openai"])
    async def models() -> dict[str, Any]:
        """The served model."""
        return {"object": "list", "data": [_model(language)]}

    @app.get("/v1/models/{name}", tags=["openai"])
    async def model(name: str) -> dict[str, Any]:
        """The served model, by its name."""
        _known(language, name)
        return _model(language)

    @app.post(
        "/v1/completions",
        tags=["openai"],
        openapi_extra=_schema(CompletionRequest, language.name),
        responses=answer_schema("text_completion"),
    )
    async def completions(request: Request) -> Response:
        """Continue a text."""
        asked = await _asked(state, request, CompletionRequest)
        _known(language, asked.model)
        params = sampling_of(asked, most_tokens=state.settings.most_tokens, stops=language.stops)
        streams = _submit(language, [TextRequest(ids, params, request.state.request_id) for ids in await _prompts(state, asked.prompt)])
        base = _base(language, "text_completion", "cmpl")
        if asked.stream:
            return _streaming(streams, base, lambda t, i: _text_chunk(language, t, i, params), params, asked.stream_options)
        answers = await _collected(streams, request)
        choices = [_text_choice(language, c, i, params) for i, c in enumerate(answers)]
        return json_response(base | {"choices": choices, "usage": _usage(streams)})

    @app.post(
        "/v1/chat/completions",
        tags=["openai"],
        openapi_extra=_schema(ChatRequest, language.name),
        responses=answer_schema("chat.completion"),
    )
    async def chat(request: Request) -> Response:
        """Answer a conversation."""
        asked = await _asked(state, request, ChatRequest)
        _known(language, asked.model)
        if not language.chats:
            raise HttpError(
                400, f"{language.name} continues texts and was not trained to answer conversations: use /v1/completions", param="messages"
            )
        messages = [Message("system" if m.role == "developer" else m.role, m.text) for m in asked.messages]
        ids, stops = await asyncio.get_running_loop().run_in_executor(state.readers, language.chat, messages)
        params = sampling_of(asked, most_tokens=state.settings.most_tokens, stops=stops)
        streams = _submit(language, [TextRequest(ids, params, request.state.request_id)])
        if asked.stream:
            base = _base(language, "chat.completion.chunk", "chatcmpl")
            return _streaming(streams, base, lambda t, i: _chat_chunk(language, t, i, params), params, asked.stream_options, chat=True)
        answers = await _collected(streams, request)
        base = _base(language, "chat.completion", "chatcmpl")
        choices = [_chat_choice(language, c, i, params) for i, c in enumerate(answers)]
        return json_response(base | {"choices": choices, "usage": _usage(streams)})


def _schema(kind: type[BaseModel], name: str) -> dict[str, Any]:
    schema = kind.model_json_schema()
    schema["properties"]["model"]["enum"] = [name]
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return inline(definitions[node["$ref"].rpartition("/")[2]])
            return {key: inline(value) for key, value in node.items()}
        return [inline(value) for value in node] if isinstance(node, list) else node

    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inline(schema)}}}}


async def _asked(state: ServerState, request: Request, kind: type[M]) -> M:
    """Read and check a body. `HttpError` 400 names the first wrong field."""
    try:
        body = await read_body(request, state.budget, most=state.settings.most_body, seconds=state.settings.read_seconds)
        if len(body) <= SMALL:
            content = parse_json(body)
        else:
            content = await asyncio.get_running_loop().run_in_executor(state.readers, parse_json, body)
    finally:
        state.budget.give_back(getattr(request.state, "body_bytes", 0))
    try:
        return kind.model_validate(content)
    except ValidationError as err:
        first = err.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = "is not supported" if first["type"] in ("extra_forbidden", "none_required") else first["msg"]
        raise HttpError(400, f"{place or 'the body'}: {message}", param=place or None) from None


def _known(language: ServedLanguage, name: str) -> None:
    if name != language.name:
        raise HttpError(404, f"the model {name[:100]!r} is not served here; {language.name!r} is", code="model_not_found", param="model")


def _model(language: ServedLanguage) -> dict[str, Any]:
    return {"id": language.name, "object": "model", "created": language.loaded, "owned_by": "tauon", "version": language.version}


async def _prompts(state: ServerState, prompt: Any) -> list[list[int]]:
    """Return the tokens of each prompt: a text, several, or token ids."""
    assert state.language is not None
    texts = [prompt] if isinstance(prompt, str) else [p for p in prompt if isinstance(p, str)]
    if sum(map(len, texts)) <= SMALL:
        return _encoded(state.language, prompt)
    return await asyncio.get_running_loop().run_in_executor(state.readers, _encoded, state.language, prompt)


def _encoded(language: ServedLanguage, prompt: Any) -> list[list[int]]:
    if isinstance(prompt, str):
        return [language.prompt(prompt)]
    if not prompt:
        raise HttpError(400, "prompt is empty", param="prompt")
    if isinstance(prompt[0], int):
        return [list(prompt)]
    if len(prompt) > 64:
        raise HttpError(400, f"{len(prompt)} prompts in one request, at most 64 are allowed", param="prompt")
    return [language.prompt(p) if isinstance(p, str) else list(p) for p in prompt]


def _submit(language: ServedLanguage, requests: list[TextRequest]) -> list[Stream]:
    """Give every prompt to the engine, or none."""
    streams: list[Stream] = []
    try:
        for one in requests:
            streams.append(language.engine.submit(one))
    except QueueFull as err:
        _cancel(streams)
        raise HttpError(429, str(err), code="overloaded", retry=1) from None
    except RequestError:
        _cancel(streams)
        raise
    language.metrics.tokens.labels("prompt").inc(sum(len(one.prompt) for one in requests))
    return streams


def _cancel(streams: list[Stream]) -> None:
    for stream in streams:
        stream.cancel()


async def _collected(streams: list[Stream], request: Request) -> list[Completion]:
    """Return all answers. If the client goes away, writing stops."""
    found: list[Completion] = []
    try:
        for stream in streams:
            answers = [Completion(i) for i in range(stream.request.params.n)]
            async for token in stream:
                answers[token.index].add(token)
                if await request.is_disconnected():
                    raise HttpError(400, "the connection ended before the answer")
            if stream.error is not None:
                raise stream.error
            found += answers
    except BaseException:
        _cancel(streams)
        raise
    return found


def _streaming(
    streams: list[Stream], base: dict[str, Any], shape: Shape, params: SamplingParams, options: StreamOptions | None, chat: bool = False
) -> StreamingResponse:
    """Return the answers as server-sent events, prompt after prompt."""
    wants_usage = options is not None and options.include_usage

    async def events() -> AsyncIterator[bytes]:
        try:
            for number, stream in enumerate(streams):
                first = number * params.n
                if chat:
                    for i in range(params.n):
                        start = {"index": first + i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                        yield _event(base | {"choices": [start]})
                async for token in stream:
                    if token.text or token.finish_reason or token.logprob is not None:
                        yield _event(base | {"choices": [shape(token, first + token.index)]})
                if stream.error is not None:
                    yield _event({"error": {"message": "the answer failed inside the server", "type": "server_error"}})
                    return
            if wants_usage:
                yield _event(base | {"choices": [], "usage": _usage(streams)})
            yield b"data: [DONE]\n\n"
        finally:  # also when the client goes away in the middle
            _cancel([s for s in streams if not s.done])

    return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"})


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json_bytes(content) + b"\n\n"


def _base(language: ServedLanguage, kind: str, prefix: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": language.name,
        "system_fingerprint": language.version,
    }  # fmt: skip


def _usage(streams: list[Stream]) -> dict[str, Any]:
    prompt, written, cached = (sum(getattr(s.usage, k) for s in streams) for k in ("prompt_tokens", "completion_tokens", "cached_tokens"))
    return {
        "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


def _reason(reason: str | None) -> str | None:
    return {"cancelled": "stop", "error": "stop"}.get(reason or "", reason)


def _finite(logprob: float | None) -> float | None:
    return logprob if logprob is None or logprob >= LOWEST else LOWEST


def _piece(language: ServedLanguage, token: int) -> str:
    return language.writer.tokenizer.decode([token])


def _text_logprobs(language: ServedLanguage, found: Completion) -> dict[str, Any]:
    """Return the log-probabilities as `/v1/completions` has them."""
    pieces = [_piece(language, i) for i in found.ids]
    offsets, at = [], 0
    for piece in pieces:
        offsets.append(at)
        at += len(piece)
    tops = [{_piece(language, i): _finite(p) for i, p in top} for top in found.top_logprobs]
    return {"tokens": pieces, "token_logprobs": [_finite(p) for p in found.logprobs], "top_logprobs": tops, "text_offset": offsets}


def _chat_logprobs(language: ServedLanguage, found: Completion) -> dict[str, Any]:
    """Return the log-probabilities as `/v1/chat/completions` has them."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        piece = _piece(language, token)
        return {"token": piece, "logprob": _finite(logprob), "bytes": list(piece.encode("utf-8", "replace"))}

    rows = zip(found.ids, found.logprobs, found.top_logprobs, strict=True)
    return {"content": [entry(i, p) | {"top_logprobs": [entry(j, q) for j, q in top]} for i, p, top in rows]}


def _text_choice(language: ServedLanguage, found: Completion, index: int, params: SamplingParams) -> dict[str, Any]:
    logprobs = None if params.logprobs is None else _text_logprobs(language, found)
    return {"index": index, "text": found.text, "logprobs": logprobs, "finish_reason": _reason(found.finish_reason)}


def _chat_choice(language: ServedLanguage, found: Completion, index: int, params: SamplingParams) -> dict[str, Any]:
    logprobs = None if params.logprobs is None else _chat_logprobs(language, found)
    message = {"role": "assistant", "content": found.text, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": _reason(found.finish_reason)}


def _one(token: Token) -> Completion:
    found = Completion(token.index)
    found.add(token)
    return found


def _text_chunk(language: ServedLanguage, token: Token, index: int, params: SamplingParams) -> dict[str, Any]:
    logprobs = None if params.logprobs is None or token.id is None else _text_logprobs(language, _one(token))
    return {"index": index, "text": token.text, "logprobs": logprobs, "finish_reason": _reason(token.finish_reason)}


def _chat_chunk(language: ServedLanguage, token: Token, index: int, params: SamplingParams) -> dict[str, Any]:
    logprobs = None if params.logprobs is None or token.id is None else _chat_logprobs(language, _one(token))
    delta = {"content": token.text} if token.text else {}
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": _reason(token.finish_reason)}
