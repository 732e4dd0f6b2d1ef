"""Bodies of `/predict` -> raw rows, read as `tauon predict` reads files: JSON, a picture, a recording, a CSV, a text, or several as a form."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from tauon.data import PICTURE_SUFFIXES, Rows
from tauon.data.sources.picture_file import decode_content, import_pillow
from tauon.data.text_files import json_line, read_text
from tauon.errors import DataError
from tauon.predict import Predictor
from tauon.predict.readers import Reading, open_reader
from tauon.predict.series import Windows, read_series
from tauon.serve.errors import HttpError
from tauon.serve.sizes import MOST_DECODED, check_json, check_rows, check_upload

__all__ = ["Upload", "parse_json", "rows_of_json", "rows_of_upload", "upload_of_body", "uploads_of_form"]

SUFFIXES = {
    "text/csv": ".csv", "application/csv": ".csv", "text/tab-separated-values": ".tsv", "application/x-ndjson": ".jsonl",
    "application/jsonl": ".jsonl", "application/vnd.apache.parquet": ".parquet", "text/plain": ".txt", "image/png": ".png",
    "image/jpeg": ".jpg", "image/gif": ".gif", "image/webp": ".webp", "image/bmp": ".bmp", "image/tiff": ".tiff", "audio/wav": ".wav",
    "audio/x-wav": ".wav", "audio/wave": ".wav", "audio/vnd.wave": ".wav", "audio/flac": ".flac", "audio/x-flac": ".flac",
}  # fmt: skip
"""Suffix of the file for each content type."""
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_TAKEN = {
    "rows": _TABLES, "texts": (*_TABLES, ".txt"), "pictures": PICTURE_SUFFIXES, "recordings": (".wav", ".flac"), "arrays": (".npz", ".npy"),
    "series": _TABLES,
}  # fmt: skip
"""Suffixes that a model of each kind reads."""


@dataclass(frozen=True)
class Upload:
    """A file in a request."""

    content: bytes
    suffix: str
    name: str
    """Its name for messages; it is never a path of this machine."""


def parse_json(body: bytes) -> Any:
    """Return the value.

    Raises:
        HttpError: 400 with the place of the error, 413 for too many values.
    """
    check_json(body)
    try:
        content = json.loads(body.decode("utf-8-sig"))
        if b"\\ud" in body or b"\\uD" in body:
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except UnicodeEncodeError:
        raise HttpError(400, "a text has half a character (a lone surrogate, \\ud800 to \\udfff)") from None
    except UnicodeDecodeError as err:
        raise HttpError(400, f"the body is not UTF-8 (byte {err.start}). Send JSON in UTF-8.") from None
    except json.JSONDecodeError as err:
        raise HttpError(400, f"the body is not JSON: {err.msg} at line {err.lineno}, column {err.colno}") from None
    except RecursionError:
        raise HttpError(400, "the JSON is nested too deeply") from None
    except ValueError as err:  # a whole number of more digits than Python converts
        raise HttpError(400, f"the body is not JSON: {err}") from None


def rows_of_json(content: Any, predictor: Predictor) -> tuple[Rows, int]:
    """Return rows from `{"rows": [...]}`, a list of rows, or one row; for texts also a text or a list of texts.

    Raises:
        HttpError: 422 for anything else.
    """
    records = content["rows"] if isinstance(content, dict) and isinstance(content.get("rows"), list) else content
    records = records if isinstance(records, list) else [records]
    check_rows(len(records))
    if predictor.replay.reads == "texts":
        records = [{"text": r} if isinstance(r, str) else r for r in records]
        if all(isinstance(r, dict) and set(r) == {"text"} for r in records) and records:
            odd = next((i for i, r in enumerate(records) if not isinstance(r["text"], str)), None)
            if odd is not None:
                raise HttpError(422, f"row {odd}: text is {type(records[odd]['text']).__name__}, expected a string", param="rows")
            return Rows({"text": [r["text"] for r in records]}, hidden=frozenset({"text"})), len(records)
    if not records:
        raise HttpError(422, "rows is empty; give at least one row", param="rows")
    wrong = next((i for i, r in enumerate(records) if not isinstance(r, dict)), None)
    if wrong is not None:
        raise HttpError(
            422,
            f'row {wrong} is {type(records[wrong]).__name__}, expected an object of values by column: {{"rows": [{{...}}]}}',
            param="rows",
        )
    rows = predictor.rows_of(records)
    return rows, len(records)


def upload_of_body(request: Request, body: bytes) -> Upload:
    """Return the file that a body is, by its content type. `HttpError` 415 for an unknown one."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in SUFFIXES:
        raise HttpError(
            415,
            f"content type {kind or '(none)'!r} is not read. Send application/json, multipart/form-data, or one of: {', '.join(SUFFIXES)}",
        )
    return Upload(body, SUFFIXES[kind], "the body")


