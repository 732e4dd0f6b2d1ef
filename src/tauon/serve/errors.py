"""`HttpError`: a request that cannot be answered, with its status code and a message in words; in the form that OpenAI's clients read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from tauon.errors import DataError, MissingExtra, RecipeError, TauonError
from tauon.generate import RequestError

__all__ = ["HttpError", "error_response", "json_bytes", "json_response", "response_of"]

KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error", 405: "invalid_request_error",
    408: "timeout_error", 413: "invalid_request_error", 415: "invalid_request_error", 422: "invalid_request_error", 429: "rate_limit_error",
    500: "server_error", 501: "invalid_request_error", 503: "server_error", 504: "timeout_error",
}  # fmt: skip


class HttpError(Exception):
    """A request that is refused."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry: float | None = None,
        close: bool = False,
    ) -> None:  # fmt: skip
        """`code`: a word for programs; `param`: the field that is wrong; `retry`: seconds after which the client may try again; `close`: the
        connection ends with the answer.
        """
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry, self.close = status, message, code, param, retry, close


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return strict JSON."""
    return Response(json_bytes(content), status, dict(headers or {}), "application/json")


def json_bytes(content: Any) -> bytes:
    """Return strict JSON in UTF-8: NaN and infinity, which JSON has not, become null."""
    try:
        text = _encode(content)
    except ValueError:
        text = _encode(_finite(content))
    return text.encode("utf-8", "replace")


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
"""Made once: `json.dumps` with these arguments would make an encoder for each call."""


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def error_response(err: HttpError) -> Response:
    """Return the refusal as JSON."""
    headers = {} if err.retry is None else {"retry-after": str(max(1, round(err.retry)))}
    if err.close:
        headers["connection"] = "close"
    if err.status == 401:
        headers["www-authenticate"] = "Bearer"
    kind = KINDS.get(err.status, "server_error")
    return json_response({"error": {"message": err.message, "type": kind, "param": err.param, "code": err.code}}, err.status, headers)


def response_of(err: Exception) -> Response:
    """Return the response to any error: those of the data are the client's (422), everything unknown is ours (500) and says no details."""
    if isinstance(err, HttpError):
        return error_response(err)
    if isinstance(err, RequestError):
        return error_response(HttpError(400, str(err), param=err.parameter))
    if isinstance(err, DataError | RecipeError):
        return error_response(HttpError(422, str(err)))
    if isinstance(err, MissingExtra):
        return error_response(HttpError(501, str(err)))
    if isinstance(err, TauonError):
        return error_response(HttpError(500, str(err)))
    return error_response(HttpError(500, f"an error inside the server ({type(err).__name__}); its log has the details"))
