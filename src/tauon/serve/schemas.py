"""OpenAPI schemas that follow from the model: the columns of a row, the files that it reads, the errors."""

from __future__ import annotations

from typing import Any

from tauon.serve.served import Served

__all__ = ["ERRORS", "answer_schema", "predict_schema"]

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type"],
        }
    },
    "required": ["error"],
}
_WHY = {
    400: "The body cannot be read.", 401: "An API key is needed.", 403: "Not allowed on this server.", 404: "No such path or model.",
    405: "Another method is needed.", 408: "The body did not arrive in time.", 413: "The body is too large.",
    415: "The content type is not read.", 422: "A value cannot be used; the message names it.",
    429: "Too many requests, or too much waits; see Retry-After.", 500: "A fault of the server.", 501: "An optional library is missing.",
    503: "The server is stopping.", 504: "No answer in time.",
}  # fmt: skip
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": why, "content": {"application/json": {"schema": _ERROR}}} for status, why in _WHY.items()
}
_FILES = {
    "rows": ("text/csv", "application/x-ndjson"), "texts": ("text/plain", "text/csv", "application/x-ndjson"),
    "pictures": ("image/png", "image/jpeg"), "recordings": ("audio/wav", "audio/flac"), "series": ("text/csv",),
}  # fmt: skip
"""Content types of single files, by what the model reads."""


def answer_schema(kind: str) -> dict[int | str, dict[str, Any]]:
    """Return what `/v1/completions` (text_completion) or `/v1/chat/completions` (chat.completion) returns: JSON, or a stream of events."""
    choice = {
        "type": "object",
        "properties": {"index": {"type": "integer"}, "finish_reason": {"type": ["string", "null"]}},
        "required": ["index", "finish_reason", "text" if kind == "text_completion" else "message"],
    }
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    usage = {"type": "object", "properties": {name: {"type": "integer"} for name in names}, "required": list(names)}
    answer = {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": choice},
            "usage": usage,
        },
        "required": ["id", "object", "created", "model", "choices", "usage"],
    }
    content = {"application/json": {"schema": answer}, "text/event-stream": {"schema": {"type": "string"}}}
    return {200: {"description": "The answer; with `stream: true` as server-sent events.", "content": content}}


def predict_schema(served: Served) -> dict[str, Any]:
    """Return what `/predict` takes and returns, for its OpenAPI entry."""
    info = served.info()
    row = _row(info)
    content: dict[str, Any] = {}
    if row is not None:
        rows = {"type": "array", "items": row, "minItems": 1}
        asked = {"type": "object", "properties": {"rows": rows}, "required": ["rows"]}
        content["application/json"] = {"schema": {"anyOf": [asked, rows, row]}}
    for kind in _FILES.get(info["reads"], ()):
        content[kind] = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "type": "object",
        "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
        "required": ["file"],
    }
    content["multipart/form-data"] = {"schema": form}
    prediction = {"type": "object", "properties": {"prediction": {}}, "additionalProperties": True}
    answer = {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": prediction}, "model": {"type": "string"}, "version": {"type": "string"}},
        "required": ["predictions", "model", "version"],
    }
    explain = {
        "name": "explain",
        "in": "query",
        "required": False,
        "schema": {"type": "boolean"},
        "description": "Also explain each answer.",
    }
    responses = {"200": {"description": "A prediction for each row.", "content": {"application/json": {"schema": answer}, "text/csv": {}}}}
    return {"parameters": [explain], "requestBody": {"required": True, "content": content}, "responses": responses}


def _row(info: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of a row; None where rows are files."""
    if info["reads"] not in ("rows", "texts", "series"):
        return None
    properties = {}
    for column in info["columns"]:
        if column["kind"] == "number":
            properties[column["name"]] = {"type": ["number", "null"]}
        else:
            kind: dict[str, Any] = {"type": ["string", "null"] if info["reads"] == "rows" else "string"}
            properties[column["name"]] = kind | ({"examples": column["values"][:5]} if column.get("values") else {})
    return {"type": "object", "properties": properties, "required": list(properties)}