async def uploads_of_form(form: Any) -> list[Upload]:
    """Return the files of a form. `HttpError` 422 if it has none."""
    found = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            own = Path(value.filename or "").name  # a name from outside: never used as a path
            suffix = Path(own).suffix.lower() or SUFFIXES.get((value.content_type or "").lower(), "")
            found.append(Upload(await value.read(), suffix, own[:100] or name))
    if not found:
        raise HttpError(422, "the form has no file. Send it as a file field: curl -F file=@picture.png ...", param="file")
    return found


def rows_of_upload(uploads: Sequence[Upload], predictor: Predictor) -> tuple[Rows, int]:
    """Return the rows of files, read from a temporary folder by the reader of `tauon predict`.

    Raises:
        HttpError: 415 for a kind of file that this model does not read.
        DataError: a file that cannot be read, by the name that the client gave.
    """
    reads = predictor.replay.reads
    for upload in uploads:
        if upload.suffix not in _TAKEN.get(reads, ()):
            raise HttpError(
                415, f"{upload.name}: the model reads {reads}; expected a file of type {', '.join(_TAKEN.get(reads, ())[:8])}", param="file"
            )
    if sum(check_upload(u.content, u.suffix, u.name, reads=reads) for u in uploads) > MOST_DECODED:
        raise HttpError(413, f"the files decode to more than {MOST_DECODED:,} bytes together. Send fewer at once.", param="file")
    if all(u.suffix == ".jsonl" for u in uploads) and reads != "series":
        return rows_of_json([record for u in uploads for record in _records(u)], predictor)
    if reads == "pictures" and all(u.suffix in PICTURE_SUFFIXES for u in uploads):
        return _pictures(uploads, predictor), len(uploads)
    found: Rows | None = None
    with tempfile.TemporaryDirectory(prefix="tauon-serve-") as folder:
        for i, upload in enumerate(uploads):
            path = Path(folder) / f"{i}{upload.suffix}"
            path.write_bytes(upload.content)
            rows = _named(lambda path=path: _read(path, predictor), path, upload.name)  # type: ignore[misc]
            found = rows if found is None else found.then(rows)
    if found is None or not len(found):
        raise HttpError(422, "the file has no rows", param="file")
    return found, len(found)


def _pictures(uploads: Sequence[Upload], predictor: Predictor) -> Rows:
    """Decode images as the reader of `tauon predict` does, without files: they are most of what a small request costs."""
    import_pillow()
    size, fit, colours = Reading(predictor.trained.source).pictures()
    with warnings.catch_warnings(action="ignore"):
        found = [decode_content(u.content, u.suffix, size, fit, colours) for u in uploads]
    for upload, picture in zip(uploads, found, strict=True):
        if isinstance(picture, str):
            raise DataError(f"{upload.name}: {picture}. Replace it")
    names = [u.name for u in uploads]
    return Rows({"file": names, "picture": found}, lambda i, column: f"{names[i]}: column {column!r}", frozenset({"picture"}))


def _records(upload: Upload) -> list[dict[str, Any]]:
    """Return the objects of JSON lines. Only columns that the model needs are kept of them later, however many there are."""
    text = read_text(upload.content, upload.name, "utf-8")
    return [json_line(line, f"{upload.name}, line {i}") for i, line in enumerate(text.split("\n"), 1) if line.strip()]


def _read(path: Path, predictor: Predictor) -> Rows:
    if predictor.replay.reads == "series":
        windows = Windows(read_series(path, predictor.trained.preprocess, predictor.trained.source), predictor.trained.preprocess)
        return next(iter(windows))[1]
    found: Rows | None = None
    for part in open_reader(path, predictor.replay.reads, Reading(predictor.trained.source)):
        found = part if found is None else found.then(part)
    return Rows({}) if found is None else found


def _named(read: Callable[[], Rows], path: Path, name: str) -> Rows:
    """Return `read()`, with the client's name of the file in every message in place of the temporary one."""
    try:
        rows = read()
    except DataError as err:
        raise DataError(str(err).replace(str(path), name).replace(path.name, name)) from None
    where = rows.where
    return Rows(rows.columns, lambda i, column: where(i, column).replace(str(path), name), rows.hidden)
