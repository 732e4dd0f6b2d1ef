"""`POST /predict`: rows, pictures, recordings, texts, a series or a CSV in; predictions out, as JSON or CSV."""

from __future__ import annotations

import asyncio
import csv
import io
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tauon.data import Rows
from tauon.errors import DataError, TauonError
from tauon.serve.errors import HttpError, json_bytes, json_response
from tauon.serve.forecasts import forecast
from tauon.serve.limits import read_body, too_slow
from tauon.serve.served import Served
from tauon.serve.state import ServerState
from tauon.serve.uploads import parse_json, rows_of_json, rows_of_upload, upload_of_body, uploads_of_form

__all__ = ["predict"]

PART = 2_000
"""Rows that are written to JSON at once."""
SMALL = 32_768
"""Bodies up to this size are read on the event loop; longer ones in a thread."""


async def predict(state: ServerState, request: Request) -> Response:
    """Answer one request.

    Raises:
        HttpError, DataError: what is wrong with it.
    """
    assert state.predictors is not None
    served: Served = state.predictors.choose(request.state.request_id)
    start, failed, loop = time.perf_counter(), True, asyncio.get_running_loop()
    body: bytes | None = None
    try:
        async with asyncio.timeout(state.settings.read_seconds) as timer:
            body = await read_body(request, state.budget, most=state.settings.most_body)
            timer.reschedule(loop.time() + state.settings.answer_seconds)
            response = await _answer(state, served, request, body)
        failed = False
        return response
    except TimeoutError:
        failed = body is not None
        if body is None:
            raise too_slow(state.settings.read_seconds) from None
        raise HttpError(504, f"no answer within {state.settings.answer_seconds:g} s. Send fewer rows, or try again later.") from None
    except (HttpError, DataError):
        failed = False  # the request's fault
        raise
    finally:
        state.budget.give_back(getattr(request.state, "body_bytes", 0))
        state.predictors.done(served, failed=failed, seconds=time.perf_counter() - start)


async def _answer(state: ServerState, served: Served, request: Request, body: bytes) -> Response:
    loop = asyncio.get_running_loop()
    packed = request.headers.get("content-encoding", "identity")
    if packed.lower() != "identity":
        raise HttpError(415, f"content-encoding {packed[:50]!r} is not read. Send the body uncompressed.")
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    explained = request.query_params.get("explain", "").lower() in ("1", "true", "yes")
    if explained and not state.settings.explain:
        raise HttpError(403, "this server gives no explanations. Start it with --explain.", param="explain")
    content: Any = None
    if kind == "multipart/form-data":
        form = await _form(request, body)
        try:
            uploads = await uploads_of_form(form)
        finally:
            await form.close()
    elif kind in ("application/json", "text/json") or kind.endswith("+json"):
        content = parse_json(body) if len(body) <= SMALL else await loop.run_in_executor(state.readers, parse_json, body)
        uploads = []
    else:
        uploads = [upload_of_body(request, body)]
    if served.predictor.replay.reads == "series":
        records = await loop.run_in_executor(state.readers, forecast, served, content, uploads)
    else:
        make = (lambda: rows_of_upload(uploads, served.predictor)) if uploads else (lambda: rows_of_json(content, served.predictor))
        small = len(body) <= SMALL and (not uploads or served.predictor.replay.reads == "pictures")
        rows, n = make() if small else await loop.run_in_executor(state.readers, make)
        records = await _computed(state, served, rows, n)
    state.metrics.predicted(served.version, len(records))
    if "text/csv" in request.headers.get("accept", ""):
        return Response(_csv(records), media_type="text/csv; charset=utf-8")
    answer: dict[str, Any] = {"predictions": records, "model": served.name, "version": served.version}
    if explained:
        answer["explanations"] = await _explained(state, served, content)
    if len(records) > PART:
        return await _large(answer)
    return json_response(answer)


async def _large(answer: dict[str, Any]) -> Response:
    """Return many predictions as JSON, written in parts, so that other requests get their turn."""
    records, parts = answer["predictions"], []
    for start in range(0, len(records), PART):
        parts.append(json_bytes(records[start : start + PART])[1:-1])
        await asyncio.sleep(0)
    rest = json_bytes({k: v for k, v in answer.items() if k != "predictions"})
    return Response(b'{"predictions":[' + b",".join(parts) + b"]," + rest[1:], media_type="application/json")


async def _computed(state: ServerState, served: Served, rows: Rows, n: int) -> list[dict[str, Any]]:
    """Return the predictions. Many rows are computed in parts, so that other requests get their turn."""
    batcher = state.batcher(served)
    most = batcher.most_rows
    if n <= most:
        return list(await batcher.submit((rows, n), n))
    found: list[dict[str, Any]] = []
    while len(found) < n:  # parts grow while it is learnt how fast the model is: what was measured at the start may be a single slow call
        part = rows.part(len(found), min(n, len(found) + batcher.most_rows))
        found += await batcher.submit((part, len(part)), len(part))
    return found


async def _form(request: Request, body: bytes) -> Any:
    """Return the parsed form of a body that was read already."""
    from python_multipart.exceptions import FormParserError
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def stream() -> Any:
        yield body
        yield b""

    try:
        return await MultiPartParser(request.headers, stream(), max_files=1000, max_part_size=len(body) + 1).parse()
    except (MultiPartException, FormParserError, KeyError, UnicodeError) as err:
        raise HttpError(400, f"the form cannot be read: {getattr(err, 'message', err)}") from None


async def _explained(state: ServerState, served: Served, content: Any) -> list[dict[str, Any]]:
    """Return an explanation for each row: what the answer rests on."""
    from tauon.predict.explanations import explain_records

    rows = content["rows"] if isinstance(content, dict) and isinstance(content.get("rows"), list) else content
    records = rows if isinstance(rows, list) else [rows]
    if not records or len(records) > 8 or not all(isinstance(r, dict) for r in records):
        raise HttpError(422, "explanations are for 1 to 8 rows in JSON", param="explain")
    try:
        return await asyncio.get_running_loop().run_in_executor(state.readers, explain_records, served.place, records)
    except DataError:
        raise
    except TauonError as err:
        raise HttpError(422, f"this model cannot be explained here: {err}", param="explain") from None


def _csv(records: list[dict[str, Any]]) -> str:
    """Return the predictions as CSV; a list of values becomes JSON-like text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()
